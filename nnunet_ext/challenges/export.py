"""From predictions to the archive that a challenge accepts. Everything is checked before anything is written."""

import hashlib
import re
import zipfile
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnunet_ext.challenges.checks import geometry_fault, read_3d, value_faults
from nnunet_ext.challenges.discover import discover
from nnunet_ext.challenges.facts import SPLITS, Challenge, Severity, counted, listed, map_values
from nnunet_ext.challenges.parallel import each
from nnunet_ext.challenges.volumes import (
    Unreadable,
    Volume,
    compress,
    encode,
    label_values,
    nifti_files,
    read_header,
    shape_text,
    stem_and_ending,
)
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_atomically

Id = str | int


@dataclass(frozen=True)
class Options:
    """What the user may decide; None is the challenge's own default.

    Attributes:
        split: "val" or "test", where the challenge takes both.
        missing: what a case without prediction is.
        empty: what a prediction without any foreground is.
        subset: the cases in the images folder are enough, whatever the official set is.
        values: whether predictions have nnU-Net's values, or the challenge's already.
        name, folder: template of the submitted names, from `{id}`, and folder in the archive.
    """

    split: str | None = None
    missing: Severity | None = None
    empty: Severity | None = None
    subset: bool = False
    values: Literal["nnunet", "challenge"] = "nnunet"
    name: str | None = None
    folder: str | None = None

    def applied(self, challenge: Challenge) -> Challenge:
        """The challenge with these options as its facts.

        Raises:
            ConfigurationError: unknown split, bad template.
        """
        submission = challenge.submission
        splits = submission.splits if self.split is None else (self.split,)
        if not set(splits) <= set(submission.splits):
            raise ConfigurationError(f"{challenge.title} takes {' or '.join(submission.splits)}, not {self.split}.")
        folder = submission.folder if self.folder is None else self.folder.strip("/") and self.folder.strip("/") + "/"
        name = submission.name if self.name is None else self.name
        try:
            one, two = (name.format(id=value) for value in ((1, 2) if submission.numeric else ("a", "b")))
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigurationError(f"The template {name!r} cannot be filled: {error!r}. It needs {{id}}.") from error
        if one == two:
            raise ConfigurationError(f"The template {name!r} gives every case the same name. It needs {{id}}.")
        submission = replace(
            submission,
            splits=splits,
            missing=self.missing or submission.missing,
            empty=self.empty or submission.empty,
            name=name,
            folder=folder,
        )
        return replace(challenge, submission=submission)


@dataclass(frozen=True)
class Entry:
    """One file of the archive. Without a prediction it is background everywhere."""

    challenge: Challenge
    identifier: str
    prediction: Path | None
    reference: Path
    name: str
    values: Literal["nnunet", "challenge"] = "nnunet"


