"""From a downloaded folder to nnU-Net's raw data set. The only part of this package that knows nnU-Net.

All cases are checked before the first is written. A case is written under temporary names and renamed when it is
complete, and dataset.json comes last, so that an interrupted conversion is never mistaken for a complete one; running
it again goes on where it stopped.
"""

import gzip
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.challenges.checks import geometry_fault, read_3d, value_faults
from nnunet_ext.challenges.discover import Case, Found, discover
from nnunet_ext.challenges.facts import SPLITS, Challenge, counted, listed, map_values
from nnunet_ext.challenges.parallel import each
from nnunet_ext.challenges.volumes import (
    Unreadable,
    Volume,
    compress,
    encode,
    is_identity,
    is_orthonormal,
    label_values,
    nifti_files,
    read_header,
    read_volume,
)
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json, write_json

WORK_FOLDER = ".nnunet_ext_convert"
ENDING = ".nii.gz"


@dataclass(frozen=True)
class Job:
    """One case on its way into the data set."""

    challenge: Challenge
    case: Case
    folder: Path
    images: str
    labels: str | None

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


@dataclass(frozen=True)
class Checked:
    """What reading a case has shown."""

    problems: list[str]
    notes: list[str]


def convert(
    challenge: Challenge,
    source: Path,
    *,
    dataset_id: int | None = None,
    name: str | None = None,
    regions: bool = False,
    merge_validation: bool = False,
    processes: int = 1,
) -> str:
    """Converts a download into `nnUNet_raw/DatasetNNN_Name`.

    Args:
        challenge: what is converted.
        source: the downloaded folder, nested as it may be.
        dataset_id, name: of the data set; None are the challenge's defaults.
        regions: write the challenge's nested regions instead of labels.
        merge_validation: official validation cases become training cases and the validation part of
            splits_final.json, instead of going to imagesTs.
        processes: worker processes.

    Returns:
        A summary for people.

    Raises:
        ConfigurationError: anything wrong with the download, the target or the disk; all problems at once.
    """
    if regions and challenge.regions is None:
        raise ConfigurationError(f"{challenge.title} has no nested regions; leave out --regions.")
    found = discover(challenge, source)
    if found.problems:
        raise listed(found.problems, f"{{count}} in {source}, nothing was converted:")
    _check_splits(challenge, found, merge_validation)
    folder = dataset_folder(challenge.dataset_id if dataset_id is None else dataset_id, name or challenge.dataset_name)
    jobs = _jobs(challenge, found, folder, merge_validation)
    facts = _facts(challenge, jobs, regions)
    splits = _splits(found) if merge_validation else None
    _refuse_foreign_files(folder, jobs)
    _refuse_other_descriptions(folder, facts, splits)
    todo = [job for job in jobs if not job.is_complete]
    checked = list(each(check_case, todo, processes=processes, title="Checking"))
    problems = [problem for result in checked for problem in result.problems]
    if problems:
        raise listed(problems, f"{{count}} in {source}, nothing was converted:")
    if todo or not (folder / "dataset.json").is_file():
        with _created_folders(folder, jobs), _faults_told(jobs), _work_folder(folder) as work:
            for _ in each(write_case, [(job, work) for job in todo], processes=processes, title="Converting"):
                pass
            _write_dataset_json(challenge, jobs, facts, work)
    if splits is not None:
        with _faults_told(jobs):
            _write_splits(folder, splits)
    notes = found.notes + [note for result in checked for note in result.notes]
    return _summary(challenge, found, folder, jobs, len(todo), notes, regions, merge_validation)


def dataset_folder(dataset_id: int, name: str) -> Path:
    """`nnUNet_raw/DatasetNNN_Name`, which need not exist.

    Raises:
        ConfigurationError: nnUNet_raw is not set or no folder; bad number or name; the number has another name.
    """
    if not 1 <= dataset_id <= 999:
        raise ConfigurationError(f"Data set numbers go from 1 to 999, found {dataset_id}.")
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigurationError(f"A data set's name has letters, digits, - and _ only, found {name!r}.")
    raw = _raw_folder()
    folder = raw / f"Dataset{dataset_id:03d}_{name}"
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        root = Path(os.environ.get(variable) or raw)
        for other in root.glob(f"Dataset{dataset_id:03d}_*") if root.is_dir() else ():
            if other.name != folder.name:
                raise ConfigurationError(
                    f"Data set number {dataset_id} is taken by {other}. Choose another one with --dataset-id."
                )
    return folder


