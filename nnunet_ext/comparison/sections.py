"""The sections of the page: what was reached, differences, worst cases, costs, folds, test cases, all cases."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from nnunet_ext.challenges.compare import CONFIDENCE, RESAMPLES
from nnunet_ext.challenges.comparison_figure import comparison_figure
from nnunet_ext.challenges.metrics import MEASURES
from nnunet_ext.comparison.figures import case_figure, costs_figure, distribution_figure
from nnunet_ext.comparison.models import Model
from nnunet_ext.comparison.outcome import Outcome
from nnunet_ext.comparison.statistics import MEAN, Difference, distribution
from nnunet_ext.report.cases import Unavailable, Volumes, load_case
from nnunet_ext.report.facts import state
from nnunet_ext.report.figures.overlay import error_map, worst_slice
from nnunet_ext.report.parts import MISSING, Picture, Section, Table, counted, draw_sections, number, significant, times
from nnunet_ext.report.scores import nan_mean
from nnunet_ext.report.viewer import Viewer

_WORST = 3  # cases that are hardest for all
_MOST_PANELS = 13  # of a viewer: browsers keep 16 WebGL contexts and drop the oldest beyond


def make_sections(outcome: Outcome, viewer_mb: float = 0) -> list[Section]:
    """All sections in the order of the page; shows its progress. `viewer_mb`: what volumes may take of the page."""
    makers: list[Callable[[Outcome], Section | None]] = [
        summary_section,
        *[lambda outcome, measure=measure: measure_section(outcome, measure) for measure in outcome.measures],
        tested_section,
        partial(worst_section, viewer_mb=viewer_mb),
        costs_section,
        folds_section,
        cases_section,
    ]
    return draw_sections(makers, outcome)


def summary_section(outcome: Outcome) -> Section:
    """One line a model: the means over classes, and the difference to the baseline in Dice."""
    names = [MEASURES[measure].text for measure in outcome.measures]
    head = ["Model", *names, "Dice against baseline", _interval_title(), "p (Holm)", "Cases better / equal / worse"]
    rows = []
    for model in outcome.paired.models:
        reached = [number(outcome.mean_and_interval(model.name, outcome.overall, m)[0]) for m in outcome.measures]
        row = outcome.difference(model.name, outcome.overall, "dice")
        rows.append([model.name, *reached, *(_difference_cells(row) if row else ["baseline", *[MISSING] * 3])])
    note = (
        f"{'Mean over classes of each case, then over cases' if outcome.overall == MEAN else outcome.overall}. A case "
        f"in which a number is not defined is left out. Differences are model minus baseline, paired by case; the "
        f"interval is that of {RESAMPLES:,} bootstrap samples of cases, p that of Wilcoxon's signed-rank test, "
        f"corrected by Holm's method for the number of models. It says nothing about other training runs: each model "
        f"was trained once."
    )
    return Section("Summary", tables=[Table("", head, rows, note)])


def _interval_title() -> str:
    return f"{CONFIDENCE:.0%} interval"


def _difference_cells(row: Difference) -> list[str]:
    pair = row.paired
    n = len(pair.cases)
    return [
        _signed(pair.difference),
        _span(pair.low, pair.high, _signed),
        _p(row.p_holm),
        f"{pair.better} / {pair.equal} / {n - pair.better - pair.equal}",
    ]


def _span(low: float, high: float, text: Callable[[float], str]) -> str:
    return MISSING if math.isnan(low) else f"{text(low)} to {text(high)}"


def _signed(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:+.4f}"


def _p(value: float) -> str:
    return MISSING if math.isnan(value) else ("< 0.0001" if value < 1e-4 else f"{value:.4f}")


def measure_section(outcome: Outcome, measure: str) -> Section:
    """Distributions and differences of one measure by class."""
    kind = MEASURES[measure]
    head = ["Class", "Model", "Cases", "Mean", "Median", "Quartiles", "Difference", _interval_title(), "p", "p (Holm)"]
    rows = []
    finite: dict[str, dict[str, list[float]]] = {}
    for structure in outcome.structures:
        finite[structure] = {}
        for model in outcome.paired.models:
            values = outcome.values(model.name, structure, measure)
            finite[structure][model.name] = [value for value in values if math.isfinite(value)]
            spread = distribution(values)
            row = outcome.difference(model.name, structure, measure)
            cells = ["baseline", *[MISSING] * 3]
            if row is not None:
                difference, interval, holm, _ = _difference_cells(row)
                cells = [difference, interval, _p(row.paired.p), holm]
            quartiles = _span(spread.first_quartile, spread.third_quartile, number)
            shown = [str(spread.cases), number(spread.mean), number(spread.median), quartiles]
            rows.append([structure, model.name, *shown, *cells])
    note = (
        f"{_convention(outcome, measure)} {kind.better.capitalize()} is better. Differences are means over the cases "
        f"in which both numbers are defined. Holm's correction is over all models, and apart from the mean over "
        f"classes over all classes."
    )
    figure = distribution_figure(finite, kind.text)
    alt = f"Box plots of {kind.text} by class and model; the table below has their quartiles."
    pictures = [Picture.of(figure, "Median, quartiles, whiskers to 1.5 times their distance, cases beyond", alt)]
    baseline = outcome.paired.baseline.name
    for model in outcome.paired.rivals:
        compared = [d.paired for d in outcome.differences if d.model == model.name and d.paired.measure == measure]
        if not any(row.cases for row in compared):
            continue
        drawn = comparison_figure(compared, model.name, baseline)
        caption = f"{model.name} against {baseline}, case by case"
        pictures.append(Picture.of(drawn, caption, f"{kind.text} differences of each case. {caption}."))
    return Section(kind.text, _only_one(outcome, measure), pictures, [Table("", head, rows, note, words=2)])


def _convention(outcome: Outcome, measure: str) -> str:
    if measure == "dice":
        return "As nnU-Net's validation recorded it; not defined for a class that is in neither segmentation."
    tolerance = f" with a tolerance of {outcome.tolerance:g} mm" if measure == "nsd" else ""
    return (
        f"Between surface elements with their areas{tolerance}, scored from the label maps as nnunet_ext score does; "
        f"not defined for a class that is in neither segmentation"
        f"{'' if measure == 'nsd' else ' or in one alone, and the mean where a class of the reference has none'}."
    )


def _only_one(outcome: Outcome, measure: str) -> list[str]:
    """Cases that a paired difference leaves out because one model alone has a number: the mean hides them."""
    text = []
    for row in outcome.differences:
        pair = row.paired
        if pair.measure != measure or pair.structure == MEAN:
            continue
        for name, cases in ((row.model, pair.only_first), (outcome.paired.baseline.name, pair.only_second)):
            if cases:
                listed = ", ".join(cases[:5]) + (", ..." if len(cases) > 5 else "")
                text.append(f"{pair.structure}: only {name} has a number for {counted(len(cases), 'case')} ({listed}).")
    return text


def tested_section(outcome: Outcome) -> Section | None:
    """Test cases, which no model was trained on, where they were scored."""
    if not outcome.tested:
        return None
    tables = []
    for measure in outcome.measures:
        names = [name for result in outcome.tested.values() for name in result["mean"]]
        head = ["Model", "Cases", "Mean over classes", *dict.fromkeys(names)]
        rows = []
        for model, result in outcome.tested.items():
            cases = len(result["cases"])
            cells = []
            for name in head[3:]:
                known = result["defined"].get(name, {}).get(measure, 0)
                of = "" if known == cases else f" ({known} of {cases})"
                cells.append(f"{number(_float(result['mean'].get(name, {}).get(measure)))}{of}")
            rows.append([model, str(cases), number(_float(result["average"].get(measure))), *cells])
        note = "In brackets: cases in which the number is defined, where it is not in all."
        tables.append(Table(MEASURES[measure].text, head, rows, note if "(" in str(rows) else ""))
    return Section("Test cases", ["Predicted with all folds together, scored with nnunet_ext score plain."], (), tables)


def _float(value: object) -> float:
    """Numbers of a JSON of scores, where null is not defined and "inf" is infinite."""
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def worst_section(outcome: Outcome, viewer_mb: float = 0) -> Section:
    """The cases that are hardest for all, and each model's largest loss against the baseline."""
    text, pictures = [], []
    chosen = _worst_cases(outcome)
    viewer = Viewer(viewer_mb, max(1, len(chosen)))
    for case, titles in chosen.items():
        dice = ", ".join(f"{m.name} {number(outcome.paired.score(m, case).mean)}" for m in outcome.paired.models)
        caption = f"{case} ({'; '.join(titles)}). Mean Dice: {dice}."
        try:
            picture, fits = _picture(outcome, case, caption, viewer)
            pictures.append(picture)
            if not fits:
                text.append(f"{case} is too large to be looked through on this page: --viewer-mb gives it more.")
        except Unavailable as error:
            text.append(f"{caption} {error} There is no picture.")
    intro = (
        "In the slice with the most wrong voxels of all models together, across the axis of the coarsest spacing, cut "
        "to what is segmented there."
    )
    return Section("Worst cases", [intro, *text], pictures, viewer=viewer)


