"""The volumes of a validation case: its image, reference and prediction, wherever they are on this machine."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.files import read_json
from nnunet_ext.report.model_folder import ModelFolder
from nnunet_ext.report.scores import CaseScore


class Unavailable(Exception):
    """A file is missing or does not fit; the message says it in words for the page."""


@dataclass(frozen=True)
class Volumes:
    """One case: label values and grey values of the first channel `[D, H, W]`, spacing in mm along the same axes.

    `image` is None where it was not found; `remark` says why.
    """

    image: np.ndarray | None
    reference: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, ...]
    remark: str


def load_case(model: ModelFolder, case: CaseScore) -> Volumes:
    """Reads a case with nnU-Net's own readers.

    Raises:
        Unavailable: the prediction or the reference is missing or cannot be read, or they do not fit.
    """
    prediction, spacing = _read(model, _prediction_file(model, case), "prediction")
    reference, _ = _read(model, _reference_file(model, case), "reference segmentation")
    if reference.shape != prediction.shape:
        raise Unavailable(
            f"The reference has {_size(reference)} voxels, the prediction {_size(prediction)}: they do not fit."
        )
    try:
        image, _ = _read(model, _image_file(model, case.case), "image")
        if image.shape != reference.shape:
            raise Unavailable(f"The image has {_size(image)} voxels, its reference {_size(reference)}.")
    except Unavailable as error:
        return Volumes(None, reference, prediction, spacing, f"{error} The labels are drawn alone.")
    return Volumes(image, reference, prediction, spacing, "")


def _read(model: ModelFolder, path: Path, what: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """The first channel of a file and its spacing."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    try:
        reader = recursive_find_reader_writer_by_name(str(model.plans.get("image_reader_writer", "SimpleITKIO")))()
        array, properties = reader.read_images([str(path)]) if what == "image" else reader.read_seg(str(path))
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
        raise Unavailable(f"The {what} {path.name} cannot be read ({type(error).__name__}).") from error
    volume = np.asarray(array[0])
    if what != "image":
        volume = volume.astype(np.int16)
    return volume, tuple(float(step) for step in properties["spacing"])


def _prediction_file(model: ModelFolder, case: CaseScore) -> Path:
    # The file in this folder, not the recorded path: that may be another training's by now.
    path = model.path / f"fold_{case.fold}" / "validation" / _file_name(case.prediction_file)
    if not path.is_file():
        raise Unavailable(f"The prediction fold_{case.fold}/validation/{path.name} is not in the model folder.")
    return path


def _reference_file(model: ModelFolder, case: CaseScore) -> Path:
    name = _file_name(case.reference_file)
    candidates = [Path(case.reference_file)]
    for variable, folder in (("nnUNet_preprocessed", "gt_segmentations"), ("nnUNet_raw", "labelsTr")):
        if os.environ.get(variable):
            candidates.append(Path(os.environ[variable]) / model.dataset / folder / name)
    for path in candidates:
        if path.is_file():
            return path
    raise Unavailable(
        f"The reference segmentation {name} is neither where it was, nor in $nnUNet_preprocessed nor in $nnUNet_raw."
    )


def _image_file(model: ModelFolder, case: str) -> Path:
    """The first channel of the raw image; a raw dataset.json may name the files of each case."""
    root = os.environ.get("nnUNet_raw")
    if not root:
        raise Unavailable("The environment variable nnUNet_raw is not set, so the image was not found.")
    folder = Path(root) / model.dataset
    path = folder / "imagesTr" / f"{case}_0000{model.file_ending}"
    named = _named_images(folder, case)
    if named:
        path = folder / named[0]
    if not path.is_file():
        raise Unavailable(f"The image {path.name} is not in $nnUNet_raw/{model.dataset}.")
    return path


def _named_images(folder: Path, case: str) -> Sequence[str]:
    try:
        content: Any = read_json(folder / "dataset.json")
        return [str(name) for name in content["dataset"][case]["images"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _file_name(path: str) -> str:
    return re.split(r"[\\/]", path)[-1]


def _size(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape))