def _raw_folder() -> Path:
    value = os.environ.get("nnUNet_raw")
    if not value:
        raise ConfigurationError("nnUNet_raw is not set. Run: export nnUNet_raw=/path/to/nnUNet_raw")
    if not Path(value).is_dir():
        raise ConfigurationError(f"nnUNet_raw is {value}, which is not a folder. Create it: mkdir -p {value}")
    return Path(value)


def _check_splits(challenge: Challenge, found: Found, merge_validation: bool) -> None:
    if not found.of("train"):
        raise ConfigurationError(
            f"Found {len(found.cases)} cases but no training case of {challenge.title}, and nnU-Net needs some. "
            f"The download looks like this: {challenge.layout}"
        )
    if not merge_validation:
        return
    validation = found.of("val")
    if not validation:
        raise ConfigurationError("--splits needs official validation cases, and none were found.")
    unlabelled = [case.identifier for case in validation if case.label is None]
    if unlabelled:
        raise ConfigurationError(
            f"--splits needs labels of the validation cases, and {len(unlabelled)} of {len(validation)} have none, "
            f"such as {unlabelled[0]}."
        )


def _jobs(challenge: Challenge, found: Found, folder: Path, merge_validation: bool) -> list[Job]:
    """imagesTs holds the official validation cases, or the test cases where there are no others to hold out."""
    train: tuple[str, str | None] = ("imagesTr", "labelsTr")
    held_out = found.of("val") and not merge_validation
    places: dict[str, tuple[str, str | None]] = {
        "train": train,
        "val": train if merge_validation else ("imagesTs", "labelsTs"),
        "test": ("imagesTest" if held_out else "imagesTs", None),
    }
    return [Job(challenge, case, folder, *places[case.split]) for case in found.cases]


def _refuse_foreign_files(folder: Path, jobs: Sequence[Job]) -> None:
    ours = {path for job in jobs for path in job.targets}
    places = {path.parent for path in ours} | {folder / name for name in ("imagesTr", "labelsTr", "imagesTs")}
    foreign = [path for place in sorted(places) if place.is_dir() for path in nifti_files(place) if path not in ours]
    if foreign:
        raise ConfigurationError(
            f"{folder} exists already and holds {counted(len(foreign), 'file')} that this conversion does not make, "
            f"such as {foreign[0]}. Move it away, or choose another number with --dataset-id."
        )


def check_case(job: Job) -> Checked:
    """Reads all files of a case: readable, 3D, one grid, labels with the challenge's values."""
    result = Checked([], [])
    paths = [path for _, path in sorted(job.case.images.items())]
    images = [image for image in (_check_image(path, result) for path in paths) if image is not None]
    if len(images) < len(paths):
        return result
    for path, image in zip(paths[1:], images[1:], strict=True):
        fault = geometry_fault(image, images[0], "the case's first channel")
        if fault:
            result.problems.append(f"{path}: {fault}")
    if job.label_target is not None and job.case.label is not None:
        _check_label(job, job.case.label, images[0], result)
    if job.challenge.identity_header and is_identity(images[0].affine) and not result.problems:
        known = _repaired(job) is not None
        fate = "the label map's is used for both" if known else "it stays, the true voxel size is not known"
        result.notes.append(f"{job.case.identifier}: the image's header holds no geometry; {fate}")
    return result


def _check_image(path: Path, result: Checked) -> Volume | None:
    """The header of an image that is in order."""
    try:
        image = read_3d(path)
    except Unreadable as error:
        result.problems.append(f"{path}: {error}")
        return None
    if image.voxels.dtype.kind == "f" and not np.isfinite(image.voxels).all():
        result.problems.append(f"{path}: holds voxels that are not finite numbers")
    return replace(image, array=None)


