"""`nnUNetv2_predict` with batches of slices in 2d configurations: nnU-Net's own entry point with our predictor."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_ext.errors import ConfigurationError

NAME = "nnunet_ext predict"


def predict(words: Sequence[str]) -> None:
    """Runs nnU-Net's command with these arguments, all of which are its own; `--device` is its `-device` too.

    Raises:
        ConfigurationError: images or model are not there, or torch does not find the device; nothing was written.
        SystemExit: the help was asked for, or nnU-Net refuses an argument.
    """
    words = ["-device" if word == "--device" else word for word in words]
    if "-h" not in words and "--help" not in words:
        check(words)
    from nnunetv2.inference import predict_from_raw_data as stock

    from nnunet_ext.prediction.batching import batched_predictor

    with _replaced(stock, "nnUNetPredictor", batched_predictor()), _replaced(sys, "argv", [NAME, *words]):
        stock.predict_entry_point()


def check(words: Sequence[str]) -> None:
    """Refuses what nnU-Net would find out late, after it has made the output folder or preprocessed the images.

    Raises:
        ConfigurationError: in a sentence what is wrong.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, default in (("-i", None), ("-d", None), ("-c", None), ("-tr", "nnUNetTrainer"), ("-p", "nnUNetPlans"),
                          ("-chk", "checkpoint_final.pth"), ("-device", "cuda")):  # fmt: skip
        parser.add_argument(name, default=default)
    parser.add_argument("-f", nargs="+", default=["0", "1", "2", "3", "4"])
    parser.add_argument("-num_parts", type=int, default=1)
    parser.add_argument("-part_id", type=int, default=0)
    try:
        asked, _ = parser.parse_known_args(list(words))
    except (argparse.ArgumentError, SystemExit):
        return  # nnU-Net's own parser says what is wrong
    if None in (asked.i, asked.d, asked.c):
        return
    if not 0 <= asked.part_id < asked.num_parts:
        raise ConfigurationError(f"-part_id must be from 0 to -num_parts - 1, found {asked.part_id}.")
    if not Path(asked.i).is_dir():
        raise ConfigurationError(f"There is no folder {asked.i} with images.")
    _check_model(asked)
    _check_device(asked.device)


def _check_model(asked: argparse.Namespace) -> None:
    if not os.environ.get("nnUNet_results"):
        raise ConfigurationError(
            "The environment variable nnUNet_results is not set; it says where trained models are."
        )
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    try:
        model = Path(get_output_folder(asked.d, asked.tr, asked.p, asked.c))
    except RuntimeError as error:
        raise ConfigurationError(f"There is no data set {asked.d}: {error}") from error
    for fold in asked.f:
        if not (model / f"fold_{fold}" / asked.chk).is_file():
            raise ConfigurationError(
                f"{model} has no fold_{fold}/{asked.chk}. Choose with -d, -tr, -p, -c, -f and -chk."
            )


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("torch finds no CUDA GPU, on which nnU-Net predicts by default. Use -device cpu.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError("torch finds no Apple GPU (mps). Use -device cpu.")


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
