"""The volumes of a validation case: its image, reference and prediction, wherever they are on this machine."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_ext.files import read_json
from nnunet_ext.report.model_folder import ModelFolder
from nnunet_ext.report.orientation import direction_of, to_lps
from nnunet_ext.report.scores import CaseScore


class Unavailable(Exception):
    """A file is missing or does not fit; the message says it in words for the page."""


@dataclass(frozen=True)
class Volumes:
    """One case: label values and grey values of the first channel `[D, H, W]`, spacing in mm along the same axes.

    `image` is None where it was not found; `remark` says why. `in_lps`: the axes are feet to head, front to back and
    the patient's right to left; else they are the file's, which does not say what they are.
    """

    image: np.ndarray | None
    reference: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, ...]
    remark: str
    in_lps: bool


def load_case(model: ModelFolder, case: CaseScore) -> Volumes:
    """Reads a case with nnU-Net's own readers.

    Raises:
        Unavailable: the prediction or the reference is missing or cannot be read, or they do not fit.
    """
    prediction = _read(model, prediction_file(model, case), "prediction")
    reference = _read(model, reference_file(model, case), "reference segmentation")
    if reference.array.shape != prediction.array.shape or reference.in_lps != prediction.in_lps:
        raise Unavailable(
            f"The reference has {_size(reference.array)} voxels, the prediction {_size(prediction.array)}: they do not "
            f"fit."
        )
    shown = (reference.array, prediction.array, prediction.spacing)
    try:
        image = _read(model, _image_file(model, case.case), "image")
        if image.array.shape != reference.array.shape:
            raise Unavailable(f"The image has {_size(image.array)} voxels, its reference {_size(reference.array)}.")
    except Unavailable as error:
        return Volumes(None, *shown, f"{error} The labels are drawn alone.", prediction.in_lps)
    return Volumes(image.array, *shown, "", prediction.in_lps)


class _Volume(NamedTuple):
    array: np.ndarray  # [D, H, W]
    spacing: tuple[float, ...]
    in_lps: bool


def _read(model: ModelFolder, path: Path, what: str) -> _Volume:
    """The first channel of a file, in LPS where the file says how it lies."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    try:
        reader = recursive_find_reader_writer_by_name(str(model.plans.get("image_reader_writer", "SimpleITKIO")))()
        array, properties = reader.read_images([str(path)]) if what == "image" else reader.read_seg(str(path))
        volume = np.asarray(array[0])
        if what != "image":
            volume = volume.astype(np.int16)
        spacing = tuple(float(step) for step in properties["spacing"])
        direction = direction_of(properties)
        if direction is None:
            return _Volume(volume, spacing, False)
        return _Volume(*to_lps(volume, spacing, direction), True)
    except Exception as error:  # whatever a reader raises at a damaged file costs this case alone
        raise Unavailable(f"The {what} {path.name} cannot be read ({type(error).__name__}).") from error


def prediction_file(model: ModelFolder, case: CaseScore) -> Path:
    """A case's predicted label map.

    Raises:
        Unavailable: it is not in the model folder.
    """
    # The file in this folder, not the recorded path: that may be another training's by now.
    path = model.path / f"fold_{case.fold}" / "validation" / _file_name(case.prediction_file)
    if not path.is_file():
        raise Unavailable(f"The prediction fold_{case.fold}/validation/{path.name} is not in the model folder.")
    return path


def reference_file(model: ModelFolder, case: CaseScore) -> Path:
    """A case's reference segmentation.

    Raises:
        Unavailable: it is nowhere.
    """
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