def _check_label(job: Job, path: Path, image: Volume, result: Checked) -> None:
    challenge = job.challenge
    try:
        label = read_3d(path)
    except Unreadable as error:
        result.problems.append(f"{path}: {error}")
        return
    fault = geometry_fault(label, image, "its image")
    if fault and not (challenge.identity_header and _one_is_identity(label, image)):
        result.problems.append(f"{path}: {fault}")
    values, fractions = label_values(label.voxels)
    faults = value_faults(values, fractions, challenge.challenge_values, challenge.value_hints)
    result.problems.extend(f"{path}: {fault}" for fault in faults)
    if label.voxels.dtype.kind == "f" and not fractions:
        result.notes.append(f"{job.case.identifier}: labels were floating point numbers, all of them whole")
    if values == [0] and not fractions:
        result.notes.append(f"{job.case.identifier}: the label map is empty")


def _one_is_identity(label: Volume, image: Volume) -> bool:
    same_shape = label.shape == image.shape
    return same_shape and is_identity(label.affine) != is_identity(image.affine)


def _repaired(job: Job) -> np.ndarray | None:
    """The label map's affine where the image alone has lost its own, else None."""
    if not job.challenge.identity_header or job.label_target is None or job.case.label is None:
        return None
    label = read_header(job.case.label)
    image = read_header(job.case.images[0])
    return label.affine if is_identity(image.affine) and not is_identity(label.affine) else None


@contextmanager
def _faults_told(jobs: Sequence[Job]) -> Iterator[None]:
    """When writing stops early, says what is there and removes what a worker was stopped in the middle of."""
    before = {path for job in jobs for path in job.targets if path.exists()}
    try:
        yield
    except (OSError, Unreadable) as error:
        raise ConfigurationError(f"Writing failed: {error}. {_so_far(jobs, before)}") from error
    except KeyboardInterrupt:
        raise ConfigurationError(f"Interrupted. {_so_far(jobs, before)}") from None


def _so_far(jobs: Sequence[Job], before: Collection[Path]) -> str:
    for job in jobs:
        for path in job.targets if not job.is_complete else ():
            if path not in before:
                path.unlink(missing_ok=True)
    done = sum(job.is_complete for job in jobs)
    return f"{done} of {len(jobs)} cases are complete, there are no others; run the same command again to go on."


def write_case(item: tuple[Job, Path]) -> None:
    """Writes the files of a case into the work folder, then renames them; the label map is the last."""
    job, work = item
    affine = _repaired(job)
    temporary = [work / f"{path.parent.name}.{path.name}" for path in job.targets]
    try:
        for (_, source), target in zip(sorted(job.case.images.items()), temporary, strict=False):
            _write_image(source, target, affine)
        if job.label_target is not None and job.case.label is not None:
            temporary[-1].write_bytes(compress(_converted_label(job, affine)))
        for before, after in zip(temporary, job.targets, strict=True):
            os.replace(before, after)
    except BaseException:
        for path in temporary:
            path.unlink(missing_ok=True)
        raise


def _write_image(source: Path, target: Path, affine: np.ndarray | None) -> None:
    """The file as it is, compressed where it is not; another header only where its own is known to be wrong."""
    if affine is not None:
        image = read_volume(source)
        target.write_bytes(compress(encode(image.voxels, image.header, affine)))
    elif source.name.endswith(".gz"):
        shutil.copyfile(source, target)
    else:
        with source.open("rb") as opened, target.open("wb") as file:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                shutil.copyfileobj(opened, packed, 2**20)


def _converted_label(job: Job, affine: np.ndarray | None) -> bytes:
    assert job.case.label is not None
    label = read_volume(job.case.label)
    array = map_values(label.voxels, job.challenge.from_challenge)
    # The image's header: nnU-Net wants both to agree to the last digit.
    return encode(array, read_header(job.case.images[0]).header, affine)


