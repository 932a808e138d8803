"""Arguments that mean the same in every command, and checks of where output goes."""

import argparse
import os
from pathlib import Path

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS


def add_dataset(parser: argparse.ArgumentParser, **more: str) -> None:
    """DATASET, in all the ways in which nnU-Net's own commands take it."""
    text = more.pop("help", "a planned data set")
    parser.add_argument("dataset", metavar="DATASET", help=f"{text}: its id, name or DatasetXXX_Name", **more)  # type: ignore[arg-type]


def add_method(parser: argparse.ArgumentParser) -> None:
    """METHOD, by name."""
    parser.add_argument("method", metavar="METHOD", choices=sorted(METHODS), help=", ".join(sorted(METHODS)))


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`, and nnU-Net's spelling of it."""
    parser.add_argument(
        "--device",
        "-device",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="auto is CUDA where there is a GPU, else the CPU (default: %(default)s)",
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """`--overwrite`, without which no command replaces a file."""
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def add_processes(parser: argparse.ArgumentParser) -> None:
    """`-np`, as nnU-Net calls it."""
    from nnunet_ext.challenges.parallel import default_processes

    parser.add_argument(
        "-np", type=int, default=default_processes(), metavar="N", help="worker processes (default: %(default)s)"
    )


def add_tolerance(parser: argparse.ArgumentParser) -> None:
    """`--tolerance` of surface measures, one for all structures."""
    parser.add_argument("--tolerance", type=float, default=1.0, metavar="MM", help="of the NSD (default: %(default)s)")


def add_viewer_mb(parser: argparse.ArgumentParser) -> None:
    """`--viewer-mb`, what volumes may take of a page."""
    parser.add_argument(
        "--viewer-mb",
        type=_megabytes,
        default=4.0,
        metavar="MB",
        help="megabytes that crops of volumes, to be looked through slice by slice, may take of the page; larger ones "
        "are coarsened; 0 for pictures alone (default: %(default)s)",
    )


def _megabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"a number from 0 to 100, found {text!r}")
    return value


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuses a file that could not be written, before the work that goes into it.

    Raises:
        ConfigurationError: it is a folder, its folder is not there or may not be written, or it exists and may not be
            replaced.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        raise ConfigurationError(f"{path} cannot be written: give a file in a folder that exists.")
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"{path} cannot be written: you may not write into {folder}. Choose another place with -o."
        )
    if path.exists() and not overwrite:
        raise ConfigurationError(f"{path} exists. Choose another place, or replace it with --overwrite.")
