"""nnU-Net raw data sets (`DatasetXXX_Name`) as the demo reads them: cases, labels, and which cases can be scored."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json


def check_raw_dataset(folder: Path) -> None:
    """Refuses what nnU-Net could not read as a raw data set, or not split into five folds.

    Raises:
        ConfigurationError: what is missing.
    """
    name = folder.resolve().name
    if not re.fullmatch(r"Dataset\d{3}_.+", name):
        raise ConfigurationError(f"The folder of a raw data set is called DatasetXXX_Name, found '{name}'.")
    for part in ("dataset.json", "imagesTr", "labelsTr"):
        if not (folder / part).exists():
            raise ConfigurationError(f"{folder} is no nnU-Net raw data set: it has no {part}.")
    try:
        dataset_json = read_json(folder / "dataset.json")
        count = len(training_files(folder, dataset_json))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{folder / 'dataset.json'} cannot be used ({error!r}).") from error
    if count < 5:
        raise ConfigurationError(f"{folder} has {count} training cases; nnU-Net's five folds need at least 5.")


@dataclass(frozen=True)
class TestCases:
    """Labelled cases to predict: `images/<name>_0000<ending>`, `labels/<name><ending>`, and where they come from."""

    __test__ = False  # pytest takes classes named Test* for tests

    images: Path
    labels: Path
    names: list[str]
    origin: str


def training_files(raw: Path, dataset_json: Mapping[str, Any]) -> dict[str, tuple[list[Path], Path]]:
    """Training case -> its image files by channel, its label file. Paths in dataset.json are relative to `raw`."""
    if "dataset" in dataset_json:
        return {
            name: (
                [raw / os.path.expandvars(image) for image in files["images"]],
                raw / os.path.expandvars(files["label"]),
            )
            for name, files in dataset_json["dataset"].items()
        }
    ending = dataset_json["file_ending"]
    images = channel_files(raw / "imagesTr", ending)
    return {name: (files, raw / "labelsTr" / f"{name}{ending}") for name, files in images.items()}


def channel_files(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Case -> its `<case>_XXXX<ending>` files of `folder` in the order of the channels."""
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    cases: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := pattern.fullmatch(path.name):
            cases.setdefault(match[1], []).append(path)
    return cases


def labelled_test_cases(raw: Path, dataset_json: Mapping[str, Any]) -> dict[str, tuple[list[Path], Path]]:
    """Cases with images in imagesTs and a label file in labelsTs, as `training_files` gives them."""
    ending = dataset_json["file_ending"]
    images = channel_files(raw / "imagesTs", ending)
    labels = {name: raw / "labelsTs" / f"{name}{ending}" for name in images}
    return {name: (files, labels[name]) for name, files in images.items() if labels[name].is_file()}


def find_test_cases(raw: Path, preprocessed: Path, folder: Path, fold: int) -> TestCases:
    """The labelled test cases, or else the validation cases of the fold, which its training has not learned from.

    They stay where they are when nnU-Net's commands can be given `imagesTs` and `labelsTs` as they stand; otherwise
    `folder` gets links to their files.
    """
    dataset_json = read_json(raw / "dataset.json")
    ending = dataset_json["file_ending"]
    cases = labelled_test_cases(raw, dataset_json)
    origin = "test cases (imagesTs)"
    if not cases:
        held_out = read_json(preprocessed / "splits_final.json")[fold]["val"]
        every = training_files(raw, dataset_json)
        cases = {name: every[name] for name in sorted(held_out)}
        origin = f"validation cases of fold {fold} (there are no labelled test cases)"
    elif set(cases) == set(channel_files(raw / "imagesTs", ending)):
        labels = {path.name for path in (raw / "labelsTs").iterdir() if path.name.endswith(ending)}
        if labels == {f"{name}{ending}" for name in cases}:
            return TestCases(raw / "imagesTs", raw / "labelsTs", list(cases), origin)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for name, (images, label) in cases.items():
        for channel, image in enumerate(images):
            link(image.resolve(), folder / "images" / f"{name}_{channel:04d}{ending}")
        link(label.resolve(), folder / "labels" / f"{name}{ending}")
    return TestCases(folder / "images", folder / "labels", list(cases), origin)


class Organ(NamedTuple):
    """A label or region: its name, the value that nnU-Net writes, its key in summary.json, the values it is made of."""

    name: str
    value: int
    key: str
    members: tuple[int, ...]


def organs_of(dataset_json: Mapping[str, Any]) -> list[Organ]:
    """What is segmented, without background and the ignore label.

    For regions the value is the one that nnU-Net writes for them (`regions_class_order`).
    """
    labels = {n: v for n, v in dataset_json["labels"].items() if n != "ignore" and v not in (0, "0", [0])}
    members = [tuple(map(int, value if isinstance(value, list) else [value])) for value in labels.values()]
    keys = [
        str(m) if isinstance(value, list) else str(value) for value, m in zip(labels.values(), members, strict=True)
    ]
    regions = any(len(values) > 1 for values in members)
    values = dataset_json["regions_class_order"] if regions else [m[0] for m in members]
    return [Organ(name, int(v), key, m) for name, v, key, m in zip(labels, values, keys, members, strict=True)]


def as_predicted(truth: np.ndarray, organs: Sequence[Organ]) -> np.ndarray:
    """A label map as nnU-Net would write it: for regions, the later ones of `regions_class_order` over the earlier."""
    result = np.zeros_like(truth)
    for organ in organs:
        result[np.isin(truth, organ.members)] = organ.value
    return result


def read_volume(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Array `[D, H, W]`, spacing in mm: feet to head, front to back, the patient's right to left."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    if image.GetNumberOfComponentsPerPixel() > 1 or image.GetDimension() != 3:
        raise ConfigurationError(f"{path} is not a volume with one value per voxel.")
    image = sitk.DICOMOrient(image, "LPS")
    return sitk.GetArrayFromImage(image), tuple(reversed(image.GetSpacing()))


def link(source: Path, destination: Path) -> None:
    """A symbolic link, or a copy where links are not possible."""
    try:
        destination.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, destination)
        else:
            shutil.copyfile(source, destination)