@contextmanager
def _created_folders(folder: Path, jobs: Sequence[Job]) -> Iterator[None]:
    """Makes the data set's folders; on any error those that are still empty are removed again."""
    made = []
    try:
        for place in [folder, *sorted({path.parent for job in jobs for path in job.targets})]:
            if not place.is_dir():
                place.mkdir()
                made.append(place)
        yield
    except OSError as error:  # of mkdir; what is written into the folders has its own messages
        _remove_empty(made)
        raise ConfigurationError(f"Writing failed: {error}.") from error
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    for place in reversed(folders):
        if not any(place.iterdir()):
            place.rmdir()


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files on the same disk; what a killed conversion left there is removed."""
    work = folder / WORK_FOLDER
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _facts(challenge: Challenge, jobs: Sequence[Job], regions: bool) -> dict[str, Any]:
    """The part of dataset.json that decides what nnU-Net does."""
    facts: dict[str, Any] = {
        "channel_names": {str(number): name for number, name in enumerate(challenge.channels)},
        "labels": dict(challenge.labels),
        "numTraining": sum(job.images == "imagesTr" for job in jobs),
        "file_ending": ENDING,
    }
    if regions and challenge.regions is not None:
        outer_first = {
            name: list(values) if len(values) > 1 else values[0] for name, values in challenge.regions.items()
        }
        facts["labels"] = {"background": 0, **outer_first}
        facts["regions_class_order"] = list(range(1, len(challenge.regions) + 1))
    return facts


def _splits(found: Found) -> list[dict[str, list[str]]]:
    """One fold: official training against official validation cases."""
    return [{split: [case.identifier for case in found.of(split)] for split in ("train", "val")}]


def _splits_files(folder: Path) -> list[Path]:
    """In the data set, and where nnU-Net looks for it."""
    preprocessed = os.environ.get("nnUNet_preprocessed")
    places = [folder, *([Path(preprocessed) / folder.name] if preprocessed else [])]
    return [place / "splits_final.json" for place in places]


def _refuse_other_descriptions(folder: Path, facts: dict[str, Any], splits: list | None) -> None:
    path = folder / "dataset.json"
    if path.is_file():
        there = read_json(path)
        other = [key for key in (*facts, "regions_class_order") if there.get(key) != facts.get(key)]
        if other:
            key = other[0]
            raise ConfigurationError(
                f"{path} exists already with {key} {there.get(key)!r}, not {facts.get(key)!r}. Move the data set away, "
                f"or choose another number with --dataset-id."
            )
    for path in _splits_files(folder) if splits is not None else ():
        if path.is_file() and read_json(path) != splits:
            raise ConfigurationError(f"{path} exists already with other splits. Move it away.")


def _write_dataset_json(challenge: Challenge, jobs: Sequence[Job], facts: dict[str, Any], work: Path) -> None:
    """Writes dataset.json with nnU-Net's own function, where there is none yet."""
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    target = work.parent / "dataset.json"
    if target.is_file():
        return
    reader = challenge.reader
    if reader is None and not all(is_orthonormal(read_header(job.image_targets[0]).affine) for job in jobs):
        reader = "NibabelIOWithReorient"  # SimpleITK refuses such files
    generate_dataset_json(
        str(work),
        channel_names=dict(facts["channel_names"]),  # nnU-Net changes the dicts that it gets
        labels=dict(facts["labels"]),
        num_training_cases=facts["numTraining"],
        file_ending=facts["file_ending"],
        regions_class_order=facts.get("regions_class_order"),
        dataset_name=challenge.title,
        reference=challenge.reference,
        overwrite_image_reader_writer=reader,
        license=f"see {challenge.reference}",
        converted_by="nnunet_ext convert",
    )
    os.replace(work / "dataset.json", target)


def _write_splits(folder: Path, splits: list) -> None:
    for path in _splits_files(folder):
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, splits)


def _summary(
    challenge: Challenge,
    found: Found,
    folder: Path,
    jobs: Sequence[Job],
    written: int,
    notes: Sequence[str],
    regions: bool,
    merge_validation: bool,
) -> str:
    """What was found, where it went, and what to do next."""
    lines = [f"{challenge.title} -> {folder}" + (" (regions)" if regions else "")]
    for split, official in challenge.counts.items():
        cases = found.of(split)
        places = sorted({job.images for job in jobs if job.case.split == split})
        place = f" in {', '.join(places)}" if places else ""
        lines.append(f"  {SPLITS[split]} cases: {len(cases)} found, {official} official{place}")
    lines.append(f"  {counted(written, 'case')} converted now, {len(jobs) - written} were there already")
    lines += [f"  note: {note}" for note in notes]
    if merge_validation:
        if os.environ.get("nnUNet_preprocessed"):
            lines.append("  splits_final.json: fold 0 trains on the training cases, validates on the validation cases")
        else:
            lines.append("  splits_final.json: copy it to nnUNet_preprocessed, which is not set, before training")
    lines.append(f"Next: nnUNetv2_plan_and_preprocess -d {int(folder.name[7:10])} --verify_dataset_integrity")
    return "\n".join(lines)


