"""`python -m nnunet_ext COMMAND`: our commands, and nnU-Net's, which then see our classes without the start-up file."""

import os
import sys

if __name__ == "__main__":
    from importlib.metadata import entry_points

    import nnunet_ext
    from nnunet_ext.cli.main import COMMANDS, main
    from nnunet_ext.discovery.startup import install

    install()
    # Spawned children never run this file again; nnU-Net's own environment variable reaches them.
    bridge = os.path.join(nnunet_ext.__path__[0], "discovery", "bridge")
    os.environ["nnUNet_extTrainer"] = os.pathsep.join(filter(None, [os.environ.get("nnUNet_extTrainer"), bridge]))
    if len(sys.argv) < 2 or sys.argv[1] in COMMANDS or sys.argv[1].startswith("-"):
        sys.exit(main(sys.argv[1:]))
    command = sys.argv.pop(1)
    found = list(entry_points(group="console_scripts", name=command))
    if not found:
        sys.exit(
            f"'{command}' is neither a command of nnunet_ext ({', '.join(COMMANDS)}) nor an installed one. "
            f"Example: python -m nnunet_ext nnUNetv2_train -h"
        )
    sys.argv[0] = command
    sys.exit(found[0].load()())
