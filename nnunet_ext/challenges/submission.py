"""Which prediction becomes which file of a submission, and what stands against it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from nnunet_ext.challenges.archive import Entry
from nnunet_ext.challenges.discover import discover
from nnunet_ext.challenges.facts import SPLITS, Challenge, Severity, counted
from nnunet_ext.challenges.volumes import stem_and_ending, volume_files
from nnunet_ext.errors import ConfigurationError

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
        fill_missing_tasks: a task without predictions is submitted as background everywhere.
        include_left_out: submit also the cases that the organisers ask to leave out.
    """

    split: str | None = None
    missing: Severity | None = None
    empty: Severity | None = None
    subset: bool = False
    values: Literal["nnunet", "challenge"] = "nnunet"
    name: str | None = None
    folder: str | None = None
    fill_missing_tasks: bool = False
    include_left_out: bool = False

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


def plan_tasks(tasks: Sequence[Challenge], predictions: Path, images: Path, options: Options) -> Plan:
    """A folder per task; every folder with predictions must be one of them."""
    plan = Plan()
    for folder in (predictions, images):
        if not folder.is_dir():
            raise ConfigurationError(f"{folder} is not a folder.")
    used = set()
    for task in tasks:
        ours, theirs = _task_folders(predictions, task), _task_folders(images, task)
        name = task.submission.folder.rstrip("/")
        used |= set(ours)
        if len(ours) > 1:
            plan.problems.append(f"{name}: {' and '.join(map(str, ours))} are both of this task")
        elif not ours and options.subset and not options.fill_missing_tasks:
            plan.notes.append(f"{name}: no predictions, left out")
        elif not ours and not options.fill_missing_tasks:
            plan.problems.append(
                f"{name}: no folder of this name in {predictions}, and the evaluation stops without it (--subset "
                f"leaves the task out, --fill-missing-tasks submits background)"
            )
        elif not theirs:
            plan.problems.append(f"{name}: no folder of this name in {images}")
        else:
            images_ts = theirs[0] / "imagesTs" if (theirs[0] / "imagesTs").is_dir() else theirs[0]
            plan.add(plan_folder(task, ours[0] if ours else None, images_ts, options))
    for folder in sorted(path for path in predictions.iterdir() if path.is_dir() and path not in used):
        if volume_files(folder):
            plan.problems.append(f"{folder} holds predictions, but its name is that of no task")
    if not plan.entries and not plan.problems:
        plan.problems.append(f"{predictions} holds no task folder")
    return plan


def _task_folders(root: Path, task: Challenge) -> list[Path]:
    """The folders of a task in `root`, or `root` itself where it is one."""
    names = {task.submission.folder.rstrip("/").lower(), f"dataset{task.dataset_id:03d}_{task.dataset_name}".lower()}
    own_number = re.compile(rf"dataset\d{{3}}_{re.escape(task.dataset_name.lower())}")

    def is_one(path: Path) -> bool:
        return path.name.lower() in names or own_number.fullmatch(path.name.lower()) is not None

    found = sorted(path for path in root.iterdir() if path.is_dir() and is_one(path))
    return found or ([root] if is_one(root.resolve()) else [])


def plan_folder(challenge: Challenge, predictions: Path | None, images: Path, options: Options) -> Plan:
    """Which prediction becomes which file; without a predictions folder every case is background."""
    plan = Plan()
    submission, split = challenge.submission, challenge.submission.splits[0]
    references = _references(challenge, images, split, plan)
    left_out = () if options.include_left_out else submission.left_out
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
    paths = volume_files(folder)
    if not paths:
        plan.problems.append(f"{folder} holds no .nii.gz, .nii or .mha file")
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
    for path in volume_files(images):
        stem = stem_and_ending(path)[0]
        inner = re.fullmatch(r"(.+)_(\d{4})", stem)
        if inner and submission.id_of(inner[1]) is not None:
            pairs += [(inner[1], path)] if inner[2] == "0000" else []
        else:
            pairs.append((stem, path))
    if not any(submission.id_of(identifier) is not None for identifier, _ in pairs):
        cases = discover(challenge, images).of(split)
        pairs += [(case.identifier, case.images[0]) for case in cases if 0 in case.images]
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
    if official is None:
        return
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
