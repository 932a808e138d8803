"""Finds a challenge's cases in a downloaded folder, however it is nested."""

import os
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nnunet_ext.challenges.facts import SPLITS, Challenge, counted
from nnunet_ext.challenges.volumes import GZIP, gunzip, is_junk
from nnunet_ext.errors import ConfigurationError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")


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


def discover(challenge: Challenge, source: Path, exclude: Collection[str] = ()) -> Found:
    """Walks through `source` and sorts its files into cases, without those that are excluded.

    Raises:
        ConfigurationError: `source` is no folder, or holds nothing of the challenge; an excluded case is not there.
    """
    if not source.is_dir():
        raise ConfigurationError(f"{source} is not a folder.")
    paths = list(_walk(source))
    names = frozenset(name for path in paths for name in path.parts) | {source.resolve().name}
    patterns = [(files, re.compile(rf"(?:^|/){files.pattern}$", re.IGNORECASE)) for files in challenge.files]
    cases: dict[tuple[str, str], Case] = {}
    problems: list[str] = []
    twice: list[str] = []
    excluded: set[str] = set()
    packed = [path.as_posix() for path in paths if path.name.lower().endswith(ARCHIVES)]
    others = outside = 0
    for path in paths:
        # A folder of the download itself may be what the user names: its name counts too.
        text = (PurePosixPath(source.resolve().name) / path).as_posix()
        files, match = next(((f, m) for f, p in patterns if (m := p.search(text))), (None, None))
        if files is None or match is None:
            others += path.as_posix() not in packed
            continue
        if not _written_as_it_should(files.pattern, match):
            problems.append(
                f"{source / path}: the case's name has other capital letters than {challenge.title} has. Rename it."
            )
            continue
        identifier = files.case.format(**match.groupdict())
        split = challenge.split(identifier, PurePosixPath(text), names)
        if split is None:
            outside += 1
            continue
        if identifier in exclude:
            excluded.add(identifier)
            continue
        case = cases.setdefault((split, identifier), Case(identifier, split))
        before = case.label if files.channel is None else case.images.get(files.channel)
        if before is not None and _same_content(before, source / path):
            twice.append(f"{source / path} is the same as {before} and left alone")
        elif before is not None:
            problems.append(f"{identifier} is there twice: {before} and {source / path}")
        elif files.channel is None:
            case.label = source / path
        else:
            case.images[files.channel] = source / path
    unknown = sorted(set(exclude) - excluded)
    if unknown:
        raise ConfigurationError(f"--exclude names {', '.join(unknown)}, of which {source} holds nothing.")
    unpack = [f"{name} is not unpacked" for name in packed]
    if not cases and not problems:
        raise ConfigurationError(
            f"{source} holds nothing of {challenge.title}. The download looks like this: {challenge.layout}"
            + "".join(f"\n  - {text}" for text in unpack)
        )
    sorted_cases = sorted(cases.values(), key=lambda case: (case.identifier, case.split))
    problems += [problem for case in sorted_cases for problem in _incomplete(challenge, case)]
    problems += _in_two_splits(sorted_cases)
    left_out = [f"excluded: {', '.join(sorted(excluded))}"] if excluded else []
    notes = [*left_out, *twice, *unpack, *_notes(challenge, sorted_cases, others, outside)]
    return Found(sorted_cases, problems, notes)


def _written_as_it_should(pattern: str, match: re.Match[str]) -> bool:
    """Whether the parts that make the case's name match with small and capital letters told apart.

    Elsewhere, as in endings, letters may be of either kind.
    """
    for name, text in match.groupdict().items():
        start = pattern.index(f"(?P<{name}>") + len(f"(?P<{name}>")
        depth, end = 1, start
        while depth:
            step = 2 if pattern[end] == "\\" else 1  # an escaped bracket is none
            depth += (pattern[end] == "(") - (pattern[end] == ")")
            end += step
        if re.fullmatch(pattern[start : end - 1], text) is None:
            return False
    return True


def _same_content(first: Path, second: Path) -> bool:
    """Whether two files hold the same, compressed or not."""
    try:
        one, two = (
            gunzip(data) if data.startswith(GZIP) else data for data in (first.read_bytes(), second.read_bytes())
        )
    except (OSError, EOFError, zlib.error):
        return False
    return one == two


def present(challenges: Sequence[Challenge], source: Path) -> list[Challenge]:
    """Those of which `source` holds files.

    Raises:
        ConfigurationError: it is no folder.
    """
    if not source.is_dir():
        raise ConfigurationError(f"{source} is not a folder.")
    texts = [(PurePosixPath(source.resolve().name) / path).as_posix() for path in _walk(source)]
    found = []
    for challenge in challenges:
        patterns = [re.compile(rf"(?:^|/){files.pattern}$", re.IGNORECASE) for files in challenge.files]
        if any(pattern.search(text) for pattern in patterns for text in texts):
            found.append(challenge)
    return found


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
    channels = range(1 if challenge.stacked else len(challenge.channels))
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
