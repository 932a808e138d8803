"""Dice per case and class from nnU-Net's `validation/summary.json`; NaN where a class is in neither segmentation."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Labels:
    """The classes that are scored.

    `classes`: label values -> name, one value for a label, several for a region; background and ignore left out.
    `ignore`: the value of voxels that do not count.
    """

    classes: dict[tuple[int, ...], str]
    ignore: int | None

    @classmethod
    def from_dataset_json(cls, content: Mapping[str, Any]) -> "Labels":
        """From the `labels` of a dataset.json."""
        values = {name: _as_tuple(value) for name, value in content["labels"].items()}
        ignore = values.pop("ignore", None)
        return cls(
            {value: name for name, value in values.items() if set(value) != {0}},
            None if ignore is None else ignore[0],
        )

    @property
    def has_regions(self) -> bool:
        """Whether some class is made of several label values."""
        return any(len(values) > 1 for values in self.classes)


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)


def values_of_key(key: str) -> tuple[int, ...]:
    """Label values of a key in summary.json: "2" -> (2,), "(1, 2)" -> (1, 2)."""
    values = tuple(int(number) for number in re.findall(r"\d+", key))
    if not values:
        raise ValueError(f"'{key}' names no label")
    return values


@dataclass(frozen=True)
class CaseScore:
    """One validation case. `dice` by class (NaN: the class is in neither segmentation); paths as recorded.

    By class, where they were recorded: `voxels` of the reference, `predicted` voxels, and those that are
    `false_positive` and `false_negative`.
    """

    case: str
    fold: str
    dice: dict[str, float]
    prediction_file: str
    reference_file: str
    voxels: dict[str, int] = field(default_factory=dict)
    predicted: dict[str, int] = field(default_factory=dict)
    false_positive: dict[str, int] = field(default_factory=dict)
    false_negative: dict[str, int] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean Dice over the classes that have one."""
        return nan_mean(self.dice.values())


_COUNTS = {"voxels": "n_ref", "predicted": "n_pred", "false_positive": "FP", "false_negative": "FN"}


@dataclass(frozen=True)
class FoldScores:
    """What a fold's summary.json says: mean Dice by class, their mean, and the cases."""

    fold: str
    classes: dict[str, float]
    foreground: float
    cases: list[CaseScore]


def read_scores(summary: Mapping[str, Any], fold: str, labels: Labels, ending: str) -> FoldScores:
    """The Dice scores of a summary.json; classes have their names where dataset.json knows them.

    `ending`: of the segmentation files.

    Raises:
        KeyError, TypeError, ValueError: it is not built as nnU-Net builds it.
    """
    names = {key: labels.classes.get(values_of_key(key), f"label {key}") for key in summary["mean"]}
    cases = [
        CaseScore(
            case=case_name(str(row["prediction_file"]), ending),
            fold=fold,
            dice={names[key]: _number(values["Dice"]) for key, values in row["metrics"].items()},
            prediction_file=str(row["prediction_file"]),
            reference_file=str(row["reference_file"]),
            **{
                ours: {names[key]: int(values[theirs]) for key, values in row["metrics"].items() if theirs in values}
                for ours, theirs in _COUNTS.items()
            },
        )
        for row in summary["metric_per_case"]
    ]
    classes = {names[key]: _number(values["Dice"]) for key, values in summary["mean"].items()}
    return FoldScores(fold, classes, _number(summary["foreground_mean"]["Dice"]), cases)


@dataclass(frozen=True)
class Postprocessing:
    """What postprocessing changed on the cases of `folds`: Dice by class before and after, and its number of steps."""

    folds: list[str]
    before: dict[str, float]
    after: dict[str, float]
    steps: int


def read_postprocessing(content: Mapping[str, Any], folds: Sequence[str], labels: Labels) -> Postprocessing:
    """A postprocessing.json of nnU-Net.

    Raises:
        KeyError, TypeError, ValueError: it is not built as nnU-Net builds it.
    """

    def dice(part: Mapping[str, Any]) -> dict[str, float]:
        by_class = {
            labels.classes.get(values_of_key(key), f"label {key}"): _number(values["Dice"])
            for key, values in part["mean"].items()
        }
        return {**by_class, "Mean": _number(part["foreground_mean"]["Dice"])}

    steps = len(content["postprocessing_fns"])
    return Postprocessing(list(folds), dice(content["input_folder"]), dice(content["postprocessed"]), steps)


def case_name(path: str, ending: str) -> str:
    """The file's name without folders and ending, also of a path that was written on another system."""
    return re.split(r"[\\/]", path)[-1].removesuffix(ending)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def nan_mean(values: Iterable[float]) -> float:
    """The mean of those that are numbers; NaN without any."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def worst_first(cases: Iterable[CaseScore]) -> list[CaseScore]:
    """Sorted by mean Dice; cases without one come last."""
    return sorted(cases, key=lambda case: (math.isnan(case.mean), case.mean, case.case))


def remarkable_cases(cases: Iterable[CaseScore]) -> dict[str, CaseScore]:
    """The best, median and worst case by mean Dice; fewer where there are fewer cases with a number."""
    ranked = [case for case in worst_first(cases) if not math.isnan(case.mean)]
    chosen: dict[str, CaseScore] = {}
    if len(ranked) == 1:
        return {"Only case": ranked[0]}
    for title, position in (("Best", -1), ("Worst", 0), ("Median", (len(ranked) - 1) // 2)):
        if ranked and all(ranked[position] is not case for case in chosen.values()):
            chosen[title] = ranked[position]
    return {title: chosen[title] for title in ("Best", "Median", "Worst") if title in chosen}


def class_means(cases: Sequence[CaseScore]) -> dict[str, float]:
    """Mean Dice by class over the cases, as nnU-Net takes it: cases without a number are left out."""
    names = dict.fromkeys(name for case in cases for name in case.dice)
    return {name: nan_mean(case.dice.get(name, math.nan) for case in cases) for name in names}


def pooled_dice(folds: Iterable[FoldScores]) -> float:
    """The mean over the classes of the mean Dice of all cases of all folds; nan where there is none."""
    return nan_mean(class_means([case for fold in folds for case in fold.cases]).values())
