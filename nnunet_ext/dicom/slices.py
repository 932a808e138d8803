"""One DICOM file as a slice: what is read of its header, and what of it cannot be used."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# What SimpleITK's GDCM decodes; the retired big-endian syntax is among them.
DECODABLE = {
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.5",
}
NO_VOLUMES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "DOC", "AU", "ECG"}
DIRECTORY = "1.2.840.10008.1.3.10"  # the SOP class of a DICOMDIR
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# By what the volumes of a series with several of them differ
OF_A_VOLUME = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "TriggerTime",
    "ImageType",
)
BARE = (b"\x08\x00", b"\x02\x00")  # the groups with which a file without preamble begins
ENDINGS = {".dcm", ".dicom", ".ima"}  # a file named so must be DICOM


@dataclass(frozen=True)
class Slice:
    """A file of a series; lengths in mm, places in DICOM's patient coordinates (LPS).

    `problem` says why it cannot be a slice of a volume; the geometry is not read then.
    """

    path: Path
    series: str  # UIDs
    instance: str
    study: str
    frame: str
    modality: str
    description: str
    number: int | None  # of the series
    unit: str  # of PET: BQML, say
    problem: str = ""
    size: tuple[int, int] = (0, 0)  # rows, columns
    position: tuple[float, ...] = ()  # of the centre of the first voxel
    orientation: tuple[float, ...] = ()  # along a row, then along a column
    spacing: tuple[float, ...] = ()  # from row to row, from column to column
    thickness: float | None = None
    volume: tuple[str, ...] = ()  # values of OF_A_VOLUME


@dataclass(frozen=True)
class Passed:
    """A file that is no slice and no fault; `what` says what it is."""

    path: Path
    what: str


@dataclass(frozen=True)
class Unreadable:
    """A file that should have been DICOM; `why` it is not."""

    path: Path
    why: str


def printable(path: Path) -> str:
    """A path that can be printed, whatever bytes its name has."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def files_of(folder: Path, fails: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    """All files in a folder and its subfolders but hidden ones, sorted; `fails` gets the errors of reading a folder."""
    for place, folders, names in os.walk(folder, onerror=fails):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def holds_dicom(folder: Path) -> bool:
    """Whether a DICOM file lies in the folder or in one below it; needs no package. What may not be read is none."""

    def may_be(path: Path) -> bool:
        with contextlib.suppress(OSError):
            return _is_dicom(path)
        return False

    return any(may_be(path) for path in files_of(folder))


def read_slice(path: Path) -> Slice | Passed | Unreadable:
    """Reads a file's header, never its pixels; whatever is wrong with it is in the result."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        str(path).encode()
    except UnicodeEncodeError:  # SimpleITK would end the whole process
        return Unreadable(path, "its name cannot be read with this locale's encoding; rename it")
    try:
        if not path.is_file():
            return Unreadable(path, "it is a link to nothing, or no regular file; copy the file itself")
        if _is_dicom(path):
            return _slice_of(path, pydicom.dcmread(path, stop_before_pixels=True))
        start = _start(path)
        if path.suffix.lower() in ENDINGS or not start:
            return Unreadable(path, "it is no DICOM file, or what was left of one; copy it again")
        if start[:2] in BARE:
            return Unreadable(path, "it seems to be DICOM without the preamble of files; export it again as a file")
        return Passed(path, "no DICOM file")
    except OSError as error:
        return Unreadable(path, f"it cannot be read: {error.strerror or error}")
    except (InvalidDicomError, EOFError, ValueError, TypeError, AttributeError, KeyError) as error:
        return Unreadable(path, f"its header cannot be read ({type(error).__name__}: {error}); copy it again")


