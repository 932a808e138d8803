"""The sections between the facts and the commands; here folds, curves and cases to look at."""

import math
from collections.abc import Callable
from functools import partial

from tqdm import tqdm

from nnunet_ext.methods import METHODS
from nnunet_ext.report.cases import Unavailable, load_case
from nnunet_ext.report.facts import state
from nnunet_ext.report.figures.overlay import case_figure, error_map, worst_slice
from nnunet_ext.report.figures.training import Topology, curves_figure
from nnunet_ext.report.model_folder import Fold, ModelFolder
from nnunet_ext.report.parts import MISSING, Picture, Section, Table, counted, draw_sections, duration, number
from nnunet_ext.report.score_sections import (
    BY_CASE,
    cases_section,
    postprocessing_section,
    scores_section,
    shown_cases,
    spread_section,
    volumes_section,
)
from nnunet_ext.report.scores import CaseScore
from nnunet_ext.report.training_log import smoothed_dice
from nnunet_ext.report.viewer import Viewer

_TITLES = {1: "The case", 2: "Best and worst case", 3: "Best, median and worst case"}


def make_sections(
    model: ModelFolder, viewer_mb: float = 0, surfaces: Callable[[ModelFolder], list[Section]] | None = None
) -> list[Section]:
    """All sections, in the order of the page; shows its progress.

    `viewer_mb`: what volumes may take of the page. `surfaces` makes the sections of distances that were asked for.
    """
    scored_surfaces = surfaces(model) if surfaces else []
    known = {name: section for method in METHODS.values() for name, section in method.sections().items()}
    learned = dict.fromkeys(fold.method for fold in model.folds if fold.method in known)
    makers: list[Callable[[ModelFolder], Section | None]] = [
        folds_section,
        curves_section,
        *(known[name] for name in learned if name),
        scores_section,
        spread_section,
        *[lambda model, section=section: section for section in scored_surfaces],
        volumes_section,
        postprocessing_section,
        partial(overlays_section, viewer_mb=viewer_mb),
        cases_section,
    ]
    return draw_sections(makers, model)


def folds_section(model: ModelFolder) -> Section:
    """One line per fold, those that are missing included."""
    rows = [_fold_row(fold) for fold in model.folds]
    rows += [[name, "missing", *[MISSING] * 6] for name in model.missing]
    rows.sort(key=lambda row: int(row[0]) if row[0].isdigit() else math.inf)
    head = [
        "Fold",
        "State",
        "Epochs",
        "Time",
        "Final pseudo Dice",
        "Best average (epoch)",
        "Validation Dice",
        "Cases",
    ]
    note = (
        "Pseudo Dice is nnU-Net's estimate on patches during training; the best average is that of its moving mean, "
        "which decides checkpoint_best.pth. Validation Dice is over whole cases, predicted after the training. "
        "The time is that of the epochs in the log, without pauses and validation."
    )
    return Section("Folds", tables=[Table("", head, rows, note, words=2)])


def _fold_row(fold: Fold) -> list[str]:
    smoothed = smoothed_dice(fold.epochs)
    known = [value for value in smoothed if not math.isnan(value)]
    best = f"{number(max(known))} ({fold.epochs[smoothed.index(max(known))].number})" if known else MISSING
    planned = "" if fold.planned_epochs is None else f" of {fold.planned_epochs}"
    return [
        fold.name,
        state(fold),
        f"{fold.epochs[-1].number + 1}{planned}" if fold.epochs else MISSING,
        duration(fold.seconds),
        number(fold.epochs[-1].mean_dice) if fold.epochs else MISSING,
        best,
        number(fold.scores.foreground) if fold.scores else MISSING,
        str(len(fold.scores.cases)) if fold.scores else MISSING,
    ]


