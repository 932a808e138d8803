"""Scores a folder of predictions against a folder of labels: per case, means, and a challenge's own totals."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnunet_ext.challenges.checks import geometry_fault, value_faults
from nnunet_ext.challenges.discover import discover
from nnunet_ext.challenges.facts import CaseMeasure, Challenge, Conventions, Totals, listed, map_values
from nnunet_ext.challenges.metrics import MEASURES, structure_scores
from nnunet_ext.challenges.parallel import each
from nnunet_ext.challenges.volumes import (
    Unreadable,
    Volume,
    is_junk,
    label_values,
    read_volume,
    stem_and_ending,
)
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json, write_atomically, write_json

PLAIN_MEASURES = ("dice", "hd95", "nsd")
IMAGE_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".png", ".bmp", ".tif", ".tiff")
Values = Literal["nnunet", "challenge"]
Missing = Literal["error", "empty", "skip"]


@dataclass(frozen=True)
class Scoring:
    """How every case is scored.

    Attributes:
        title: of the challenge, or what else is scored.
        structures: name -> label values that make up the structure.
        measures: names of `MEASURES`.
        tolerance: of the NSD, mm.
        conventions: for empty masks and the percentile.
        allowed: values that label maps may have; None is any.
        hints: value that is often wrong -> what it means.
        prediction_map, label_map: value in the files -> value in `structures`, where they differ.
        ignore: value of labels whose voxels do not count.
        case_measure, totals: what only this challenge computes.
        notes: what a reader of the scores must know.
    """

    title: str
    structures: Mapping[str, tuple[int, ...]]
    measures: tuple[str, ...]
    tolerance: float = 1.0
    conventions: Conventions = Conventions()
    allowed: tuple[int, ...] | None = None
    hints: Mapping[int, str] = field(default_factory=dict)
    prediction_map: Mapping[int, int] = field(default_factory=dict)
    label_map: Mapping[int, int] = field(default_factory=dict)
    ignore: int | None = None
    case_measure: CaseMeasure | None = None
    totals: Totals | None = None
    notes: tuple[str, ...] = ()

    def changed(self, **changes: Any) -> "Scoring":
        """A copy with other conventions, measures or tolerance; None keeps what is there.

        Raises:
            ConfigurationError: unknown measure, tolerance below 0.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        names = {"both_empty", "one_empty_distance", "hausdorff"}
        conventions = replace(self.conventions, **{name: given.pop(name) for name in names & set(given)})
        unknown = set(given.get("measures", ())) - set(MEASURES)
        if unknown:
            raise ConfigurationError(f"Unknown measure {', '.join(sorted(unknown))}. Known: {', '.join(MEASURES)}.")
        if given.get("tolerance", 0) < 0:
            raise ConfigurationError(f"The tolerance must be at least 0 mm, found {given['tolerance']}.")
        return replace(self, conventions=conventions, **given)


@dataclass(frozen=True)
class CasePair:
    """A label map and its prediction; without one, the prediction is background everywhere."""

    identifier: str
    prediction: Path | None
    label: Path
    scoring: Scoring


def scoring_of(challenge: Challenge, prediction_values: Values = "nnunet", label_values: Values = "nnunet") -> Scoring:
    """The challenge's own scoring, for files with nnU-Net's values or with the challenge's."""
    metrics = challenge.metrics
    maps = {"nnunet": challenge.to_challenge, "challenge": {}}
    return Scoring(
        title=challenge.title,
        structures=metrics.structures,
        measures=metrics.measures,
        tolerance=metrics.tolerance,
        conventions=Conventions(metrics.both_empty, metrics.one_empty_distance),
        allowed=challenge.challenge_values,
        hints=challenge.value_hints,
        prediction_map=maps[prediction_values],
        label_map=maps[label_values],
        case_measure=metrics.case_measure,
        totals=metrics.totals,
        notes=metrics.notes,
    )


def plain_scoring(predictions: Path, labels: Path, dataset_json: Path | None, processes: int = 1) -> Scoring:
    """Scoring of nnU-Net folders by the labels or regions of a dataset.json, else by the values in the labels.

    Args:
        predictions, labels: folders; dataset.json is looked for in them and in the folder above `labels`.
        dataset_json: the file, if it is elsewhere.
        processes: worker processes.

    Raises:
        ConfigurationError: `dataset_json` does not exist or has no labels.
    """
    candidates = [predictions / "dataset.json", labels / "dataset.json", labels.resolve().parent / "dataset.json"]
    if dataset_json is not None and not dataset_json.is_file():
        raise ConfigurationError(f"{dataset_json} is not a file.")
    path = dataset_json or next((path for path in candidates if path.is_file()), None)
    if path is None:
        found = each(_values_in, _images_in(labels), processes=processes, title="Reading labels")
        values = sorted({value for values in found for value in values} - {0})
        by_value: dict[str, tuple[int, ...]] = {f"label {value}": (value,) for value in values}
        return Scoring("labels by their values", by_value, PLAIN_MEASURES)
    content = read_json(path)
    if not isinstance(content.get("labels"), dict):
        raise ConfigurationError(f"{path} has no 'labels'.")
    labels_json: Mapping[str, Any] = content["labels"]
    named = {name: tuple(int(v) for v in np.atleast_1d(value)) for name, value in labels_json.items()}
    ignored = named.pop("ignore", None)
    structures = {name: values for name, values in named.items() if set(values) != {0}}
    return Scoring(f"labels of {path}", structures, PLAIN_MEASURES, ignore=ignored[0] if ignored else None)