@dataclass
class Plan:
    """What goes into the archive, and what stands against it."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self, severity: Severity, text: str) -> None:
        """A problem or a note."""
        (self.problems if severity == "error" else self.notes).append(text)

    def add(self, other: "Plan") -> None:
        """Takes over another plan."""
        self.entries += other.entries
        self.problems += other.problems
        self.notes += other.notes


@dataclass(frozen=True)
class Checked:
    """What reading a prediction has shown; `found` are its values."""

    problems: list[str]
    notes: list[str]
    found: list[int]


def export(
    challenge: Challenge,
    predictions: Path,
    images: Path,
    output: Path,
    options: Options = Options(),
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    processes: int = 1,
) -> str:
    """Checks a folder of predictions and packs them as the challenge wants them.

    Args:
        challenge: whose rules hold.
        predictions: folder written by nnUNetv2_predict.
        images: nnU-Net's imagesTs or the download: gives the cases and their geometry.
        output: the archive.
        options: where the rules are not known for sure.
        overwrite: replace an existing archive.
        dry_run: check and report, write nothing.
        processes: worker processes.

    Returns:
        A report for people.

    Raises:
        ConfigurationError: every problem at once; no file is written then.
    """
    _check_output(output, overwrite or dry_run)
    challenge = options.applied(challenge)
    plan = plan_folder(challenge, predictions, images, options)
    return _finish(challenge, plan, output, dry_run, processes)


def export_msd(
    challenges: Sequence[Challenge],
    predictions: Path,
    images: Path,
    output: Path,
    options: Options = Options(),
    *,
    fill_missing_tasks: bool = False,
    left_out: Collection[str] = (),
    overwrite: bool = False,
    dry_run: bool = False,
    processes: int = 1,
) -> str:
    """The same for the ten tasks of the decathlon.

    Args:
        challenges: the tasks.
        predictions, images: folders that hold a folder per task, named as in the decathlon or as nnU-Net's data set.
        output: the archive.
        options: where the rules are not known for sure. With `subset`, tasks may be absent.
        fill_missing_tasks: a task without predictions is submitted as background everywhere.
        left_out: identifiers of test cases that are not submitted.
        overwrite, dry_run, processes: as for `export`.

    Returns:
        A report for people.

    Raises:
        ConfigurationError: every problem at once; no file is written then.
    """
    _check_output(output, overwrite or dry_run)
    plan = Plan()
    for task in challenges:
        challenge = options.applied(task)
        ours, theirs = (_task_folder(root, challenge) for root in (predictions, images))
        name = challenge.submission.folder.rstrip("/")
        if ours is None and options.subset and not fill_missing_tasks:
            plan.notes.append(f"{name}: no predictions, left out")
        elif theirs is None:
            plan.problems.append(f"{name}: no folder of this name in {images}")
        elif ours is None and not fill_missing_tasks:
            plan.problems.append(
                f"{name}: no folder of this name in {predictions}; the evaluation stops without it "
                f"(--fill-missing-tasks submits background)"
            )
        else:
            images_ts = theirs / "imagesTs" if (theirs / "imagesTs").is_dir() else theirs
            plan.add(plan_folder(challenge, ours, images_ts, options, left_out))
    if not plan.entries and not plan.problems:
        plan.problems.append(f"{predictions} holds no task folder")
    return _finish(challenges[0], plan, output, dry_run, processes)


def _task_folder(root: Path, challenge: Challenge) -> Path | None:
    name = challenge.submission.folder.rstrip("/")
    number, title = challenge.dataset_id, challenge.dataset_name
    candidates = [root / name, root / f"Dataset{number:03d}_{title}", *sorted(root.glob(f"Dataset*_{title}"))]
    return next((path for path in candidates if path.is_dir()), None)


def _check_output(output: Path, may_exist: bool) -> None:
    if output.suffix != ".zip":
        raise ConfigurationError(f"The archive must end in .zip, found {output.name!r}.")
    if output.exists() and not may_exist:
        raise ConfigurationError(f"{output} exists already; --overwrite replaces it.")
    if not output.resolve().parent.is_dir():
        raise ConfigurationError(f"The folder {output.resolve().parent} does not exist.")


def plan_folder(
    challenge: Challenge, predictions: Path | None, images: Path, options: Options, left_out: Collection[str] = ()
) -> Plan:
    """Which prediction becomes which file; without a predictions folder every case is background."""
    plan = Plan()
    submission, split = challenge.submission, challenge.submission.splits[0]
    references = _references(challenge, images, split, plan)
    wanted = {key: item for key, item in references.items() if item[0] not in left_out}
    if not options.subset:
        _check_official(challenge, references, split, plan)
    found = _predictions(challenge, predictions, plan) if predictions is not None else None
    for key, (identifier, reference) in sorted(wanted.items()):
        prediction = None if found is None else found.get(key)
        if prediction is None and found is not None:
            plan.report(submission.missing, f"{identifier}: no prediction of this case in {predictions}")
            continue
        name = submission.folder + submission.name.format(id=key) + submission.ending
        plan.entries.append(Entry(challenge, identifier, prediction, reference, name, options.values))
    dropped = 0
    for key, path in sorted((found or {}).items()):
        if key in references and key not in wanted:
            dropped += 1
        elif key not in references:
            plan.problems.append(f"{path.name}: no image of such a case in {images}")
    if dropped:
        plan.notes.append(f"{submission.folder} without {counted(dropped, 'case')} that the organisers leave out")
    return plan


def _predictions(challenge: Challenge, folder: Path, plan: Plan) -> dict[Id, Path]:
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder.")
    paths = nifti_files(folder)
    if not paths:
        plan.problems.append(f"{folder} holds no .nii.gz or .nii file")
    found: dict[Id, Path] = {}
    for path in paths:
        stem = stem_and_ending(path)[0]
        key = challenge.submission.id_of(stem)
        inner = re.fullmatch(r"(.+)_\d{4}", stem)
        if inner and challenge.submission.id_of(inner[1]) is not None:
            plan.problems.append(f"{path.name}: is named like an image (channel {stem[-4:]}), not like a prediction")
        elif key is None:
            example = challenge.known.get(challenge.submission.splits[0], ("",))[0]
            like = f", such as {example}.nii.gz" if example else ""
            what = SPLITS[challenge.submission.splits[0]]
            plan.problems.append(f"{path.name}: not the name of a {what} case of {challenge.title}{like}")
        elif key in found:
            plan.problems.append(f"{path.name}: the same case as {found[key].name}")
        else:
            found[key] = path
    return found


def _references(challenge: Challenge, images: Path, split: str, plan: Plan) -> dict[Id, tuple[str, Path]]:
    """Identifier and first image of each case by id, from nnU-Net's flat folder or from the download."""
    if not images.is_dir():
        raise ConfigurationError(f"{images} is not a folder.")
    submission = challenge.submission
    pairs: list[tuple[str, Path]] = []
    for path in nifti_files(images):
        stem = stem_and_ending(path)[0]
        inner = re.fullmatch(r"(.+)_(\d{4})", stem)
        if inner and submission.id_of(inner[1]) is not None:
            pairs += [(inner[1], path)] if inner[2] == "0000" else []
        else:
            pairs.append((stem, path))
    if not pairs:
        cases = discover(challenge, images).of(split)
        pairs = [(case.identifier, case.images[0]) for case in cases if 0 in case.images]
    references: dict[Id, tuple[str, Path]] = {}
    others = 0
    for identifier, path in pairs:
        key = submission.id_of(identifier)
        if key is None:
            others += 1
        elif key in references:
            plan.problems.append(f"{identifier}: two images of this case, {references[key][1]} and {path}")
        else:
            references[key] = (identifier, path)
    if others:
        plan.notes.append(f"{others} images in {images} are not of {SPLITS[split]} cases of {challenge.title}")
    if not references:
        raise ConfigurationError(f"{images} holds no image of a {SPLITS[split]} case of {challenge.title}.")
    return references


