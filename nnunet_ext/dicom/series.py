"""The series of a folder: which can be read as volumes, what is wrong with the others, and a name for each."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.dicom.geometry import Geometry, ordered
from nnunet_ext.dicom.slices import Passed, Slice, Unreadable, files_of, printable, read_slice
from nnunet_ext.errors import ConfigurationError

LONGEST = 100  # characters of a case's name


@dataclass(frozen=True)
class Series:
    """One volume: its files in the order of slices along the normal, its grid and what its header says."""

    uid: str
    files: tuple[Path, ...]
    geometry: Geometry
    folder: Path  # in which all files are
    modality: str
    description: str
    number: int | None
    study: str  # UIDs
    frame: str
    unit: str


@dataclass(frozen=True)
class Found:
    """What a folder holds: name -> series that can be read; name of a series or file -> its fault; remarks."""

    series: dict[str, Series]
    faults: dict[str, str]
    notes: list[str]


def find_series(folder: Path) -> Found:
    """The DICOM series in a folder and all below it; names are the same in every run as long as the files are.

    Raises:
        OSError: a folder may not be read.
    """

    def stop(error: OSError) -> None:
        raise error

    groups: dict[str, list[Slice]] = defaultdict(list)
    passed: dict[str, list[Path]] = defaultdict(list)
    faults, series = {}, {}
    unreadable: dict[Path, Path] = {}  # by folder
    for path in files_of(folder, stop):
        read = read_slice(path)
        if isinstance(read, Slice):
            groups[read.series].append(read)
        elif isinstance(read, Passed):
            passed[read.what].append(path)
        elif isinstance(read, Unreadable):
            faults[printable(path.relative_to(folder))] = read.why
            unreadable[path.parent] = path
    for name, slices in _named(folder, groups).items():
        try:
            series[name] = _series_of(slices, unreadable)
        except ConfigurationError as error:
            faults[name] = str(error)
    return Found(series, faults, [_note(what, paths) for what, paths in sorted(passed.items()) if what != "DICOMDIR"])


def _series_of(slices: Sequence[Slice], unreadable: Mapping[Path, Path]) -> Series:
    slices, geometry = ordered(slices)
    first = slices[0]
    for folder in (one.path.parent for one in slices):
        if folder in unreadable:  # nobody would miss the first or the last slice
            raise ConfigurationError(f"{printable(unreadable[folder])} cannot be read, and may be one of its slices")
    return Series(
        first.series,
        tuple(one.path for one in slices),
        geometry,
        _folder_of(slices),
        first.modality,
        first.description,
        first.number,
        first.study,
        first.frame,
        first.unit,
    )


def _folder_of(slices: Iterable[Slice]) -> Path:
    return Path(os.path.commonpath([one.path.parent for one in slices]))


def _note(what: str, paths: Sequence[Path]) -> str:
    names = ", ".join(printable(Path(path.name)) for path in paths[:3])
    return f"{len(paths)} passed over, {what}: {names}{', ...' if len(paths) > 3 else ''}"


def _named(folder: Path, groups: dict[str, list[Slice]]) -> dict[str, list[Slice]]:
    """Name -> slices, sorted: the folder's name where it holds one series, else with number and description.

    Series with faults count, so that names stay when these are put right.
    """
    folders = {uid: _folder_of(slices) for uid, slices in groups.items()}
    shared = Counter(folders.values())
    names = {}
    for uid, slices in groups.items():
        parts = list(folders[uid].relative_to(folder).parts) or [folder.resolve().name]
        if shared[folders[uid]] > 1:
            parts += [str(slices[0].number or ""), slices[0].description]
        names[uid] = _safe("_".join(filter(None, parts)))
    taken = Counter(name.casefold() for name in names.values())  # some file systems do not tell A from a
    for uid, name in names.items():
        if taken[name.casefold()] > 1:
            names[uid] = f"{name}_{hashlib.sha256(uid.encode()).hexdigest()[:8]}"
    return {name: groups[uid] for uid, name in sorted(names.items(), key=lambda pair: pair[1])}


def _safe(name: str) -> str:
    """Letters, digits, - and _ only."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_-")[:LONGEST] or "series"