def _values_in(path: Path) -> list[int]:
    try:
        return label_values(read_volume(path).voxels)[0]
    except Unreadable as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _images_in(folder: Path) -> list[Path]:
    """Image files of a folder. A figure with a JSON file of its name is one that we have drawn there."""
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder.")
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.endswith(IMAGE_ENDINGS)
        and path.is_file()
        and not is_junk(path.name)
        and not path.with_suffix(".json").is_file()
    )


def score_folder(
    scoring: Scoring,
    predictions: Path,
    labels: Path,
    *,
    challenge: Challenge | None = None,
    missing: Missing = "error",
    processes: int = 1,
) -> dict[str, Any]:
    """Scores every case.

    Args:
        scoring: how.
        predictions, labels: folders with one file per case; labels may also be the challenge's download.
        challenge: knows under which names the cases go; None takes equal names.
        missing: a label without prediction, or the reverse: an error, an empty prediction, or a case to skip.
        processes: worker processes.

    Returns:
        `{"title", "conventions", "mean", "defined", "average", "totals", "cases"}`; see docs/challenges.md.

    Raises:
        ConfigurationError: every problem at once.
    """
    pairs, problems = _pairs(scoring, predictions, labels, challenge, missing)
    results = list(each(score_case, pairs, processes=processes, title="Scoring")) if not problems else []
    problems += [problem for result in results for problem in result["problems"]]
    if problems:
        raise listed(problems, "{count}, nothing was scored:")
    cases = [{key: value for key, value in result.items() if key != "problems"} for result in results]
    mean, defined = _means(cases)
    return {
        "title": scoring.title,
        "predictions": str(predictions),
        "labels": str(labels),
        "conventions": _conventions(scoring),
        "mean": mean,
        "defined": defined,
        "average": _average(cases, scoring.measures),
        "totals": scoring.totals(cases) if scoring.totals and cases else {},
        "cases": cases,
    }


def _pairs(
    scoring: Scoring, predictions: Path, labels: Path, challenge: Challenge | None, missing: Missing
) -> tuple[list[CasePair], list[str]]:
    ours = _named(_images_in(predictions), challenge)
    theirs = _named(_images_in(labels), challenge)
    if not theirs and challenge is not None:
        theirs = {case.identifier: case.label for case in discover(challenge, labels).cases if case.label is not None}
    if not ours or not theirs:
        raise ConfigurationError(f"{predictions if not ours else labels} holds no label maps.")
    problems = []
    if missing != "skip":
        problems += [f"{ours[name].name}: no such label in {labels}" for name in sorted(set(ours) - set(theirs))]
    if missing == "error":
        absent = sorted(set(theirs) - set(ours))
        hint = " (--missing empty or --missing skip)"
        problems += [f"{name}: no prediction of this case in {predictions}{hint}" for name in absent]
    names = sorted(set(theirs) if missing == "empty" else set(ours) & set(theirs))
    return [CasePair(name, ours.get(name), theirs[name], scoring) for name in names], problems


def _named(paths: Sequence[Path], challenge: Challenge | None) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        name = _case_name(path, challenge)
        if name in named:
            raise ConfigurationError(f"{path} and {named[name].name} are the same case.")
        named[name] = path
    return named


def _case_name(path: Path, challenge: Challenge | None) -> str:
    """The name under which nnU-Net's data set has the case: a download's label maps are named otherwise."""
    for files in challenge.files if challenge is not None else ():
        match = re.fullmatch(files.pattern, path.name)
        if match:
            return files.case.format(**match.groupdict())
    return stem_and_ending(path)[0]


def score_case(pair: CasePair) -> dict[str, Any]:
    """`{"case", "structures": {name: {measure: value}}, ..., "problems"}` of one case."""
    scoring = pair.scoring
    ours, faults = _labels(pair.prediction, scoring, scoring.prediction_map)
    theirs, more = _labels(pair.label, scoring, scoring.label_map)
    faults += more
    if ours is not None and theirs is not None:
        fault = geometry_fault(ours, theirs, "its label map")
        faults += [f"{pair.prediction}: {fault}"] if fault else []
    if theirs is None or faults:
        return {"case": pair.identifier, "problems": faults}
    prediction, label = np.zeros(theirs.shape, np.uint8) if ours is None else ours.voxels, theirs.voxels
    if scoring.ignore is not None:
        ignored = label == scoring.ignore
        prediction[ignored] = label[ignored] = 0
    structures = structure_scores(
        prediction,
        label,
        theirs.spacing,
        scoring.structures,
        scoring.measures,
        tolerance=scoring.tolerance,
        conventions=scoring.conventions,
    )
    result: dict[str, Any] = {"case": pair.identifier, "structures": structures, "problems": []}
    if scoring.case_measure is not None:
        special = scoring.case_measure(prediction, label, theirs.spacing)
        for name, values in special.pop("structures", {}).items():
            structures.setdefault(name, {}).update(values)
        result.update(special)
    return result


