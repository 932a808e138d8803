"""From a downloaded folder to nnU-Net's raw data set.

All cases are checked before the first is written. A case is written under temporary names and renamed when it is
complete, and dataset.json comes last, so that an interrupted conversion is never mistaken for a complete one; running
it again goes on where it stopped, and makes those cases anew whose files in the download have changed.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.challenges.cases import Job, check_case, write_case
from nnunet_ext.challenges.discover import Found, discover
from nnunet_ext.challenges.facts import SPLITS, Challenge, Severity, counted, listed
from nnunet_ext.challenges.parallel import each
from nnunet_ext.challenges.raw_dataset import (
    changed_cases,
    converted_cases,
    created_folders,
    dataset_facts,
    dataset_folder,
    is_described,
    official_splits,
    refuse_foreign_files,
    refuse_other_descriptions,
    work_folder,
    write_dataset_json,
    write_manifest,
    write_splits,
)
from nnunet_ext.challenges.volumes import Unreadable
from nnunet_ext.errors import ConfigurationError


@dataclass(frozen=True)
class Options:
    """What the user may decide.

    Attributes:
        dataset_id, name: of the data set; None are the challenge's defaults.
        regions: write the challenge's regions instead of labels.
        merge_validation: official validation cases become training cases and the validation part of
            splits_final.json, instead of going to imagesTs.
        exclude: identifiers of cases that are left out.
        geometry: what a label map is that lies elsewhere than its image.
        link: images that need no change are links to the download, not copies.
    """

    dataset_id: int | None = None
    name: str | None = None
    regions: bool = False
    merge_validation: bool = False
    exclude: tuple[str, ...] = ()
    geometry: Severity = "error"
    link: bool = False


def convert(challenge: Challenge, source: Path, options: Options = Options(), *, processes: int = 1) -> str:
    """Converts a download into `nnUNet_raw/DatasetNNN_Name`.

    Args:
        challenge: what is converted.
        source: the downloaded folder, nested as it may be.
        options: see there.
        processes: worker processes.

    Returns:
        A summary for people.

    Raises:
        ConfigurationError: anything wrong with the download, the target or the disk; all problems at once.
    """
    if options.regions and challenge.regions is None:
        raise ConfigurationError(f"{challenge.title} has no regions; leave out --regions.")
    number = challenge.dataset_id if options.dataset_id is None else options.dataset_id
    folder = dataset_folder(number, options.name or challenge.dataset_name)
    found = discover(challenge, source, options.exclude)
    if found.problems:
        raise listed(found.problems, f"{{count}} in {source}, nothing was converted:")
    _check_splits(challenge, found, options.merge_validation)
    jobs = _jobs(challenge, found, folder, options)
    facts = dataset_facts(challenge, jobs, options.regions)
    splits = official_splits(found) if options.merge_validation else None
    refuse_foreign_files(folder, jobs)
    refuse_other_descriptions(folder, facts, splits)
    known = converted_cases(folder)
    todo, again = changed_cases(jobs, known)
    checked = list(each(check_case, todo, processes=processes, title="Checking"))
    problems = [problem for result in checked for problem in result.problems]
    if problems:
        raise listed(problems, f"{{count}} in {source}, nothing was converted:")
    if todo or splits is not None or not is_described(folder, facts):
        with created_folders(folder, jobs), _faults_told(jobs), work_folder(folder) as work:
            if todo:
                _write_cases(challenge, folder, todo, known, work, processes)
            write_dataset_json(challenge, jobs, facts, work)
            if splits is not None:
                write_splits(folder, splits)
    notes = found.notes + [note for result in checked for note in result.notes]
    if again:
        notes.insert(0, f"converted again, because their files in the download have changed: {', '.join(again)}")
    return _summary(challenge, found, folder, jobs, len(todo), notes, options)


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


def _jobs(challenge: Challenge, found: Found, folder: Path, options: Options) -> list[Job]:
    """imagesTs holds the official validation cases, or the test cases where there are no others to hold out."""
    train: tuple[str, str | None] = ("imagesTr", "labelsTr")
    held_out = found.of("val") and not options.merge_validation
    places: dict[str, tuple[str, str | None]] = {
        "train": train,
        "val": train if options.merge_validation else ("imagesTs", "labelsTs"),
        "test": ("imagesTest" if held_out else "imagesTs", None),
    }
    rest = (options.geometry, options.link)
    return [Job(challenge, case, folder, *places[case.split], *rest) for case in found.cases]


def _write_cases(
    challenge: Challenge, folder: Path, todo: Sequence[Job], known: dict[str, Any], work: Path, processes: int
) -> None:
    """Writes cases; what is done is listed whatever happens then."""
    written = dict(known)
    try:
        results = each(write_case, [(job, work) for job in todo], processes=processes, title="Converting")
        for job, states in zip(todo, results, strict=True):
            written[job.case.identifier] = states
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            if written != known:
                write_manifest(folder, challenge, written)
        raise
    write_manifest(folder, challenge, written)


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


def _summary(
    challenge: Challenge,
    found: Found,
    folder: Path,
    jobs: Sequence[Job],
    written: int,
    notes: Sequence[str],
    options: Options,
) -> str:
    """What was found, where it went, and what to do next."""
    lines = [f"{challenge.title} -> {folder}" + (" (regions)" if options.regions else "")]
    for split, official in challenge.counts.items():
        cases = found.of(split)
        places = sorted({job.images for job in jobs if job.case.split == split})
        place = f" in {', '.join(places)}" if places else ""
        known = "" if official is None else f", {official} official"
        lines.append(f"  {SPLITS[split]} cases: {len(cases)} found{known}{place}")
    lines.append(f"  {counted(written, 'case')} converted now, {len(jobs) - written} were there already")
    lines += [f"  note: {note}" for note in notes]
    if options.merge_validation:
        if os.environ.get("nnUNet_preprocessed"):
            lines.append("  splits_final.json: fold 0 trains on the training cases, validates on the validation cases")
        else:
            lines.append("  splits_final.json: copy it to nnUNet_preprocessed, which is not set, before training")
    lines.append(f"Next: nnUNetv2_plan_and_preprocess -d {int(folder.name[7:10])} --verify_dataset_integrity")
    return "\n".join(lines)
