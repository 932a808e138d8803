"""`nnunet_ext transfer`: fits a checkpoint to another data set's plans, for nnU-Net's `-pretrained_weights`.

nnU-Net takes pretrained weights only where every shape agrees. With other input channels, strides or levels, this
writes a checkpoint of the new shape: what fits is taken over, and the rest, which starts from new random values, is
listed.
"""

import argparse
from pathlib import Path
from typing import Any

from nnunet_ext.cli.arguments import add_dataset, add_overwrite, check_output
from nnunet_ext.discovery.commands import typed_command
from nnunet_ext.discovery.devices import device_words
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_atomically
from nnunet_ext.methods import METHODS, Method


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext transfer`."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint of one of our trainers")
    add_dataset(parser, help="the new, planned data set")
    parser.add_argument("--plans", required=True, metavar="PLANS", help="plans of the new training")
    parser.add_argument("--configuration", default="3d_fullres", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of what cannot be taken over (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the checkpoint to write")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the fitted checkpoint, and prints what was taken over and what was not."""
    import torch

    from nnunet_ext.planning.plans_files import preprocessed_folder, read_dataset_json, read_plans
    from nnunet_ext.weights.checkpoints import read_checkpoint
    from nnunet_ext.weights.transfer import transfer

    check_output(args.output, args.overwrite)
    checkpoint = read_checkpoint(args.checkpoint)
    method = _method_of(checkpoint)
    if method is None:
        raise ConfigurationError(
            f"{args.checkpoint} was written by {checkpoint.get('trainer_name')}. "
            f"Known: {', '.join(m.trainer for m in METHODS.values())}, and trainers made from them."
        )
    if "init_args" not in checkpoint:
        raise ConfigurationError(f"{args.checkpoint} holds no training: it is an output of this command.")
    made = checkpoint["init_args"]
    source = _network(method, made["plans"], made["dataset_json"], made["configuration"])
    source.load_state_dict(checkpoint["network_weights"])
    folder = preprocessed_folder(args.dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        target = _network(method, read_plans(folder, args.plans), read_dataset_json(folder), args.configuration)
    taken, new = transfer(source, target)
    if not any(name in dict(target.named_parameters()) for name in taken):
        raise ConfigurationError(
            f"No tensor of {args.checkpoint} fits the network of {args.plans}, {args.configuration}. "
            f"Nothing was written."
        )
    content = {"network_weights": target.state_dict(), "trainer_name": method.trainer, "source": str(args.checkpoint)}
    write_atomically(args.output, lambda file: torch.save(content, file))

    sizes = {name: parameter.numel() for name, parameter in target.named_parameters()}
    share = sum(sizes.get(name, 0) for name in taken) / sum(sizes.values())
    print(f"Taken over: {len(taken)} of {len(taken) + len(new)} tensors, {share:.1%} of the weights.")
    if new:
        print("With new random values:")
        for name, reason in new.items():
            print(f"  {name}: {reason}")
    words = [folder.name, args.configuration, "0", "-tr", method.trainer, "-p", args.plans]
    words += ["-pretrained_weights", str(args.output), *device_words()]
    print(f"Train with: {typed_command(['nnUNetv2_train', *words])}")
    return 0


def _method_of(checkpoint: dict[str, Any]) -> Method | None:
    """The method that trained: by the trainer's name, or for a trainer made from ours by what ours wrote."""
    wrote = (checkpoint.get("nnunet_ext") or {}).get("method")
    known = METHODS.values()
    return next((m for m in known if checkpoint.get("trainer_name") == m.trainer or wrote == m.name), None)


def _network(method: Any, plans: dict[str, Any], dataset_json: dict[str, Any], configuration: str) -> Any:
    """The network as nnU-Net would build it for these plans."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if configuration not in plans["configurations"]:
        raise ConfigurationError(
            f"The plans have no configuration '{configuration}'. They have: {', '.join(plans['configurations'])}."
        )
    manager = PlansManager(plans)
    resolved = manager.get_configuration(configuration)
    return method.trainer_class().build_network_architecture(
        manager,
        resolved,
        determine_num_input_channels(manager, resolved, dataset_json),
        manager.get_label_manager(dataset_json).num_segmentation_heads,
    )
