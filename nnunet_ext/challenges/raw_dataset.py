"""The raw data set that a conversion fills: its name, its descriptions, what may already be there."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_ext.challenges.cases import ENDING, Job, has_changed
from nnunet_ext.challenges.discover import Found
from nnunet_ext.challenges.facts import Challenge, counted
from nnunet_ext.challenges.volumes import is_orthonormal, read_header, volume_files
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json, write_json

WORK_FOLDER = ".nnunet_ext_convert"
LOCK = ".nnunet_ext_convert.lock"
MANIFEST = "nnunet_ext_convert.json"  # of what each case was made


def dataset_folder(dataset_id: int, name: str) -> Path:
    """`nnUNet_raw/DatasetNNN_Name`, which need not exist.

    Raises:
        ConfigurationError: nnUNet_raw is not set, no folder or cannot be written; bad number or name; the number has
            another name.
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
    place = folder if folder.is_dir() else raw
    if not os.access(place, os.W_OK):
        raise ConfigurationError(f"You may not write into {place}.")
    return folder


def _raw_folder() -> Path:
    value = os.environ.get("nnUNet_raw")
    if not value:
        raise ConfigurationError("nnUNet_raw is not set. Run: export nnUNet_raw=/path/to/nnUNet_raw")
    if not Path(value).is_dir():
        raise ConfigurationError(f"nnUNet_raw is {value}, which is not a folder. Create it: mkdir -p {value}")
    return Path(value)


def refuse_foreign_files(folder: Path, jobs: Sequence[Job]) -> None:
    """Files that this conversion does not make would be trained on.

    Raises:
        ConfigurationError: there are some.
    """
    ours = {path for job in jobs for path in job.targets}
    places = {path.parent for path in ours} | {folder / name for name in ("imagesTr", "labelsTr", "imagesTs")}
    foreign = [path for place in sorted(places) if place.is_dir() for path in volume_files(place) if path not in ours]
    if foreign:
        raise ConfigurationError(
            f"{folder} exists already and holds {counted(len(foreign), 'file')} that this conversion does not make, "
            f"such as {foreign[0]}. Move it away, or choose another number with --dataset-id."
        )


def converted_cases(folder: Path) -> dict[str, Any]:
    """By case, `cases.state` of the files that it was made of; a conversion that was killed has listed nothing."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        return dict(read_json(path)["cases"])
    except (ValueError, KeyError, TypeError):
        return {}


def write_manifest(folder: Path, challenge: Challenge, cases: dict[str, Any]) -> None:
    """Lists what each case was made of."""
    write_json(folder / MANIFEST, {"challenge": challenge.name, "cases": dict(sorted(cases.items()))})


def changed_cases(jobs: Sequence[Job], known: dict[str, Any]) -> tuple[list[Job], list[str]]:
    """What is to be converted, and which of it was converted before from files that have changed since."""
    todo, again = [], []
    for job in jobs:
        name = job.case.identifier
        if not job.is_complete:
            todo.append(job)
        elif has_changed(job.sources, known[name]) if name in known else _is_older(job):
            todo.append(job)
            again.append(name)
    return todo, again


def _is_older(job: Job) -> bool:
    """Whether a case that is not listed was made before its files in the download changed last."""
    made = min(path.stat().st_mtime_ns for path in job.targets)
    return any(path.stat().st_mtime_ns > made for path in job.sources)


@contextmanager
def created_folders(folder: Path, jobs: Sequence[Job]) -> Iterator[None]:
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
def work_folder(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files on the same disk, for one conversion at a time; it leaves nothing behind.

    Raises:
        ConfigurationError: another conversion is at work.
    """
    work, lock = folder / WORK_FOLDER, folder / LOCK
    with lock.open("w") as held:
        _lock(held, folder)
        shutil.rmtree(work, ignore_errors=True)  # of a conversion that was killed
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _lock(file: Any, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(f"Another conversion is writing into {folder}. Wait until it has ended.") from None


def dataset_facts(challenge: Challenge, jobs: Sequence[Job], regions: bool) -> dict[str, Any]:
    """The part of dataset.json that decides what nnU-Net does."""
    facts: dict[str, Any] = {
        "channel_names": {str(number): name for number, name in enumerate(challenge.channels)},
        "labels": dict(challenge.labels),
        "numTraining": sum(job.images == "imagesTr" for job in jobs),
        "file_ending": ENDING,
    }
    if regions and challenge.regions is not None:
        # nnU-Net writes the k-th value of regions_class_order into the k-th region, later ones over earlier ones.
        facts["labels"] = {
            "background": 0,
            **{name: list(values) if len(values) > 1 else values[0] for name, values in challenge.regions.items()},
        }
        facts["regions_class_order"] = list(challenge.region_order)
    return facts


def official_splits(found: Found) -> list[dict[str, list[str]]]:
    """One fold: official training against official validation cases."""
    return [{split: [case.identifier for case in found.of(split)] for split in ("train", "val")}]


def _splits_files(folder: Path) -> list[Path]:
    """In the data set, and where nnU-Net looks for it."""
    preprocessed = os.environ.get("nnUNet_preprocessed")
    places = [folder, *([Path(preprocessed) / folder.name] if preprocessed else [])]
    return [place / "splits_final.json" for place in places]


def refuse_other_descriptions(folder: Path, facts: dict[str, Any], splits: list | None) -> None:
    """What describes the data set must be what this conversion would write, but for the number of cases.

    Raises:
        ConfigurationError: it is not.
    """
    path = folder / "dataset.json"
    if path.is_file():
        there = read_json(path)
        keys = [key for key in (*facts, "regions_class_order") if key != "numTraining"]
        other = [key for key in keys if there.get(key) != facts.get(key)]
        if other:
            key = other[0]
            raise ConfigurationError(
                f"{path} exists already with {key} {there.get(key)!r}, not {facts.get(key)!r}. Move the data set away, "
                f"or choose another number with --dataset-id."
            )
    for path in _splits_files(folder) if splits is not None else ():
        if path.is_file() and read_json(path) != splits:
            raise ConfigurationError(f"{path} exists already with other splits. Move it away.")


def is_described(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether dataset.json is there and counts the cases right."""
    path = folder / "dataset.json"
    return path.is_file() and read_json(path).get("numTraining") == facts["numTraining"]


def write_dataset_json(challenge: Challenge, jobs: Sequence[Job], facts: dict[str, Any], work: Path) -> None:
    """Writes dataset.json with nnU-Net's own function; one that is there gets the new number of training cases."""
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    target = work.parent / "dataset.json"
    if target.is_file():
        if not is_described(work.parent, facts):
            write_json(target, {**read_json(target), "numTraining": facts["numTraining"]})
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


def write_splits(folder: Path, splits: list) -> None:
    """Writes splits_final.json wherever it is missing."""
    for path in _splits_files(folder):
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, splits)
