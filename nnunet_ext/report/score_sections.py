"""The sections of the scores: Dice by class and its spread, volumes, postprocessing, every case."""

import math
from collections.abc import Sequence

import numpy as np

from nnunet_ext.challenges.metrics import MEASURES
from nnunet_ext.report.figures.scores import strip_figure, volumes_figure
from nnunet_ext.report.model_folder import ModelFolder
from nnunet_ext.report.parts import MISSING, Picture, Section, Table, counted, number
from nnunet_ext.report.scores import CaseScore, class_means, nan_mean, remarkable_cases, worst_first
from nnunet_ext.report.surfaces import surface_measures

BY_CASE = "Dice by case"


def scores_section(model: ModelFolder) -> Section | None:
    """Mean Dice by class: each fold as its summary.json says, and all cases together."""
    folds = model.scored
    if not folds:
        return None
    head = [
        _class_or_region(model),
        *(f"Fold {scores.fold} (n = {len(scores.cases)})" for scores in folds),
    ]
    names = list(dict.fromkeys(name for scores in folds for name in scores.classes))
    rows = [[name, *(number(scores.classes.get(name)) for scores in folds)] for name in names]
    rows.append(["Mean", *(number(scores.foreground) for scores in folds)])
    note = "A dash: the class is in no reference and in no prediction."
    if len(model.cross_validation) > 1:
        cases = [case for scores in model.cross_validation for case in scores.cases]
        together = class_means(cases)
        head.append(f"All (n = {len(cases)})")
        last = [*(together.get(name) for name in names), nan_mean(together.values())]
        rows = [[*row, number(value)] for row, value in zip(rows, last, strict=True)]
        note += " All: the mean over all cases of the cross-validation, in which each case counts the same."
    return Section("Dice by class", tables=[Table("", head, rows, note)])


def spread_section(model: ModelFolder) -> Section | None:
    """How Dice is spread over the cases: median and quartiles by class, and every case as a dot."""
    folds = model.cross_validation or model.scored
    cases = [case for scores in folds for case in scores.cases]
    if not cases:
        return None
    names = list(dict.fromkeys(name for case in cases for name in case.dice))
    rows = [[name, *_spread([case.dice.get(name, math.nan) for case in cases])] for name in names]
    rows.append(["Mean of a case", *_spread([case.mean for case in cases])])
    head = [_class_or_region(model), *_SPREAD]
    note = (
        "Cases: those with a number, that is with the class in the reference or in the prediction. Quartiles are "
        "linear between ranks."
    )
    strips = {
        name: {scores.fold: _finite([case.dice.get(name, math.nan) for case in scores.cases]) for scores in folds}
        for name in names
    }
    caption = "One dot a case; the bar is the median"
    picture = Picture.of(strip_figure(strips, "Dice"), caption, f"Dice of each case by class and fold. {caption}.")
    return Section("Dice over the cases", pictures=[picture], tables=[Table("", head, rows, note)])


def surface_sections(model: ModelFolder, measures: Sequence[str], tolerance: float, processes: int) -> list[Section]:
    """A section a measure: its spread over the cases by class.

    Raises:
        ConfigurationError: a label map is missing or cannot be used.
    """
    folds = model.cross_validation or model.scored
    if not measures or not folds:
        return []
    # named by fold and case: folds of one's own splits may share cases
    scores = {f"{scores.fold} {case.case}": case for scores in folds for case in scores.cases}
    found = surface_measures(model, scores, measures, tolerance, processes, model.path.name)
    names = list(dict.fromkeys(name for structures in found.values() for name in structures))
    sections = []
    for measure in measures:
        text = MEASURES[measure].text
        rows = [[name, *_spread([found[case][name][measure] for case in found])] for name in names]
        strips = {
            name: {
                fold.fold: _finite([found[f"{fold.fold} {case.case}"][name][measure] for case in fold.cases])
                for fold in folds
            }
            for name in names
        }
        caption = f"One dot a case; the bar is the median. {MEASURES[measure].better.capitalize()} is better"
        picture = Picture.of(strip_figure(strips, text), caption, f"{text} of each case by class and fold. {caption}.")
        note = "Scored from the label maps as nnunet_ext score does, between surface elements with their areas"
        note += f", with a tolerance of {tolerance:g} mm" if measure == "nsd" else ""
        note += ". Cases: those in which the number is defined, that is with the class in "
        note += "either segmentation." if measure == "nsd" else "both segmentations: cases that lost it do not count."
        sections.append(
            Section(text, pictures=[picture], tables=[Table("", [_class_or_region(model), *_SPREAD], rows, note)])
        )
    return sections