def _check_official(challenge: Challenge, references: dict[Id, tuple[str, Path]], split: str, plan: Plan) -> None:
    severity, official = challenge.submission.missing, challenge.counts[split]
    known = challenge.known.get(split)
    hint = "" if severity == "warn" else "; --subset accepts what is there"
    if known is None:
        if len(references) != official:
            text = f"{challenge.title}: {len(references)} {SPLITS[split]} images, the official set has {official}{hint}"
            plan.report(severity if len(references) < official else "error", text)
        return
    ids = {challenge.submission.id_of(identifier): identifier for identifier in known}
    absent = [identifier for key, identifier in ids.items() if key not in references]
    if absent:
        names = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        plan.report(severity, f"no image of {len(absent)} of {official} {SPLITS[split]} cases: {names}{hint}")
    for key, (identifier, _) in references.items():
        if key not in ids:
            plan.problems.append(f"{identifier}: not in the official {SPLITS[split]} set{hint}")


def check_entry(entry: Entry) -> Checked:
    """Reads a prediction: readable, 3D, values, grid of its image, not empty."""
    result = Checked([], [], [])
    try:
        reference = _grid(entry.reference)
    except Unreadable as error:
        result.problems.append(f"{entry.reference}: {error}")
        return result
    if entry.prediction is None:
        return result
    name = entry.prediction.name
    try:
        prediction = read_3d(entry.prediction)
    except Unreadable as error:
        result.problems.append(f"{name}: {error}")
        return result
    values, fractions = label_values(prediction.voxels)
    result.found.extend(values)
    faults = [*_value_faults(entry, values, fractions)]
    fault = geometry_fault(prediction, reference, f"its image {entry.reference.name}")
    result.problems.extend(f"{name}: {text}" for text in (*faults, *([fault] if fault else [])))
    if not faults:
        _check_content(entry, values, result)
    return result


