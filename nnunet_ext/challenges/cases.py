"""One case on its way from the download into nnU-Net's raw data set: checked, then written."""

import gzip
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.challenges.checks import Values, geometry_fault, read_label_map, read_with_dimensions
from nnunet_ext.challenges.discover import Case
from nnunet_ext.challenges.facts import Challenge, Severity
from nnunet_ext.challenges.volumes import (
    Unreadable,
    Volume,
    compress,
    encode,
    is_identity,
    is_plain_nifti,
    read_header,
    read_volume,
)
from nnunet_ext.files import sha256_of

ENDING = ".nii.gz"


@dataclass(frozen=True)
class Job:
    """A case and where it goes.

    Attributes:
        images, labels: folders in `folder`; no labels are written where there are none or None is given.
        geometry: what a label map is that lies elsewhere than its image.
        link: images that need no change are links to the download.
    """

    challenge: Challenge
    case: Case
    folder: Path
    images: str
    labels: str | None
    geometry: Severity = "error"
    link: bool = False

    @property
    def image_targets(self) -> list[Path]:
        """One file per channel."""
        names = [f"{self.case.identifier}_{channel:04d}{ENDING}" for channel in range(len(self.challenge.channels))]
        return [self.folder / self.images / name for name in names]

    @property
    def label_target(self) -> Path | None:
        """The label map's file, where the case gets one."""
        if self.labels is None or self.case.label is None:
            return None
        return self.folder / self.labels / f"{self.case.identifier}{ENDING}"

    @property
    def targets(self) -> list[Path]:
        """All files of the case."""
        return [*self.image_targets, *([self.label_target] if self.label_target else [])]

    @property
    def is_complete(self) -> bool:
        """Files get their names when they are complete."""
        return all(path.is_file() for path in self.targets)

    @property
    def sources(self) -> list[Path]:
        """The files of the download that the case is made of, images first."""
        images = [path for _, path in sorted(self.case.images.items())]
        return [*images, *([self.case.label] if self.label_target and self.case.label else [])]


@dataclass(frozen=True)
class Checked:
    """What reading a case has shown."""

    problems: list[str]
    notes: list[str]


def check_case(job: Job) -> Checked:
    """Reads all files of a case: readable, 3D, one grid, labels with the challenge's values."""
    result = Checked([], [])
    paths = [path for _, path in sorted(job.case.images.items())]
    images = [image for image in (_check_image(job, path, result) for path in paths) if image is not None]
    if len(images) < len(paths):
        return result
    for path, image in zip(paths[1:], images[1:], strict=True):
        fault = geometry_fault(image, images[0], "the case's first channel")
        if fault:
            result.problems.append(f"{path}: {fault}")
    if job.label_target is not None and job.case.label is not None:
        label = read_label_map(job.case.label, _values(job), images[0], turn=True, place=_place(job, images[0]))
        result.problems.extend(f"{job.case.label}: {fault}" for fault in label.faults)
        result.notes.extend(f"{job.case.identifier}: {note}" for note in label.notes)
        if label.values == [0] and not label.faults:
            result.notes.append(f"{job.case.identifier}: the label map is empty")
    if job.challenge.identity_header and is_identity(images[0].affine) and not result.problems:
        known = _repaired(job) is not None
        fate = "the label map's is used for both" if known else _what_is_left(images[0])
        result.notes.append(f"{job.case.identifier}: the image's header holds no geometry; {fate}")
    return result


def _values(job: Job) -> Values:
    challenge = job.challenge
    return Values(challenge.challenge_values, challenge.from_challenge, challenge.value_hints)


def _place(job: Job, image: Volume) -> Severity:
    """What a label map at another place is: no fault where one of both headers is known to have lost its geometry."""
    if job.geometry == "warn" or not job.challenge.identity_header or job.case.label is None:
        return job.geometry
    try:
        label = read_header(job.case.label)
    except Unreadable:
        return "error"
    return "error" if is_identity(label.affine) == is_identity(image.affine) else "warn"


def _what_is_left(image: Volume) -> str:
    if max(abs(step - 1) for step in image.spacing) > 1e-3:
        return "its voxel size stays, its place is not known"
    return "it stays, the true voxel size is not known"