_SPREAD = ["Cases", "Median", "First quartile", "Third quartile", "Lowest", "Highest"]


def _spread(values: Sequence[float]) -> list[str]:
    finite = _finite(values)
    if not finite:
        return ["0", *[MISSING] * 5]
    low, first, median, third, high = np.percentile(finite, [0, 25, 50, 75, 100])
    return [str(len(finite)), *(number(float(value)) for value in (median, first, third, low, high))]


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def volumes_section(model: ModelFolder) -> Section | None:
    """True against predicted volumes and what is missed and extra, where summary.json counts the voxels."""
    folds = model.cross_validation or model.scored
    cases = [case for scores in folds for case in scores.cases]
    names = list(dict.fromkeys(name for case in cases for name in case.voxels))
    counted_cases = {name: [case for case in cases if name in case.voxels and name in case.predicted] for name in names}
    counted_cases = {name: there for name, there in counted_cases.items() if there}
    if not counted_cases:
        return None
    rows, pairs = [], {}
    for name, there in counted_cases.items():
        true, found = ([case.voxels[name] for case in there], [case.predicted[name] for case in there])
        pairs[name] = (true, found)
        extra = sum(case.false_positive.get(name, 0) for case in there)
        missed = sum(case.false_negative.get(name, 0) for case in there)
        lost = sum(t > 0 and f == 0 for t, f in zip(true, found, strict=True))
        invented = sum(t == 0 and f > 0 for t, f in zip(true, found, strict=True))
        rows.append(
            [
                name,
                f"{sum(true):,}",
                f"{sum(found):,}",
                MISSING if not sum(true) else f"{100 * (sum(found) / sum(true) - 1):+.1f} %",
                f"{extra:,}",
                f"{missed:,}",
                f"{lost} of {sum(t > 0 for t in true)}",
                f"{invented} of {sum(t == 0 for t in true)}",
            ]
        )
    head = [
        _class_or_region(model),
        "Reference",
        "Prediction",
        "Difference",
        "Extra (FP)",
        "Missed (FN)",
        "Not found at all",
        "Found where it is not",
    ]
    note = (
        "Voxels of all cases together, as nnU-Net counted them. Not found at all: cases of those with the class that "
        "have no predicted voxel of it. Found where it is not: cases of those without the class that have some."
    )
    caption = f"Voxels of {counted(len(cases), 'case')}; on the line both volumes are equal"
    picture = Picture.of(volumes_figure(pairs, "voxels"), caption, f"Predicted over true volume by class. {caption}.")
    return Section("Volumes", pictures=[picture], tables=[Table("", head, rows, note)])


def postprocessing_section(model: ModelFolder) -> Section | None:
    """What nnUNetv2_find_best_configuration decided for this model, where it was run."""
    if not model.postprocessing:
        return None
    text, tables = [], []
    for found in model.postprocessing:
        which = f"{'folds' if len(found.folds) > 1 else 'fold'} {', '.join(found.folds)}"
        steps = f"applies {counted(found.steps, 'step')} that keep the largest component" if found.steps else "has none"
        text.append(
            f"Over {which}, nnUNetv2_find_best_configuration tried to keep only the largest component, of all "
            f"foreground and of each class: the model {steps}."
        )
        names = list(dict.fromkeys([*found.before, *found.after]))
        rows = [[name, number(found.before.get(name)), number(found.after.get(name))] for name in names]
        head = [_class_or_region(model), "Dice before", "Dice after"]
        tables.append(Table(f"Over {which}" if len(model.postprocessing) > 1 else "", head, rows))
    return Section("Postprocessing", text, tables=tables)


def cases_section(model: ModelFolder) -> Section | None:
    """Every validation case, the worst first."""
    cases = worst_first(case for scores in model.scored for case in scores.cases)
    if not cases:
        return None
    names = list(dict.fromkeys(name for case in cases for name in case.dice))
    rows = [
        [case.case, case.fold, number(case.mean), *(number(case.dice.get(name)) for name in names)] for case in cases
    ]
    note = "Worst first. A dash: the class is in neither segmentation, and does not count in the mean."
    links = {case.case: f"case {case.case}" for case in shown_cases(model).values()}
    return Section(BY_CASE, tables=[Table("", ["Case", "Fold", "Mean", *names], rows, note, links=links)])


def shown_cases(model: ModelFolder) -> dict[str, CaseScore]:
    """Title -> the cases that are drawn: of the cross-validation, or of what else was scored."""
    folds = model.cross_validation or model.scored
    return remarkable_cases(case for scores in folds for case in scores.cases)


def _class_or_region(model: ModelFolder) -> str:
    return "Region" if model.labels.has_regions else "Class"
