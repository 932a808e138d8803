"""What a challenge is to us: a table of facts, and the little that is more than a table as functions in it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

from nnunet_ext.errors import ConfigurationError

Severity = Literal["error", "warn"]
SPLITS = {"train": "training", "val": "validation", "test": "test"}

# (case, path in the download, names of all its folders and files) -> "train", "val", "test", or None: not wanted
SplitRule = Callable[[str, PurePosixPath, frozenset[str]], str | None]
# (prediction, reference, spacing in mm) -> what the challenge wants to know of a case besides its structures' measures;
# an entry "structures" adds to these, or replaces them
CaseMeasure = Callable[[np.ndarray, np.ndarray, tuple[float, ...]], dict[str, Any]]
# all cases of a result -> the challenge's own totals
Totals = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class Files:
    """Files of one kind in a download.

    Attributes:
        pattern: regular expression of a file's path below the download, which must match up to its end and start at
            the beginning of a name.
        case: template of the case's identifier from the groups of `pattern`.
        channel: number of the image channel; None is the label map.
    """

    pattern: str
    case: str = "{case}"
    channel: int | None = 0


@dataclass(frozen=True)
class Conventions:
    """What holds where a number is not defined by itself.

    Attributes:
        both_empty: structure in neither mask: "nan" leaves the case out of means, "perfect" counts it as right
            (Dice, NSD, sensitivity 1; distances 0).
        one_empty_distance: distance where one mask alone is empty: "nan", "inf", "diagonal" (of the image, mm),
            "voxel diagonal" (of the image, in voxels). Dice and NSD are 0 there.
        hausdorff: "directed" is the larger of the two directed percentiles, "pooled" the percentile of both
            directions together.
        surface: what distances are measured between, see `surfaces`: "elements" with their areas, or "voxels".
        nsd_from_dice: a structure of lower Dice has NSD 0.
    """

    both_empty: Literal["nan", "perfect"] = "nan"
    one_empty_distance: Literal["nan", "inf", "diagonal", "voxel diagonal"] = "nan"
    hausdorff: Literal["directed", "pooled"] = "directed"
    surface: Literal["elements", "voxels"] = "elements"
    nsd_from_dice: float = 0.0


@dataclass(frozen=True)
class Metrics:
    """How predictions are scored.

    Attributes:
        structures: name -> values (the challenge's) that make up the structure.
        measures: names of `nnunet_ext.challenges.metrics.MEASURES`.
        tolerance: of the normalized surface Dice, mm; for all structures or by name.
        conventions: see there.
        case_measure, totals: what only this challenge computes.
        notes: what a reader of the scores must know.
    """

    structures: Mapping[str, tuple[int, ...]]
    measures: tuple[str, ...]
    tolerance: float | Mapping[str, float] = 1.0
    conventions: Conventions = Conventions()
    case_measure: CaseMeasure | None = None
    totals: Totals | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Submission:
    """What the challenge accepts.

    Attributes:
        prediction: regular expression of a prediction's name without ending, with the group `id`.
        name: template of the submitted name without ending, from `id`.
        numeric: `id` is a number.
        accepted: ids that belong to the challenge's task; None is any.
        splits: what can be submitted; the first is the default.
        ending: of the submitted files.
        folder: inside the archive, "" or with a slash at its end.
        missing: what a case without prediction is. The reasons stand in docs/challenges.md.
        empty: what a prediction without any foreground is.
        expects: values (the challenge's) without which a prediction is probably wrong -> what happens then.
        left_out: identifiers of cases that the organisers ask not to submit.
        upload: where the archive goes, and what is known of it.
    """

    prediction: str
    name: str
    numeric: bool = True
    accepted: range | None = None
    splits: tuple[str, ...] = ("test",)
    ending: str = ".nii.gz"
    folder: str = ""
    missing: Severity = "error"
    empty: Severity = "error"
    expects: Mapping[int, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    upload: str = ""

    def id_of(self, stem: str) -> str | int | None:
        """The id in the name of a prediction, label or image without ending; None where it is not one of ours."""
        match = re.fullmatch(self.prediction, stem)
        if match is None:
            return None
        if not self.numeric:
            return match["id"]
        number = int(match["id"])
        return number if self.accepted is None or number in self.accepted else None


@dataclass(frozen=True)
class Challenge:
    """A challenge, or one of its tasks.

    Attributes:
        name, title: for the command line and for people.
        dataset_id, dataset_name: defaults of `DatasetNNN_Name`.
        channels: nnU-Net's channel names ("CT" selects CT normalization).
        labels: name -> value in nnU-Net's data set.
        regions: name -> values in nnU-Net's data set, outer region first; None where regions make no sense.
        regions_class_order: nnU-Net's, where it is not 1, 2, 3 ...
        to_challenge: value in nnU-Net's data set -> value of the challenge, where they differ.
        files: what belongs to the download.
        layout: the same for people.
        split: which cases are for training, validation and test.
        counts: official number of cases of each split; None where it is not known.
        known: official identifiers, where they are known.
        submission, metrics: see there; None where the challenge takes no such submission.
        reader: nnU-Net's reader where its own choice fails.
        value_hints: value of the challenge's that is often wrong -> what it means.
        identity_header: some images are known to have lost their geometry.
        reference: address, for dataset.json.
    """

    name: str
    title: str
    dataset_id: int
    dataset_name: str
    channels: tuple[str, ...]
    labels: Mapping[str, int]
    files: tuple[Files, ...]
    layout: str
    split: SplitRule
    counts: Mapping[str, int | None]
    submission: Submission
    metrics: Metrics
    regions: Mapping[str, tuple[int, ...]] | None = None
    regions_class_order: tuple[int, ...] | None = None
    to_challenge: Mapping[int, int] = field(default_factory=dict)
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reader: str | None = None
    value_hints: Mapping[int, str] = field(default_factory=dict)
    identity_header: bool = False
    reference: str = ""

    @property
    def stacked(self) -> bool:
        """All channels come in one file, along its last axis."""
        return len({files.channel for files in self.files if files.channel is not None}) < len(self.channels)

    @property
    def region_order(self) -> tuple[int, ...]:
        """The value of the voxels that a region has for itself, region by region."""
        return self.regions_class_order or tuple(range(1, len(self.regions or ()) + 1))

    @property
    def nnunet_values(self) -> tuple[int, ...]:
        """Values of nnU-Net's data set, ascending from 0."""
        return tuple(sorted(self.labels.values()))

    @property
    def challenge_values(self) -> tuple[int, ...]:
        """Values of the challenge, ascending from 0."""
        return tuple(sorted(self.to_challenge.get(value, value) for value in self.labels.values()))

    @property
    def from_challenge(self) -> dict[int, int]:
        """Value of the challenge -> value in nnU-Net's data set, where they differ."""
        return {value: key for key, value in self.to_challenge.items()}


def map_values(array: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    """A uint8 array with each value replaced by `mapping`; the others stay. Values lie between 0 and 255."""
    whole = np.rint(array) if array.dtype.kind == "f" else array
    whole = whole.astype(np.uint8, copy=False)
    if not mapping:
        return whole
    table = np.arange(256, dtype=np.uint8)
    for old, new in mapping.items():
        table[old] = new
    return table[whole]


def listed(problems: Sequence[str], lead: str) -> ConfigurationError:
    """An error that lists every problem, each on its line."""
    lead = lead.format(count=counted(len(problems), "problem"))
    return ConfigurationError(f"{lead}\n" + "\n".join(f"  - {problem}" for problem in problems))


def counted(number: int, noun: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
