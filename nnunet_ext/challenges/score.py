"""Scores a folder of predictions against a folder of labels: per case, means, and a challenge's own totals."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnunet_ext.challenges.checks import LabelMap, read_label_map
from nnunet_ext.challenges.discover import discover
from nnunet_ext.challenges.facts import Challenge, listed
from nnunet_ext.challenges.metrics import structure_scores
from nnunet_ext.challenges.parallel import each
from nnunet_ext.challenges.results import averages, conventions_text, means
from nnunet_ext.challenges.scoring import Scoring, images_in
from nnunet_ext.challenges.volumes import stem_and_ending
from nnunet_ext.errors import ConfigurationError

Missing = Literal["error", "empty", "skip"]


@dataclass(frozen=True)
class CasePair:
    """A label map and its prediction; without one, the prediction is background everywhere."""

    identifier: str
    prediction: Path | None
    label: Path
    scoring: Scoring


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
        `{"title", "conventions", "mean", "defined", "average", "totals", "notes", "cases"}`; see docs/challenges.md.

    Raises:
        ConfigurationError: every problem at once.
    """
    pairs, problems, notes = _pairs(scoring, predictions, labels, challenge, missing)
    results = list(each(score_case, pairs, processes=processes, title="Scoring")) if not problems else []
    problems += [problem for result in results for problem in result.pop("problems")]
    if problems:
        raise listed(problems, "{count}, nothing was scored:")
    notes += [note for result in results for note in result.pop("notes")]
    mean, defined = means(results)
    totals = scoring.metrics.totals
    return {
        "title": scoring.title,
        "predictions": str(predictions),
        "labels": str(labels),
        "conventions": conventions_text(scoring.metrics, scoring.assumed),
        "mean": mean,
        "defined": defined,
        "average": averages(results, scoring.metrics.measures),
        "totals": totals(results) if totals and results else {},
        "notes": notes,
        "cases": results,
    }


def _pairs(
    scoring: Scoring, predictions: Path, labels: Path, challenge: Challenge | None, missing: Missing
) -> tuple[list[CasePair], list[str], list[str]]:
    ours = _named(images_in(predictions), challenge)
    theirs = _named(images_in(labels), challenge)
    if not theirs and challenge is not None:
        theirs = {case.identifier: case.label for case in discover(challenge, labels).cases if case.label is not None}
    if not ours or not theirs:
        raise ConfigurationError(f"{predictions if not ours else labels} holds no label maps.")
    problems = []
    if missing != "skip":
        problems += [f"{ours[name].name}: no such label in {labels}" for name in sorted(set(ours) - set(theirs))]
    absent = sorted(set(theirs) - set(ours))
    if missing == "error":
        hint = " (--missing empty or --missing skip)"
        problems += [f"{name}: no prediction of this case in {predictions}{hint}" for name in absent]
    fate = {"empty": "counted as empty", "skip": "left out"}.get(missing, "")
    notes = [f"{name}: no prediction, {fate}" for name in absent] if fate else []
    names = sorted(set(theirs) if missing == "empty" else set(ours) & set(theirs))
    return [CasePair(name, ours.get(name), theirs[name], scoring) for name in names], problems, notes


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
        match = re.fullmatch(files.pattern, path.name, re.IGNORECASE)
        if match:
            return files.case.format(**match.groupdict())
    return stem_and_ending(path)[0]


def score_case(pair: CasePair) -> dict[str, Any]:
    """`{"case", "structures": {name: {measure: value}}, ..., "problems", "notes"}` of one case."""
    metrics, ignore = pair.scoring.metrics, pair.scoring.ignore
    dimensions = (2, 3)
    truth = read_label_map(pair.label, pair.scoring.labels, dimensions=dimensions)
    found = LabelMap(truth.volume, [], [], [])
    if pair.prediction is not None:
        grid = truth.volume
        found = read_label_map(pair.prediction, pair.scoring.predictions, grid, "its label map", dimensions=dimensions)
    problems = [f"{pair.prediction}: {fault}" for fault in found.faults]
    problems += [f"{pair.label}: {fault}" for fault in truth.faults]
    if problems or truth.volume is None or found.volume is None:
        return {"case": pair.identifier, "problems": problems, "notes": []}
    label, spacing = truth.volume.voxels, truth.volume.spacing
    prediction = found.volume.voxels if pair.prediction is not None else np.zeros_like(label)
    if ignore is not None:
        ignored = label == ignore
        prediction, label = np.where(ignored, 0, prediction), np.where(ignored, 0, label)
    structures = structure_scores(
        prediction,
        label,
        spacing,
        metrics.structures,
        metrics.measures,
        tolerance=metrics.tolerance,
        conventions=metrics.conventions,
    )
    notes = [f"{pair.identifier}: {note}" for note in (*truth.notes, *found.notes)]
    if pair.label.suffix.lower() in (".png", ".bmp"):
        notes.append(f"{pair.identifier}: its file says no size of pixels, distances are in pixels")
    result: dict[str, Any] = {"case": pair.identifier, "structures": structures, "problems": [], "notes": notes}
    if metrics.case_measure is not None:
        special = metrics.case_measure(prediction, label, spacing)
        for name, values in special.pop("structures", {}).items():
            structures.setdefault(name, {}).update(values)
        result.update(special)
    return result
