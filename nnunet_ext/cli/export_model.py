"""`nnunet_ext export-model`: a slim model folder or ZIP file, which nnU-Net's own commands predict with."""

import argparse
from pathlib import Path

from nnunet_ext.cli.arguments import add_overwrite
from nnunet_ext.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext export-model`."""
    parser.add_argument("model_folder", type=Path, metavar="MODEL_FOLDER", help=".../TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="a folder, or a file OUT.zip")
    parser.add_argument(
        "--folds", nargs="+", default=[], metavar="F", help="numbers, or all for fold_all (default: what is trained)"
    )
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--half", action="store_true", help="store matrices and kernels in float16")
    parser.add_argument("--onnx", action="store_true", help="add each fold's network in ONNX, with a JSON file beside")
    parser.add_argument(
        "--check", type=Path, metavar="IMAGES", help="predict the first case of this folder before and after"
    )
    parser.add_argument("--check-all", action="store_true", help="with --check: all cases")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the model and says what it is."""
    from nnunet_ext.deployment.export import Options, export_model

    if args.check_all and args.check is None:
        raise ConfigurationError("--check-all is of --check IMAGES.")
    for fold in args.folds:
        if fold != "all" and not fold.isdigit():
            raise ConfigurationError(f"--folds takes numbers or all, found {fold!r}.")
    options = Options(
        folds=tuple(dict.fromkeys(args.folds)),
        checkpoint=args.checkpoint,
        half=args.half,
        onnx=args.onnx,
        check=args.check,
        all_cases=args.check_all,
        overwrite=args.overwrite,
    )
    print(export_model(args.model_folder, args.output, options))
    return 0
