"""Finds a challenge's cases in a downloaded folder, however it is nested."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nnunet_ext.challenges.facts import SPLITS, Challenge, counted
from nnunet_ext.challenges.volumes import is_junk
from nnunet_ext.errors import ConfigurationError


@dataclass
class Case:
    """One case: its image files by channel, and its label map where there is one."""

    identifier: str
    split: str
    images: dict[int, Path] = field(default_factory=dict)
    label: Path | None = None


@dataclass
class Found:
    """What a download holds.

    Attributes:
        cases: sorted by identifier.
        problems: what must be put right before anything can be done.
        notes: what the user should know.
    """

    cases: list[Case]
    problems: list[str]
    notes: list[str]

    def of(self, *splits: str) -> list[Case]:
        """The cases of some splits."""
        return [case for case in self.cases if case.split in splits]


def discover(challenge: Challenge, source: Path) -> Found:
    """Walks through `source` and sorts its files into cases.

    Raises:
        ConfigurationError: `source` is no folder, or holds nothing of the challenge.
    """
    if not source.is_dir():
        raise ConfigurationError(f"{source} is not a folder.")
    paths = list(_walk(source))
    folders = frozenset(name for path in paths for name in path.parts[:-1]) | {source.resolve().name}
    patterns = [(files, re.compile(rf"(?:^|/){files.pattern}$")) for files in challenge.files]
    cases: dict[tuple[str, str], Case] = {}
    problems: list[str] = []
    others = outside = 0
    for path in paths:
        # A folder of the download itself may be what the user names: its name counts too.
        text = (PurePosixPath(source.resolve().name) / path).as_posix()
        files, match = next(((f, m) for f, p in patterns if (m := p.search(text))), (None, None))
        if files is None or match is None:
            others += 1
            continue
        identifier = files.case.format(**match.groupdict())
        split = challenge.split(identifier, PurePosixPath(text), folders)
        if split is None:
            outside += 1
            continue
        case = cases.setdefault((split, identifier), Case(identifier, split))
        before = case.label if files.channel is None else case.images.get(files.channel)
        if before is not None:
            problems.append(f"{identifier} is there twice: {before} and {source / path}")
        elif files.channel is None:
            case.label = source / path
        else:
            case.images[files.channel] = source / path
    if not cases:
        raise ConfigurationError(
            f"{source} holds nothing of {challenge.title}. The download looks like this: {challenge.layout}"
        )
    sorted_cases = sorted(cases.values(), key=lambda case: (case.identifier, case.split))
    problems += [problem for case in sorted_cases for problem in _incomplete(challenge, case)]
    problems += _in_two_splits(sorted_cases)
    return Found(sorted_cases, problems, _notes(challenge, sorted_cases, others, outside))


def _walk(source: Path) -> Iterator[PurePosixPath]:
    """Paths of all files below `source`, relative to it, without junk; links are followed once."""
    seen = set()
    for folder, names, files in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not is_junk(name))
        for name in sorted(files):
            if not is_junk(name):
                yield PurePosixPath((Path(folder) / name).relative_to(source).as_posix())


def _incomplete(challenge: Challenge, case: Case) -> Iterator[str]:
    channels = range(len(challenge.channels)) if not _is_4d(challenge) else range(1)
    missing = [challenge.channels[channel] for channel in channels if channel not in case.images]
    what = SPLITS[case.split]
    if missing and len(channels) == 1:
        where = f" beside {case.label}" if case.label else ""
        yield f"{what} case {case.identifier} has no image{where}"
    elif missing:
        yield f"{what} case {case.identifier} has no {', '.join(missing)} image"
    if case.split == "train" and case.label is None:
        where = f" for {next(iter(case.images.values()))}" if case.images else ""
        yield f"training case {case.identifier} has no label map{where}"


def _is_4d(challenge: Challenge) -> bool:
    """All channels come in one file."""
    return len({files.channel for files in challenge.files if files.channel is not None}) < len(challenge.channels)


def _in_two_splits(cases: list[Case]) -> Iterator[str]:
    for before, case in zip(cases, cases[1:], strict=False):
        if before.identifier == case.identifier:
            yield f"{case.identifier} is both a {SPLITS[before.split]} and a {SPLITS[case.split]} case"


def _notes(challenge: Challenge, cases: list[Case], others: int, outside: int) -> list[str]:
    notes = []
    for split, known in challenge.known.items():
        found = {case.identifier for case in cases if case.split == split}
        absent = [identifier for identifier in known if identifier not in found]
        if found and absent:
            names = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
            notes.append(f"not found of the official {SPLITS[split]} cases: {names}")
    labelled = [case for case in cases if case.split == "test" and case.label is not None]
    if labelled:
        notes.append(
            f"left alone, because they are not official: {counted(len(labelled), 'file')} with labels of test cases"
        )
    if outside:
        notes.append(f"left alone, of cases that do not belong to {challenge.title}: {counted(outside, 'file')}")
    if others:
        notes.append(f"left alone: {counted(others, 'file')} with other names")
    return notes
