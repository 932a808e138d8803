"""`nnunet_ext demo`: nnU-Net's own commands with one of our methods, or all, from raw data to tables and pictures."""

import argparse
import sys
from pathlib import Path

from nnunet_ext.cli.arguments import add_device
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS, get_method


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext demo`."""
    shown = sorted(name for name, method in METHODS.items() if method.demo_path)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--method", default="e2enet", choices=shown, help="default: %(default)s")
    which.add_argument("--all", action="store_true", help="all methods and nnU-Net's U-Net, compared on one page")
    parser.add_argument(
        "--dataset",
        type=Path,
        metavar="RAW_FOLDER",
        help="an nnU-Net raw data set (DatasetXXX_Name), which is only read (default: phantoms generated on the spot)",
    )
    add_device(parser)
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("nnunet_ext_demo"),
        metavar="DIR",
        help="where all data, results and logs go (default: ./%(default)s)",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="train N epochs instead of the demo's short schedule")


def run(args: argparse.Namespace) -> int:
    """Runs the demo; 0, or 1 when one of nnU-Net's commands failed."""
    from nnunet_ext.demo.all_methods import DemoOfAll
    from nnunet_ext.demo.raw_dataset import check_raw_dataset
    from nnunet_ext.demo.run import Demo, prepare_work_dir
    from nnunet_ext.demo.stages import StageFailed
    from nnunet_ext.discovery.devices import chosen_device

    if args.dataset is not None:
        check_raw_dataset(args.dataset)
    if args.epochs is not None and args.epochs < 1:
        raise ConfigurationError(f"--epochs must be at least 1, found {args.epochs}.")
    device = chosen_device(args.device)
    work = prepare_work_dir(args.work_dir, args.dataset)
    demo = (
        DemoOfAll(device, work, args.dataset) if args.all else Demo(get_method(args.method), device, work, args.dataset)
    )
    try:
        demo.run(args.epochs)
    except StageFailed as error:
        print(f"\nnnunet_ext: {error}", file=sys.stderr)
        return 1
    return 0
