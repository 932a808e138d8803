"""`nnunet_ext report`: one HTML page about a trained model folder, ours or stock nnU-Net's."""

import argparse
from pathlib import Path

from nnunet_ext.challenges.metrics import PLAIN_MEASURES
from nnunet_ext.cli.arguments import add_overwrite, add_processes, add_tolerance, add_viewer_mb, check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext report`."""
    parser.add_argument(
        "model_folder",
        type=Path,
        metavar="MODEL_FOLDER",
        help="a trained model as nnU-Net writes it: .../DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the page to write (default: report.html in the model folder)",
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        default=[],
        choices=[measure for measure in PLAIN_MEASURES if measure != "dice"],
        help="computed from the label maps of the validations, beside nnU-Net's Dice (default: none)",
    )
    add_tolerance(parser)
    add_processes(parser)
    add_viewer_mb(parser)
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Reads the folder, draws the figures, writes the page and says where."""
    from nnunet_ext.report.model_folder import read_model_folder
    from nnunet_ext.report.page import write_page

    model = read_model_folder(args.model_folder)
    output = args.output or model.path / "report.html"
    check_output(output, overwrite=args.overwrite or args.output is None)  # its own page is made anew
    write_page(model, output, args.viewer_mb, args.measures, args.tolerance, args.np)
    print(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 0
