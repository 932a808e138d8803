"""From the plan of a submission to its archive: every prediction checked, then all packed."""

import zipfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnunet_ext.challenges.checks import expected_values, read_label_map
from nnunet_ext.challenges.facts import Challenge
from nnunet_ext.challenges.parallel import each
from nnunet_ext.challenges.volumes import Unreadable, Volume, compress, encode, read_header, shape_text
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_atomically


@dataclass(frozen=True)
class Entry:
    """One file of the archive. Without a prediction it is background everywhere."""

    challenge: Challenge
    identifier: str
    prediction: Path | None
    reference: Path
    name: str
    values: Literal["nnunet", "challenge"] = "nnunet"


@dataclass(frozen=True)
class Checked:
    """What reading a prediction has shown; `found` are its values."""

    problems: list[str]
    notes: list[str]
    found: list[int]


def check_entry(entry: Entry) -> Checked:
    """Reads a prediction: readable, 3D, values, grid of its image, not empty."""
    result = Checked([], [], [])
    try:
        reference = grid_of(entry.reference)
    except Unreadable as error:
        result.problems.append(f"{entry.reference}: {error}")
        return result
    if entry.prediction is None:
        return result
    name = entry.prediction.name
    expected = expected_values(entry.challenge, entry.values, "use --values challenge")
    label_map = read_label_map(entry.prediction, expected, reference, f"its image {entry.reference.name}")
    result.found.extend(label_map.values)
    result.problems.extend(f"{name}: {fault}" for fault in label_map.faults)
    result.notes.extend(f"{entry.identifier}: {note}" for note in label_map.notes)
    if not label_map.faults:
        _check_content(entry, label_map.values, result)
    return result


def grid_of(path: Path) -> Volume:
    """Header of a reference image; a 4D file has its channels in one.

    Raises:
        Unreadable: it cannot be read, or has another number of dimensions.
    """
    header = read_header(path)
    if len(header.shape) not in (3, 4):
        raise Unreadable(f"is {len(header.shape)}D ({shape_text(header.shape)}), expected 3D")
    return replace(header, shape=header.shape[:3])


def _check_content(entry: Entry, values: Sequence[int], result: Checked) -> None:
    submission = entry.challenge.submission
    back = entry.challenge.to_challenge if entry.values == "nnunet" else {}
    submitted = {back.get(value, value) for value in values}
    if submitted <= {0}:
        text = f"{entry.identifier}: the prediction is empty"
        if submission.empty == "error":
            text += "; --empty warn accepts that"
        (result.problems if submission.empty == "error" else result.notes).append(text)
        return
    result.notes.extend(
        f"{entry.identifier}: {why}" for value, why in submission.expects.items() if value not in submitted
    )


def values_never_seen(entries: Sequence[Entry], checked: Sequence[Checked]) -> list[str]:
    """A structure that is in no prediction of a challenge is worth a look."""
    notes = []
    seen: dict[str, set[int]] = {}
    by_name = {entry.challenge.name: entry for entry in entries if entry.prediction is not None}
    for entry, result in zip(entries, checked, strict=True):
        seen.setdefault(entry.challenge.name, set()).update(result.found)
    for name, entry in by_name.items():
        to = entry.challenge.to_challenge if entry.values == "challenge" else {}
        values = {label: to.get(value, value) for label, value in entry.challenge.labels.items()}
        absent = [f"{label} ({value})" for label, value in values.items() if value not in seen[name]]
        if absent:
            notes.append(f"{entry.challenge.title}: in no prediction are {', '.join(absent)}")
    return notes


def write_archive(entries: Sequence[Entry], output: Path, processes: int) -> None:
    """The same bytes for the same predictions: fixed order, times, permissions and compression."""

    def write(file: Any) -> None:
        contents = each(submitted_file, entries, processes=processes, title="Packing")
        with closing(contents), zipfile.ZipFile(file, "w") as archive:
            for entry, content in zip(entries, contents, strict=True):
                member = zipfile.ZipInfo(entry.name, date_time=(1980, 1, 1, 0, 0, 0))
                member.create_system = 3  # Unix, on whatever system this runs
                member.external_attr = 0o644 << 16
                member.compress_type = zipfile.ZIP_STORED if entry.name.endswith(".gz") else zipfile.ZIP_DEFLATED
                archive.writestr(member, content)

    try:
        write_atomically(output, write)
    except (OSError, Unreadable) as error:
        raise ConfigurationError(f"Writing {output} failed: {error}. No file is left of it.") from error


def submitted_file(entry: Entry) -> bytes:
    """The file of a case: uint8, the challenge's values, the reference image's geometry.

    Raises:
        Unreadable: it is no longer what was checked.
    """
    reference = grid_of(entry.reference)
    array = np.zeros(reference.shape, np.uint8)
    if entry.prediction is not None:
        label_map = read_label_map(entry.prediction, expected_values(entry.challenge, entry.values), reference)
        if label_map.volume is None:
            raise Unreadable(f"{entry.prediction} has changed since it was checked: {'; '.join(label_map.faults)}")
        array = label_map.volume.voxels
    data = encode(array, reference.header, reference.affine if reference.header is None else None)
    return compress(data) if entry.name.endswith(".gz") else data