def _check_image(job: Job, path: Path, result: Checked) -> Volume | None:
    """The header of an image that is in order; of its channels' grid where all are in one file."""
    channels = len(job.challenge.channels)
    try:
        image = read_with_dimensions(path, (4,) if job.challenge.stacked else (3,), scaled=False)
    except Unreadable as error:
        result.problems.append(f"{path}: {error}")
        return None
    if job.challenge.stacked and image.shape[3] != channels:
        result.problems.append(f"{path}: holds {image.shape[3]} channels, expected {channels}")
        return None
    if image.voxels.dtype.kind == "f" and not np.isfinite(image.voxels).all():
        result.problems.append(f"{path}: holds voxels that are not finite numbers")
    return replace(image, array=None, shape=image.shape[:3])


def _repaired(job: Job) -> np.ndarray | None:
    """The label map's affine where the image alone has lost its own, else None."""
    if not job.challenge.identity_header or job.label_target is None or job.case.label is None:
        return None
    label = read_header(job.case.label)
    image = read_header(job.case.images[0])
    return label.affine if is_identity(image.affine) and not is_identity(label.affine) else None


def write_case(item: tuple[Job, Path]) -> dict[str, Any]:
    """Writes the files of a case into the work folder, then renames them; the label map is the last.

    Returns:
        `state` of the files that it was made of, for the list of what was converted.
    """
    job, work = item
    states = {_short(path): state(path) for path in job.sources}
    affine = _repaired(job)
    temporary = [work / f"{path.parent.name}.{path.name}" for path in job.targets]
    images = temporary[: len(job.image_targets)]
    try:
        if job.challenge.stacked:
            _write_channels(job.case.images[0], images)
        else:
            for (_, source), target in zip(sorted(job.case.images.items()), images, strict=True):
                _write_image(source, target, affine, job.link)
        if job.label_target is not None:
            temporary[-1].write_bytes(compress(_converted_label(job, affine)))
        for before, after in zip(temporary, job.targets, strict=True):
            os.replace(before, after)
    except BaseException:
        for path in temporary:
            path.unlink(missing_ok=True)
        raise
    return states


def _short(path: Path) -> str:
    """A file's name that is the same wherever the download lies."""
    return f"{path.parent.name}/{path.name}"


def state(path: Path) -> dict[str, Any]:
    """Size, time of the last change and SHA-256 of a file."""
    facts = path.stat()
    return {"size": facts.st_size, "changed": facts.st_mtime_ns, "sha256": sha256_of(path)}


def has_changed(paths: Sequence[Path], known: dict[str, Any]) -> bool:
    """Whether files are others than those of whom `state` is known; only what looks new is read."""
    if {_short(path) for path in paths} != set(known):
        return True
    for path in paths:
        facts, before = path.stat(), known[_short(path)]
        if (facts.st_size, facts.st_mtime_ns) == (before["size"], before["changed"]):
            continue
        if facts.st_size != before["size"] or state(path)["sha256"] != before["sha256"]:
            return True
    return False


def _write_image(source: Path, target: Path, affine: np.ndarray | None, link: bool) -> None:
    """The file as it is, compressed where it is not; new only where nnU-Net's readers would not take it as it is."""
    plain, packed = is_plain_nifti(source) if affine is None else (False, False)
    if not plain:
        image = read_volume(source)
        given = image.affine if affine is None and image.header is None else affine
        target.write_bytes(compress(encode(image.voxels, image.header, given)))
    elif packed and link:
        _link(source, target)
    elif packed:
        shutil.copyfile(source, target)
    else:
        with source.open("rb") as opened, target.open("wb") as file:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as gzipped:
                shutil.copyfileobj(opened, gzipped, 2**20)


def _link(source: Path, target: Path) -> None:
    """A hard link, which outlives the download; a symbolic one where both lie on different disks."""
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        os.symlink(source, target)


def _write_channels(source: Path, targets: Sequence[Path]) -> None:
    image = read_volume(source)
    for channel, target in enumerate(targets):
        target.write_bytes(compress(encode(np.asfortranarray(image.voxels[..., channel]), image.header)))


def _converted_label(job: Job, affine: np.ndarray | None) -> bytes:
    assert job.case.label is not None
    image = read_header(job.case.images[0])
    grid = replace(image, shape=image.shape[:3])
    label = read_label_map(job.case.label, _values(job), grid, turn=True, place=_place(job, grid))
    if label.volume is None:
        raise Unreadable(f"{job.case.label} has changed since it was checked: {'; '.join(label.faults)}")
    # The image's header: nnU-Net wants both to agree to the last digit.
    return encode(label.volume.voxels, image.header, image.affine if image.header is None else affine)
