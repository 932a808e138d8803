"""`python -m nnunet_ext <stock nnU-Net command> ...`: runs it with our classes visible, without the start-up file."""

import os
import sys

if __name__ == "__main__":
    from importlib.metadata import entry_points

    import nnunet_ext
    from nnunet_ext.discovery.startup import install

    if len(sys.argv) < 2:
        sys.exit("usage: python -m nnunet_ext COMMAND ..., for example: python -m nnunet_ext nnUNetv2_train -h")
    install()
    # Spawned children never run this file again; nnU-Net's own environment variable reaches them.
    bridge = os.path.join(nnunet_ext.__path__[0], "discovery", "bridge")
    os.environ["nnUNet_extTrainer"] = os.pathsep.join(filter(None, [os.environ.get("nnUNet_extTrainer"), bridge]))
    command = sys.argv.pop(1)
    found = list(entry_points(group="console_scripts", name=command))
    if not found:
        sys.exit(f"'{command}' is not an installed command. Example: python -m nnunet_ext nnUNetv2_train -h")
    sys.argv[0] = command
    sys.exit(found[0].load()())