def _grid(path: Path) -> Volume:
    """Header of a reference image; a 4D file has its channels in one."""
    header = read_header(path)
    if len(header.shape) not in (3, 4):
        raise Unreadable(f"is {len(header.shape)}D ({shape_text(header.shape)}), expected 3D")
    return replace(header, shape=header.shape[:3])


def _value_faults(entry: Entry, values: Sequence[int], fractions: Sequence[float]) -> list[str]:
    challenge = entry.challenge
    if entry.values == "challenge":
        return [*value_faults(values, fractions, challenge.challenge_values, challenge.value_hints)]
    only_theirs = set(challenge.challenge_values) - set(challenge.nnunet_values)
    only_ours = set(challenge.nnunet_values) - set(challenge.challenge_values)
    if only_theirs & set(values):
        theirs, ours = (", ".join(map(str, sorted(found & set(values)))) for found in (only_theirs, only_ours))
        if ours:
            return [f"holds {ours} of nnU-Net's values and {theirs} of the challenge's: converted in part"]
        return [f"holds {theirs}, so it has the challenge's values already; if all files do, use --values challenge"]
    return [*value_faults(values, fractions, challenge.nnunet_values, {})]


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


def _finish(challenge: Challenge, plan: Plan, output: Path, dry_run: bool, processes: int) -> str:
    checked = list(each(check_entry, plan.entries, processes=processes, title="Checking"))
    for result in checked:
        plan.problems += result.problems
        plan.notes += result.notes
    if plan.problems:
        raise listed(plan.problems, "{count}, no archive was written:")
    plan.notes += _values_never_seen(plan.entries, checked)
    entries = sorted(plan.entries, key=lambda entry: entry.name)
    lines = [f"{challenge.title.split(' Task')[0]}: {counted(len(entries), 'file')}"]
    lines += [f"  note: {note}" for note in plan.notes]
    if dry_run:
        lines += [f"  {entry.name} <- {entry.prediction or 'background'}" for entry in entries]
        return "\n".join([*lines, f"Nothing was written; {output} would be."])
    _write_archive(entries, output, processes)
    lines.append(f"  {output}: {output.stat().st_size} bytes, sha256 {_sha256(output)}")
    return "\n".join([*lines, challenge.submission.upload])


def _values_never_seen(entries: Sequence[Entry], checked: Sequence[Checked]) -> list[str]:
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


def _write_archive(entries: Sequence[Entry], output: Path, processes: int) -> None:
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
    """The file of a case: uint8, the challenge's values, the reference image's geometry."""
    reference = _grid(entry.reference)
    if entry.prediction is None:
        array = np.zeros(reference.shape, np.uint8)
    else:
        back = entry.challenge.to_challenge if entry.values == "nnunet" else {}
        array = map_values(read_3d(entry.prediction).voxels, back)
    data = encode(array, reference.header)
    return compress(data) if entry.name.endswith(".gz") else data


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