_NNUNET_MSD = "from nnunetv2.dataset_conversion.convert_MSD_dataset import entry_point; entry_point()"


def convert_msd(challenge: Challenge, source: Path, *, dataset_id: int | None = None, processes: int = 1) -> str:
    """Runs nnU-Net's own MSD converter on one task folder, checks its work, and gives it its name when all is well.

    Args:
        challenge: the task.
        source: `TaskNN_Name`, under that name.
        dataset_id: of the data set; None is the task's number.
        processes: worker processes.

    Returns:
        A summary for people.

    Raises:
        ConfigurationError: anything wrong with the download, the target or the disk; all problems at once.
    """
    found = discover(challenge, source)
    if not (source / "dataset.json").is_file():
        found.problems.append(f"{source} has no dataset.json")
    if not (source / "imagesTs").is_dir():
        found.problems.append(f"{source} has no folder imagesTs, which nnU-Net's converter needs")
    if found.problems:
        raise listed(found.problems, f"{{count}} in {source}, nothing was converted:")
    folder = dataset_folder(challenge.dataset_id if dataset_id is None else dataset_id, challenge.dataset_name)
    jobs = [
        Job(challenge, case, folder, *{"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", None)}[case.split])
        for case in found.cases
    ]
    _refuse_foreign_files(folder, jobs)
    if folder.exists():
        missing = [job.case.identifier for job in jobs if not job.is_complete]
        if missing or not (folder / "dataset.json").is_file():
            raise ConfigurationError(f"{folder} exists already and is not complete. Move it away, then try again.")
        return _summary(challenge, found, folder, jobs, 0, found.notes, False, False)
    try:
        notes = _convert_msd_in_a_work_folder(jobs, source, folder, processes)
    except OSError as error:
        raise ConfigurationError(f"Writing failed: {error}. Nothing of it is left.") from error
    except KeyboardInterrupt:
        raise ConfigurationError("Interrupted. Nothing of it is left.") from None
    return _summary(challenge, found, folder, jobs, len(jobs), found.notes + notes, False, False)


def _convert_msd_in_a_work_folder(jobs: Sequence[Job], source: Path, folder: Path, processes: int) -> list[str]:
    with tempfile.TemporaryDirectory(prefix=f"{WORK_FOLDER}_", dir=folder.parent) as work:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            environment[variable] = work
        number = str(int(folder.name[7:10]))
        command = [sys.executable, "-c", _NNUNET_MSD, "-i", str(source.resolve()), "-overwrite_id", number]
        code, output = _run([*command, "-np", str(processes)], environment)
        if code != 0:
            raise ConfigurationError(f"nnU-Net's converter failed on {source}: {' '.join(output.splitlines()[-1:])}")
        made = Path(work) / folder.name
        checked = list(each(check_case, [_as_made(job, made) for job in jobs], processes=processes, title="Checking"))
        problems = [problem for part in checked for problem in part.problems]
        if problems:
            raise listed([p.replace(str(made), str(source)) for p in problems], f"{{count}} in {source}:")
        os.replace(made, folder)
    return [note for part in checked for note in part.notes]


def _run(command: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """Runs a command in a session of its own, so that its workers can be stopped with it."""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            raise
    return process.returncode, output.strip()


def _as_made(job: Job, made: Path) -> Job:
    """The job with nnU-Net's files as its source, to be checked like any other."""
    there = replace(job, folder=made)
    images = dict(enumerate(there.image_targets))
    return replace(there, case=Case(job.case.identifier, job.case.split, images, there.label_target))
