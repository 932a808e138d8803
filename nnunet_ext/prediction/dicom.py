"""DICOM series as cases of the prediction: found, listed, read one by one, with segmentations beside label maps."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_ext.dicom.extra import check_installed
from nnunet_ext.dicom.segments import Segment, segments_of
from nnunet_ext.dicom.series import Found, Series, find_series
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json, write_json
from nnunet_ext.prediction.model import Model

TABLE = "dicom.json"  # in the output folder: which case is which series


def dicom_segments(model: Model) -> list[Segment]:
    """The segments of a model's label maps.

    Raises:
        ConfigurationError: the packages are not installed, or its label maps do not say which regions were found.
    """
    check_installed("--dicom-seg")
    return segments_of(model.dataset["labels"], model.dataset.get("regions_class_order"))


def find_dicom(model: Model, folder: Path, segments: bool) -> Found:
    """The series of a folder that this model can predict.

    Args:
        model: of one channel, whose reader reads NIfTI files.
        folder: the input.
        segments: whether DICOM segmentations will be written, for which some series lack something.

    Raises:
        ConfigurationError: the packages are not installed, the model cannot take series, or there is none to predict.
    """
    check_installed(f"{folder} holds DICOM files, and reading them")
    names = model.channel_names
    if len(names) != 1:
        raise ConfigurationError(
            f"{folder} holds DICOM files, and this model takes {len(names)} channels ({', '.join(names)}), "
            "which would have to be on one grid. Convert and register them first, and give files "
            f"CASE_0000{model.ending} to CASE_{len(names) - 1:04d}{model.ending}."
        )
    reader = model.plans.image_reader_writer_class
    if ".nii.gz" not in reader.supported_file_endings:
        raise ConfigurationError(
            f"{folder} holds DICOM files, and this model's images are read by {reader.__name__}, for "
            f"{', '.join(reader.supported_file_endings)}: no volumes, as DICOM series are."
        )
    found = find_series(folder)
    if segments:
        found = _with_source_for_segmentation(found)
    if not found.series:
        faults = "".join(f"\n  {name}: {fault}" for name, fault in found.faults.items())
        raise ConfigurationError(
            f"{folder} holds no DICOM series that can be predicted.{faults}" + "".join(f"\n  {n}" for n in found.notes)
        )
    return found


def describe(found: Found, model: Model) -> str:
    """For people: which case is which series, what is wrong with others, what was passed over."""
    rows = [("case", "series", "slices", "spacing in mm (x, y, z)", "folder")]
    for name, series in found.series.items():
        title = " ".join(filter(None, [series.modality, f"no. {series.number}", series.description, series.unit]))
        spacing = " x ".join(f"{length:.4g}" for length in series.geometry.spacing)
        rows.append((name, title, str(series.geometry.size[2]), spacing, str(series.folder)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *found.notes, *_of_other_modalities(found, model)])


def _of_other_modalities(found: Found, model: Model) -> list[str]:
    """Where the model's channel is called CT, as nnU-Net's normalisation wants it, series of others stand out."""
    if model.channel_names[0].upper() != "CT":
        return []
    others = {name: series.modality for name, series in found.series.items() if series.modality != "CT"}
    return [f"Careful: this model's channel is CT, and {name} is {modality}." for name, modality in others.items()]


def write_table(found: Found, output: Path) -> None:
    """Adds to the output's dicom.json: case -> UIDs, folder and what else tells a series; no patient's name.

    Raises:
        ConfigurationError: a case of this name was another series in an earlier run.
    """
    path = output / TABLE
    earlier = read_json(path) if path.is_file() else {}
    cases = {
        name: {
            "series_instance_uid": series.uid,
            "study_instance_uid": series.study,
            "folder": os.path.abspath(series.folder),
            "modality": series.modality,
            "series_number": series.number,
            "description": series.description,
            "files": len(series.files),
        }
        for name, series in found.series.items()
    }
    for name, facts in cases.items():
        before = earlier.get(name, facts)
        if before["series_instance_uid"] != facts["series_instance_uid"]:
            raise ConfigurationError(
                f"{path} says that the case {name} is the series {before['series_instance_uid']} in "
                f"{before['folder']}; now it would be {facts['series_instance_uid']}. Choose another folder with -o."
            )
    write_json(path, {**earlier, **cases})


def write_image(series: Series, folder: Path) -> Path:
    """Writes a series into a folder as an image that nnU-Net's readers of volumes read; not compressed, for speed.

    Raises:
        ConfigurationError: a file cannot be decoded.
    """
    import SimpleITK as sitk

    from nnunet_ext.dicom.volume import read_volume

    path = folder / "series_0000.nii"
    sitk.WriteImage(read_volume(series), str(path))
    return path


def write_dicom_seg(series: Series, label_map: Path, segments: Sequence[Segment], model: Model) -> Path:
    """Writes the DICOM segmentation of a series beside its label map, of which it is made.

    Raises:
        ConfigurationError: the label map is not on the grid of the series.
        RuntimeError: what was written is not the label map.
    """
    import SimpleITK as sitk

    from nnunet_ext.dicom.segmentation import write_segmentation

    path = label_map.with_name(label_map.name.removesuffix(model.ending) + ".dcm")
    path.unlink(missing_ok=True)  # of another label map
    image = sitk.ReadImage(str(label_map))
    geometry = series.geometry
    for found, expected, tolerance in (
        (image.GetSize(), geometry.size, 0),
        (image.GetSpacing(), geometry.spacing, 1e-3 * min(geometry.spacing)),  # NIfTI keeps 7 digits
        (image.GetOrigin(), geometry.origin, 1e-2 * min(geometry.spacing)),
        (image.GetDirection(), geometry.direction, 1e-4),
    ):
        if not np.allclose(found, expected, rtol=0, atol=tolerance):
            raise ConfigurationError(f"{label_map} is not on the grid of its series: {found}, expected {expected}.")
    name = f"{model.plans.dataset_name}, {model.folder.resolve().name}, folds {', '.join(map(str, model.folds))}"
    write_segmentation(sitk.GetArrayFromImage(image), series, segments, path, name)
    return path


def _with_source_for_segmentation(found: Found) -> Found:
    from nnunet_ext.dicom.segmentation import check_source

    lacking = {name: lacks for name, series in found.series.items() if (lacks := check_source(series))}
    series = {name: series for name, series in found.series.items() if name not in lacking}
    return Found(series, {**found.faults, **lacking}, found.notes)