def _labels(path: Path | None, scoring: Scoring, mapping: Mapping[int, int]) -> tuple[Volume | None, list[str]]:
    """A label map with the values of `scoring.structures`, and what is wrong with the file."""
    if path is None:
        return None, []
    try:
        volume = read_volume(path)
    except Unreadable as error:
        return None, [f"{path}: {error}"]
    values, fractions = label_values(volume.voxels)
    allowed = values if scoring.allowed is None else _unmapped(scoring, mapping)
    faults = list(value_faults(values, fractions, allowed, {} if mapping else scoring.hints))
    if mapping and set(values) & set(mapping.values()) - set(mapping):
        faults.append("has the challenge's values, it seems: see --values and --label-values")
    if faults:
        return None, [f"{path}: {fault}" for fault in faults]
    return replace(volume, array=map_values(volume.voxels, mapping)), []


def _unmapped(scoring: Scoring, mapping: Mapping[int, int]) -> list[int]:
    """The values that files may have before `mapping`."""
    back = {new: old for old, new in mapping.items()}
    return sorted(back.get(value, value) for value in scoring.allowed or ())


def _means(cases: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Mean over the cases in which a number is defined, and how many these are."""
    mean: dict[str, dict[str, float]] = {}
    defined: dict[str, dict[str, int]] = {}
    for name in cases[0]["structures"] if cases else ():
        for key in cases[0]["structures"][name]:
            values = [case["structures"][name][key] for case in cases]
            known = [value for value in values if not math.isnan(value)]
            mean.setdefault(name, {})[key] = float(np.mean(known)) if known else math.nan
            defined.setdefault(name, {})[key] = len(known)
    return mean, defined


def _average(cases: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> dict[str, float]:
    """Over the structures of a case, then over cases."""
    average = {}
    for key in measures:
        of_cases = []
        for case in cases:
            known = [values[key] for values in case["structures"].values() if not math.isnan(values.get(key, math.nan))]
            if known:
                of_cases.append(np.mean(known))
        average[key] = float(np.mean(of_cases)) if of_cases else math.nan
    return average


def _conventions(scoring: Scoring) -> dict[str, Any]:
    return {
        **asdict(scoring.conventions),
        "one_empty_overlap": 0,
        "nsd_tolerance_mm": scoring.tolerance,
        "surface": "boundary voxels with a face neighbour outside the mask; distances between voxel centres in mm",
        "mean": "over the cases in which a number is defined; 'defined' counts them",
        "average": "over the structures of each case, then over the cases",
        "structures": {name: list(values) for name, values in scoring.structures.items()},
        "notes": list(scoring.notes),
    }


def to_json(value: Any) -> Any:
    """The same with what JSON does not have: null for what is not defined, "inf" for infinite distances."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else ("inf" if math.isinf(value) else float(value))
    return int(value) if isinstance(value, np.integer) else value


def write_scores(result: Mapping[str, Any], json_path: Path) -> Path:
    """Writes the JSON file, and beside it a CSV file with a row per case and structure; returns the latter."""
    write_json(json_path, to_json(result))
    csv_path = json_path.with_suffix(".csv")
    keys = list(dict.fromkeys(key for values in result["mean"].values() for key in values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "structure", *keys])
    rows = [(case["case"], name, values) for case in result["cases"] for name, values in case["structures"].items()]
    rows += [("mean", name, values) for name, values in result["mean"].items()]
    for case, name, values in rows:
        cells = [values.get(key, math.nan) for key in keys]
        writer.writerow([case, name, *("" if math.isnan(cell) else f"{cell:.6g}" for cell in cells)])
    write_atomically(csv_path, lambda file: _write(file, text.getvalue()))
    return csv_path


def _write(file: Any, text: str) -> None:
    file.write(text.encode(errors="surrogateescape"))


def table(result: Mapping[str, Any]) -> str:
    """Means per structure as text, then averages and totals."""
    keys = list(dict.fromkeys(key for values in result["mean"].values() for key in values))
    heads = [MEASURES[key].text if key in MEASURES else key for key in keys]
    width = max(len("structure"), *(len(name) for name in result["mean"]))
    widths = [max(len(head), 8) for head in heads]
    lines = ["  ".join([f"{'structure':<{width}}", *(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True))])]
    rows = [*result["mean"].items(), ("average", result["average"])]
    for name, values in rows:
        cells = [_number(values.get(key, math.nan)) for key in keys]
        lines.append("  ".join([f"{name:<{width}}", *(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))]))
    partly = [
        f"{name} {key}: {count}"
        for name, counts in result["defined"].items()
        for key, count in counts.items()
        if count < len(result["cases"])
    ]
    if partly:
        lines.append(f"defined in fewer than {len(result['cases'])} cases: {'; '.join(partly)}")
    lines += [f"{name}: {_number(value)}" for name, value in result["totals"].items()]
    return "\n".join(lines)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
