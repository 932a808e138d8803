"""A label map as a DICOM segmentation of its series, written by highdicom and read back before it counts."""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nnunet_ext import __version__
from nnunet_ext.dicom.codes import concept_of, text_of
from nnunet_ext.dicom.geometry import SAME_PLACE
from nnunet_ext.dicom.segments import Segment
from nnunet_ext.dicom.series import Series
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_atomically

# The standard wants these elements, with or without a value; where a series was stripped of them, so is the file.
MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


def write_segmentation(
    labels: np.ndarray, series: Series, segments: Sequence[Segment], path: Path, model: str = ""
) -> None:
    """Writes a DICOM SEG of type BINARY; `path` appears only when it was read back and is equal voxel for voxel.

    Every segment is described, those without a voxel too: that nothing was found is a finding. Frames without a voxel
    are left out, but where all are.

    Args:
        labels: label map `[Z, Y, X]` of integers, slices in the order of the series.
        series: of which the file takes patient, study and frame of reference.
        segments: at least one; number k of the file is the k-th of them.
        path: the file.
        model: by what the labels were predicted.

    Raises:
        ConfigurationError: the label map does not fit the series or has values without a segment, or the series lacks
            what a segmentation needs.
        RuntimeError: what was written is not what was to be written.
        OSError: it cannot be written.
    """
    _check(labels, series, segments)
    headers = _headers(series)
    file = io.BytesIO()
    _made(labels, series, segments, headers, model).save_as(file)
    check_equal(file, labels, [header.ImagePositionPatient for header in headers], segments)
    write_atomically(path, lambda whole: whole.write(file.getbuffer()))


def check_source(series: Series) -> str:
    """What a series lacks for a segmentation of it; "" where it lacks nothing."""
    lacks = [
        name for name, uid in (("FrameOfReferenceUID", series.frame), ("StudyInstanceUID", series.study)) if not uid
    ]
    return f"no {' and no '.join(lacks)}, without which no segmentation can refer to it" if lacks else ""


def check_equal(
    file: BinaryIO, labels: np.ndarray, positions: Sequence[Sequence[float]], segments: Sequence[Segment]
) -> None:
    """Reads the file's frames by pydicom, and compares each with the label map `[Z, Y, X]`.

    Args:
        file: open for reading.
        labels: what it should hold.
        positions: ImagePositionPatient of each slice of the label map, in mm.
        segments: what it should describe.

    Raises:
        RuntimeError: a voxel, a frame, a position or a segment differs.
    """
    import pydicom

    file.seek(0)
    made = pydicom.dcmread(file)
    groups, places = made.PerFrameFunctionalGroupsSequence, np.array(positions, float)
    if [one.SegmentNumber for one in made.SegmentSequence] != list(range(1, len(segments) + 1)):
        raise RuntimeError("The segmentation has other segments than were to be written.")
    there = [set(np.unique(plane).tolist()) for plane in labels]
    left = {(s, z) for s, one in enumerate(segments) for z in range(len(labels)) if there[z] & set(one.values)}
    for group, frame in zip(groups, _frames(made.PixelData, len(groups), labels.shape[1:]), strict=True):
        s = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1
        away = np.linalg.norm(places - np.array(group.PlanePositionSequence[0].ImagePositionPatient, float), axis=1)
        z = int(away.argmin())
        if away[z] > SAME_PLACE or not np.array_equal(frame, np.isin(labels[z], segments[s].values)):
            raise RuntimeError(f"The segmentation differs from the label map: {segments[s].name}, slice {z}.")
        left.discard((s, z))
    if left:
        raise RuntimeError(f"{len(left)} frames of the label map are missing in the segmentation that was written.")


def _frames(pixels: bytes, count: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Masks `[Y, X]` of frames of single bits, which follow one another without a gap, the lowest bit first.

    pydicom 3.0 can unpack them all at once, for which volumes of many segments are too large, but not one by one.
    """
    packed, size = np.frombuffer(pixels, np.uint8), math.prod(shape)
    for start in range(0, count * size, size):
        bits = np.unpackbits(packed[start // 8 : -(-(start + size) // 8)], bitorder="little")
        yield bits[start % 8 :][:size].reshape(shape).astype(bool)


def _headers(series: Series) -> list[Any]:
    """The headers of all slices as highdicom needs them; the files stay as they are."""
    import pydicom
    from pydicom.valuerep import DSfloat

    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in series.files]
    for header in headers:
        # highdicom takes the grid from here, and wants it equal to the last digit
        header.ImageOrientationPatient = headers[0].ImageOrientationPatient
        header.PixelSpacing = headers[0].PixelSpacing
        header.SliceThickness = header.SpacingBetweenSlices = DSfloat(series.geometry.spacing[2], auto_format=True)
        for name in MAY_BE_EMPTY:
            if name not in header:
                setattr(header, name, None)
    return headers


def _check(labels: np.ndarray, series: Series, segments: Sequence[Segment]) -> None:
    if labels.shape != series.geometry.size[::-1]:
        raise ConfigurationError(
            f"The label map has {labels.shape} slices, rows and columns, the series {series.geometry.size[::-1]}."
        )
    unknown = set(np.unique(labels).tolist()) - {0} - {value for one in segments for value in one.values}
    if unknown:
        raise ConfigurationError(f"The label map has the values {sorted(unknown)}, for which there is no segment.")
    if lacks := check_source(series):
        raise ConfigurationError(f"The series has {lacks}.")


def _made(labels: np.ndarray, series: Series, segments: Sequence[Segment], headers: list[Any], model: str) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="nnunet_ext",
        family=codes.DCM.ArtificialIntelligence,
        version=__version__,
        source="nnunet_ext",
        parameters={"model": model} if model else None,
    )
    made = highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=_pixels(labels, segments),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(n, one.name, algorithm) for n, one in enumerate(segments, start=1)],
        series_instance_uid=highdicom.UID(),
        series_number=9000 + (series.number or 0),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="nnunet_ext",
        manufacturer_model_name="nnunet_ext",
        software_versions=__version__,
        device_serial_number="0",
        omit_empty_frames=bool(labels.any()),  # a file must have a frame
        specific_character_set="ISO_IR 192",
        content_label="SEGMENTATION",
        content_description="Automatic segmentation, not reviewed",
        series_description="Automatic segmentation by nnunet_ext",
    )
    made.ContentCreatorName = ""  # no person; the standard wants the element
    return made


def _pixels(labels: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """Numbers of segments `[Z, Y, X]`, or where they overlap a mask of each `[Z, Y, X, S]`."""
    values = [value for one in segments for value in one.values]
    if len(set(values)) < len(values):
        return np.stack([np.isin(labels, one.values) for one in segments], axis=-1).astype(np.uint8)
    numbers = np.zeros(max(values) + 1, np.uint16)
    for number, one in enumerate(segments, start=1):
        numbers[list(one.values)] = number
    return numbers[labels]


def _description(number: int, name: str, algorithm: Any) -> Any:
    import highdicom

    concept = concept_of(name, number)
    description = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=text_of(name),
        segmented_property_category=highdicom.sr.CodedConcept(*concept.category),
        segmented_property_type=highdicom.sr.CodedConcept(*concept.kind),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        display_color=highdicom.color.CIELabColor.from_rgb(*concept.colour),
    )
    if concept.side is not None:  # highdicom has no argument for it
        side = highdicom.sr.CodedConcept(*concept.side)
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return description
