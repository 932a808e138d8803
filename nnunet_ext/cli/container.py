"""`nnunet_ext container`: the folder from which the container of a challenge's submission is built."""

import argparse
from pathlib import Path

from nnunet_ext.cli.challenge_arguments import add_task
from nnunet_ext.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext container`."""
    parser.add_argument("model_folder", type=Path, metavar="MODEL_FOLDER", help=".../TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="a folder to be made")
    parser.add_argument(
        "--layout",
        required=True,
        choices=("grand-challenge", "flare"),
        help="where the container finds images: /input/images/SLUG/*.mha, or /workspace/inputs/*_0000.nii.gz",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="SLUG",
        help="interface of each channel (default: the channels' names)",
    )
    parser.add_argument("--output-slug", default="segmentation", metavar="SLUG", help="interface of the label map")
    parser.add_argument(
        "--base", default="cpu", metavar="IMAGE", help="cpu, cuda, or an image with Python in it (default: %(default)s)"
    )
    parser.add_argument("--folds", nargs="+", default=[], metavar="F", help="default: all that are trained")
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--disable-tta", action="store_true", help="no mirroring: faster, a little less accurate")
    parser.add_argument(
        "--step-size", type=float, default=0.5, metavar="S", help="of the window (default: %(default)s)"
    )
    parser.add_argument("--challenge", metavar="NAME", help="write this challenge's label values instead of nnU-Net's")
    add_task(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the folder and says what to do with it."""
    from nnunet_ext.challenges.catalogue import get_challenge
    from nnunet_ext.containers.build import Options, build_folder

    if args.task is not None and args.challenge is None:
        raise ConfigurationError("--task is of a --challenge.")
    if not 0 < args.step_size <= 1:
        raise ConfigurationError(f"--step-size must lie above 0 and up to 1, found {args.step_size:g}.")
    values = get_challenge(args.challenge, args.task).to_challenge if args.challenge else {}
    options = Options(
        layout=args.layout,
        base=args.base,
        inputs=tuple(args.input),
        output=args.output_slug,
        folds=tuple(args.folds),
        checkpoint=args.checkpoint,
        values=values,
        mirroring=not args.disable_tta,
        step_size=args.step_size,
    )
    print(build_folder(args.model_folder, args.output, options))
    return 0