def _is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark behind its preamble."""
    return path.is_file() and _start(path)[128:] == b"DICM"  # a pipe would wait for ever


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(132)


def _slice_of(path: Path, dataset: Any) -> Slice | Passed | Unreadable:
    kind = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", ""))
    if kind == DIRECTORY or path.name.upper() == "DICOMDIR":
        return Passed(path, "DICOMDIR")
    modality = str(dataset.get("Modality", ""))
    what = _name_of(kind)
    if modality in NO_VOLUMES or ("Rows" not in dataset and "Image" not in what and kind):
        return Passed(path, what)
    image_type = [str(value).upper() for value in _values(dataset, "ImageType")]
    if "LOCALIZER" in image_type:
        return Passed(path, "localizer")
    if kind.startswith(SECONDARY_CAPTURE) and "ImagePositionPatient" not in dataset:
        return Passed(path, "secondary capture without a position, such as a screenshot")
    if not dataset.get("SeriesInstanceUID"):
        return Unreadable(path, "it has no SeriesInstanceUID, or is cut off; copy it again")
    found = Slice(
        path=path,
        series=str(dataset.SeriesInstanceUID),
        instance=str(dataset.get("SOPInstanceUID", "")),
        study=str(dataset.get("StudyInstanceUID", "")),
        frame=str(dataset.get("FrameOfReferenceUID", "")),
        modality=modality,
        description=str(dataset.get("SeriesDescription") or ""),
        number=None if dataset.get("SeriesNumber") is None else int(dataset.SeriesNumber),
        unit=str(dataset.get("Units", "")),
        problem=_problem(dataset, what),
    )
    if found.problem:
        return found
    return replace(
        found,
        size=(int(dataset.Rows), int(dataset.Columns)),
        position=_numbers(dataset, "ImagePositionPatient"),
        orientation=_numbers(dataset, "ImageOrientationPatient"),
        spacing=_numbers(dataset, "PixelSpacing"),
        thickness=next(iter(_numbers(dataset, "SliceThickness")), None),
        volume=tuple("\\".join(map(str, _values(dataset, name))) for name in OF_A_VOLUME),
    )


def _problem(dataset: Any, what: str) -> str:
    """Why this cannot be a slice of a volume; "" where it can."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if int(dataset.get("NumberOfFrames") or 1) > 1 or "SharedFunctionalGroupsSequence" in dataset:
        return f"{what} of several frames in one file; only one slice a file is read. Export or convert it as such"
    missing = [name for name in ("Rows", "Columns", "SOPInstanceUID") if not dataset.get(name)]
    if missing:
        return f"no {', '.join(missing)}; the file may be cut off"
    if dataset.get("SamplesPerPixel", 1) != 1:
        return "colour; images of one value a pixel are expected"
    if dataset.get("PhotometricInterpretation") != "MONOCHROME2":
        return f"PhotometricInterpretation {dataset.get('PhotometricInterpretation')}; MONOCHROME2 is expected"
    for name, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        values = _numbers(dataset, name)
        if len(values) != count or not all(map(math.isfinite, values)):
            return f"no {name} of {count} numbers, without which its place is not known"
    if min(_numbers(dataset, "PixelSpacing")) <= 0:
        return "a PixelSpacing that is not above 0"
    if syntax is None or str(syntax) not in DECODABLE:
        return (
            f"transfer syntax {_name_of(str(syntax))}, which SimpleITK does not decode; decompress it first, as by "
            'pydicom: pip install pylibjpeg "pylibjpeg-openjpeg>=2", then Dataset.decompress() and save_as()'
        )
    return _problem_of_values(dataset)


def _problem_of_values(dataset: Any) -> str:
    """Why stored values cannot be turned into those of the modality, such as Hounsfield units."""
    if "ModalityLUTSequence" in dataset:
        return "a ModalityLUTSequence; values by RescaleSlope and RescaleIntercept are expected"
    rescale = [_numbers(dataset, name) for name in ("RescaleSlope", "RescaleIntercept")]
    if rescale == [(), ()]:
        return ""
    if any(len(values) != 1 or not math.isfinite(values[0]) for values in rescale) or rescale[0][0] == 0:
        return "RescaleSlope and RescaleIntercept that are not two numbers with a slope other than 0"
    return ""


def _values(dataset: Any, name: str) -> list[Any]:
    """An element's values; [] where it is missing or empty."""
    found = dataset.get(name)
    if found is None or found == "":
        return []
    return [found] if isinstance(found, (str, int, float)) else list(found)


def _numbers(dataset: Any, name: str) -> tuple[float, ...]:
    return tuple(float(value) for value in _values(dataset, name))


def _name_of(uid: str) -> str:
    from pydicom.uid import UID

    return UID(uid).name if uid else "no SOP class"