def curves_section(model: ModelFolder) -> Section | None:
    """Loss and Dice of each fold along its training."""
    pictures = []
    for fold in model.folds:
        if not fold.epochs:
            continue
        last = fold.epochs[-1]
        figure = curves_figure(
            [epoch.number for epoch in fold.epochs],
            [epoch.train_loss for epoch in fold.epochs],
            [epoch.val_loss for epoch in fold.epochs],
            [epoch.mean_dice for epoch in fold.epochs],
            smoothed_dice(fold.epochs),
            _beside_curves(fold),
        )
        alt = (
            f"Curves of fold {fold.name} over {counted(len(fold.epochs), 'epoch')}; in the last, training loss "
            f"{number(last.train_loss)}, validation loss {number(last.val_loss)}, pseudo Dice {number(last.mean_dice)}."
        )
        pictures.append(Picture.of(figure, f"Fold {fold.name}", alt))
    if not pictures:
        return Section("Curves", ["There is no training log in this folder, and no checkpoint that holds the curves."])
    return Section("Curves", pictures=pictures)


def _beside_curves(fold: Fold) -> Topology | None:
    """What the method of the fold adds to its curves."""
    found = (curves(fold) for method in METHODS.values() if (curves := method.curves()) is not None)
    return next((topology for topology in found if topology is not None), None)


def overlays_section(model: ModelFolder, viewer_mb: float = 0) -> Section | None:
    """The best, median and worst case, each in its slice with the most wrong voxels, and to be looked through."""
    chosen = shown_cases(model)
    if not chosen:
        return None
    text, pictures = [], []
    remarks: dict[str, list[str]] = {}
    viewer = Viewer(viewer_mb, len(chosen))
    for title, case in tqdm(chosen.items(), desc="Overlays", unit="case", leave=False, disable=None):
        name = f"{title}: {case.case} (fold {case.fold}), mean Dice {number(case.mean)}"
        try:
            picture, remark = _overlay(model, case, name, viewer)
            pictures.append(picture)
            if remark:
                remarks.setdefault(remark, []).append(title)
        except Unavailable as error:
            text.append(f"{name}. {error} There is no picture.")
    text += [f"{', '.join(titles)}: {remark}" for remark, titles in remarks.items()]
    intro = (
        "By mean Dice, in the slice with the most wrong voxels, across the axis of the coarsest spacing, cut to what "
        "is segmented there. Scans are turned as radiologists look at them: R is the patient's right."
    )
    return Section(_TITLES[len(chosen)], [intro, *text], pictures, viewer=viewer)


_STARTS = ("feet", "front", "right")  # where slices across each axis of a volume in LPS begin


def _overlay(model: ModelFolder, case: CaseScore, name: str, viewer: Viewer) -> tuple[Picture, str]:
    volumes = load_case(model, case)
    classes = model.labels.classes
    errors = error_map(volumes.reference, volumes.prediction, classes, model.labels.ignore)
    where = worst_slice(errors, volumes.spacing, otherwise=volumes.reference > 0)
    figure = case_figure(
        volumes.image, volumes.reference, volumes.prediction, errors, where, volumes.spacing, classes, volumes.in_lps
    )
    slices = volumes.reference.shape[where.axis]
    wrong = f"{where.wrong:,} of the case's {where.wrong_in_case:,} wrong voxels" if where.wrong else "nothing is wrong"
    counted_from = f" from the {_STARTS[where.axis]}" if volumes.in_lps else ""
    caption = f"{name}. Slice {where.index + 1} of {slices}{counted_from}: {wrong}."
    alt = f"Reference, prediction and errors side by side. {caption}"
    picture = Picture.of(figure, caption, alt, is_scan=True, name=f"case {case.case}", see=BY_CASE)
    remark = volumes.remark
    if viewer.megabytes and not viewer.add(
        name,
        volumes.image,
        {"Reference": volumes.reference, "Prediction": volumes.prediction},
        {"Errors": errors},
        volumes.spacing,
        classes,
        volumes.in_lps,
    ):
        remark = f"{remark} Too large to be looked through on this page: --viewer-mb gives it more.".strip()
    return picture, remark