def _worst_cases(outcome: Outcome) -> dict[str, list[str]]:
    """Case -> why it is shown."""
    scores = {model.name: outcome.values(model.name, outcome.overall, "dice") for model in outcome.paired.models}
    names = list(outcome.paired.cases)
    means = [nan_mean(values[k] for values in scores.values()) for k in range(len(names))]
    ranked = sorted((mean, name) for mean, name in zip(means, names, strict=True) if not math.isnan(mean))
    found: dict[str, list[str]] = {}
    for _, name in ranked[:_WORST]:
        found.setdefault(name, []).append("low for all")
    for model in outcome.paired.rivals:
        row = outcome.difference(model.name, outcome.overall, "dice")
        if row is not None and row.paired.differences.size and row.paired.differences.min() < 0:
            name = row.paired.cases[int(np.argmin(row.paired.differences))]
            found.setdefault(name, []).append(f"largest loss of {model.name}")
    return found


def _picture(outcome: Outcome, case: str, caption: str, viewer: Viewer) -> tuple[Picture, bool]:
    """The picture, and whether the case fits into the viewer or is not wanted there."""
    volumes: dict[str, Volumes] = {}
    for model in outcome.paired.models:
        volumes[model.name] = _load(model, outcome, case)
    first = next(iter(volumes.values()))
    if any(v.prediction.shape != first.reference.shape or v.in_lps != first.in_lps for v in volumes.values()):
        raise Unavailable("The predictions lie on different grids.")
    labels = outcome.paired.models[0].folder.labels
    errors = {name: error_map(v.reference, v.prediction, labels.classes, labels.ignore) for name, v in volumes.items()}
    together = sum((error > 0).astype(np.int64) for error in errors.values())
    where = worst_slice(np.asarray(together), first.spacing, otherwise=first.reference > 0)
    predictions = {name: v.prediction for name, v in volumes.items()}
    figure = case_figure(
        first.image, first.reference, predictions, errors, where, first.spacing, labels.classes, first.in_lps
    )
    slices = first.reference.shape[where.axis]
    remark = f" {first.remark}" if first.remark else ""
    text = f"{caption} Slice {where.index + 1} of {slices}.{remark}"
    picture = Picture.of(
        figure,
        text,
        f"Reference and predictions side by side, errors below. {text}",
        is_scan=True,
        name=f"case {case}",
        see=_by_case(outcome),
    )
    if not viewer.megabytes or 1 + len(predictions) > _MOST_PANELS:
        return picture, True
    shown_errors = {f"{name}: errors": error for name, error in errors.items()}
    fits = viewer.add(
        case,
        first.image,
        {"Reference": first.reference, **predictions},
        shown_errors if 1 + 2 * len(predictions) <= _MOST_PANELS else {},
        first.spacing,
        labels.classes,
        first.in_lps,
    )
    return picture, fits


def _load(model: Model, outcome: Outcome, case: str) -> Volumes:
    try:
        return load_case(model.folder, outcome.paired.score(model, case))
    except Unavailable as error:
        raise Unavailable(f"{model.name}: {error}") from error


def costs_section(outcome: Outcome) -> Section:
    """What each model costs, and accuracy against it."""
    head = [
        "Model",
        "Active parameters",
        "Patch",
        "GFLOPs of a patch",
        "GFLOPs per million voxels",
        "Checkpoint (MB)",
        "Seconds a case",
    ]
    rows, text = [], []
    for name, cost in outcome.costs.items():
        rows.append(
            [
                name,
                MISSING if math.isnan(cost.parameters) else f"{cost.parameters:,.0f}",
                times(list(cost.patch_size)) if cost.patch_size else MISSING,
                *(
                    MISSING if math.isnan(value) else significant(value)
                    for value in (cost.gflops, cost.gflops_per_million_voxels, cost.checkpoint_mb, cost.seconds)
                ),
            ]
        )
        if cost.remark:
            text.append(f"{name}: parameters and GFLOPs are not known, because {cost.remark}.")
    note = (
        "GFLOPs are 1e9 FLOPs of one pass over a patch, two per multiply-add, as computed (convention 'true'), over "
        "active weights; by the patch's voxels, because models have patches of their own. Where slices are routed or "
        "skipped it is what a pass takes at most. The checkpoint is that of one fold as nnU-Net stores it, with the "
        "state of the optimizer. Seconds are wall clock of nnunet_ext predict over cases, where they were measured."
    )
    by_cost = {
        "active parameters (millions)": {n: c.parameters / 1e6 for n, c in outcome.costs.items()},
        "GFLOPs per million voxels": {n: c.gflops_per_million_voxels for n, c in outcome.costs.items()},
        "checkpoint (MB)": {n: c.checkpoint_mb for n, c in outcome.costs.items()},
        "seconds a case": {n: c.seconds for n, c in outcome.costs.items()},
    }
    known = {k: v for k, v in by_cost.items() if sum(not math.isnan(x) for x in v.values()) > 1}
    pictures = []
    if known:
        accuracy = {m.name: outcome.mean_and_interval(m.name, outcome.overall, "dice") for m in outcome.paired.models}
        figure = costs_figure(accuracy, known, f"Dice, {outcome.overall}")
        caption = f"Dice, {outcome.overall}, with its {_interval_title()}, against {', '.join(known)}"
        pictures.append(Picture.of(figure, caption, f"{caption}; the numbers stand in the table below."))
    return Section("Accuracy and cost", text, pictures, [Table("", head, rows, note)])


def folds_section(outcome: Outcome) -> Section:
    """Every fold of every model, those that are missing included."""
    rows = []
    for model in outcome.paired.models:
        there = {fold.name: fold for fold in model.folder.folds}
        for name in sorted(
            {*there, *model.folder.missing}, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0)
        ):
            fold = there.get(name)
            used = "yes" if name in outcome.paired.folds else "no"
            if fold is None:
                rows.append([model.name, name, "missing", "no", MISSING, MISSING])
                continue
            scores = fold.scores
            shown = [number(scores.foreground), str(len(scores.cases))] if scores else [MISSING, MISSING]
            rows.append([model.name, name, state(fold), used, *shown])
    head = ["Model", "Fold", "State", "Compared", "Validation Dice", "Cases"]
    note = "Validation Dice is the mean that nnU-Net prints: over cases by class, then over classes."
    return Section("Folds", tables=[Table("", head, rows, note, words=4)])


def cases_section(outcome: Outcome) -> Section:
    """Dice of every case by model, the hardest for all first."""
    models = outcome.paired.models
    scores = {model.name: outcome.values(model.name, outcome.overall, "dice") for model in models}
    rows = []
    for k, (name, (fold, _)) in enumerate(outcome.paired.cases.items()):
        values = [scores[model.name][k] for model in models]
        rows.append((nan_mean(values), [name, fold, *map(number, values)]))
    rows.sort(key=lambda row: (math.isnan(row[0]), row[0], row[1][0]))
    head = ["Case", "Fold", *(model.name for model in models)]
    note = "Hardest for all first. The CSV beside this page has every class and measure."
    links = {name: f"case {name}" for name in _worst_cases(outcome)}
    return Section(_by_case(outcome), tables=[Table("", head, [row for _, row in rows], note, links=links)])


def _by_case(outcome: Outcome) -> str:
    return f"Dice by case, {outcome.overall}"
