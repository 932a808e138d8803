"""Figures of the comparison: distributions by class, accuracy against costs, and cases with all predictions."""

import math
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_ext.report.figures.overlay import (
    PANEL,
    SIDES,
    Classes,
    WorstSlice,
    draw_classes,
    draw_errors,
    draw_grey,
    grey_window,
    name_sides,
    plane_aspect,
    window_of,
)
from nnunet_ext.report.figures.palette import ERRORS, label_colour

# matplotlib 3.10 has a new word for it
_HORIZONTAL: dict[str, Any] = (
    {"orientation": "horizontal"} if "orientation" in signature(Axes.boxplot).parameters else {"vert": False}
)


def distribution_figure(values: Mapping[str, Mapping[str, Sequence[float]]], label: str) -> Figure:
    """Box plots (median, quartiles, whiskers to 1.5 times their distance, all cases beyond as dots).

    Args:
        values: structure -> model -> finite values of the cases.
        label: of the axis.
    """
    structures, models = list(values), list(next(iter(values.values())))
    height = 0.24 * len(models) * len(structures) + 0.3 * len(structures) + 1.1
    figure = Figure(figsize=(8.6, height), layout="constrained")
    ax = figure.subplots()
    step = len(models) + 1
    for k, model in enumerate(models):
        parts = ax.boxplot(
            [list(values[structure][model]) for structure in structures],
            positions=[step * s + k for s in range(len(structures))],
            **_HORIZONTAL, widths=0.7, patch_artist=True, manage_ticks=False,
            medianprops={"color": "black"}, flierprops={"marker": ".", "markersize": 4, "markeredgecolor": "0.35"},
        )  # fmt: skip
        for box in parts["boxes"]:
            box.set(facecolor=label_colour(k), edgecolor="0.25", linewidth=0.8)
    ax.set_yticks([step * s + (len(models) - 1) / 2 for s in range(len(structures))], structures)
    ax.set_ylim(step * len(structures) - 1.2, -0.8)
    ax.set_xlabel(label)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    handles = [Patch(facecolor=label_colour(k), edgecolor="0.25", label=model) for k, model in enumerate(models)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(models)), frameon=False, fontsize=9)
    return figure


def costs_figure(
    accuracy: Mapping[str, tuple[float, float, float]], costs: Mapping[str, Mapping[str, float]], label: str
) -> Figure:
    """One panel a cost, one dot a model with the interval of its mean; models without that cost are left out.

    Args:
        accuracy: model -> mean, and the ends of its interval (NaN without one).
        costs: name and unit of the cost -> model -> number, NaN where it is not known.
        label: of the accuracy.
    """
    columns = min(2, len(costs))
    rows = math.ceil(len(costs) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.0 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for ax, (name, numbers) in zip(axes, costs.items(), strict=False):
        for k, (model, (mean, low, high)) in enumerate(accuracy.items()):
            x = numbers[model]
            if math.isnan(x) or math.isnan(mean):
                continue
            if math.isfinite(low):
                ax.plot([x, x], [low, high], color="0.4", linewidth=1.2)
            ax.plot(x, mean, marker="o", markersize=8, color=label_colour(k), markeredgecolor="0.2", linestyle="none")
        known = [x for x in numbers.values() if x > 0]
        if known and max(known) > 20 * min(known):
            ax.set_xscale("log")
        else:
            ax.set_xlim(0, 1.15 * max(known, default=1))
        ax.set_xlabel(name, fontsize=9)
        ax.grid(color="0.9")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
    for ax in axes[len(costs) :]:
        ax.set_visible(False)
    for ax in axes[::columns]:
        ax.set_ylabel(label, fontsize=9)
    handles = [Patch(facecolor=label_colour(k), edgecolor="0.25", label=model) for k, model in enumerate(accuracy)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(accuracy)), frameon=False, fontsize=9)
    return figure


def case_figure(
    image: np.ndarray | None,
    reference: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    errors: Mapping[str, np.ndarray],
    where: WorstSlice,
    spacing: Sequence[float],
    classes: Classes,
    in_lps: bool,
) -> Figure:
    """The reference and all predictions in one slice; below each prediction its errors.

    Args:
        image: grey values `[D, H, W]`, or None to draw the labels alone.
        reference: label values `[D, H, W]`.
        predictions, errors: model -> label values and `error_map`, `[D, H, W]`.
        where: the slice.
        spacing: mm per voxel along each axis.
        classes: label values -> name.
        in_lps: the axes are feet to head, front to back, right to left; the sides are then named.
    """
    shown = [v for values in classes for v in values]
    labelled = np.isin(reference, shown)
    for prediction in predictions.values():
        labelled = labelled | (prediction > 0)
    window = window_of(np.take(labelled, where.index, where.axis))

    def plane(volume: np.ndarray) -> np.ndarray:
        return np.take(volume, where.index, where.axis)[window]

    aspect = plane_aspect(spacing, where.axis)
    height, width = plane(reference).shape
    columns = 1 + len(predictions)
    side = min(PANEL, 13.5 / columns)
    panel_height = float(np.clip(side * aspect * height / width, 1.3, 4.5))
    figure = Figure(figsize=(columns * side + 0.2, 2 * panel_height + 1.1), layout="constrained")
    axes = figure.subplots(2, columns)
    low, high = (0.0, 1.0) if image is None else grey_window(image, labelled)
    grey = np.full((height, width), 0.9) if image is None else plane(image)
    for ax in axes.ravel():
        draw_grey(ax, grey, low, high, spacing, where.axis)
        if in_lps:
            name_sides(ax, SIDES[where.axis])
    seen = draw_classes(axes[0, 0], plane(reference), classes)
    axes[0, 0].set_title("Reference", fontsize=10)
    axes[1, 0].set_title("Image" if image is not None else "", fontsize=10)
    kinds: set[int] = set()
    for column, (model, prediction) in enumerate(predictions.items(), start=1):
        seen |= draw_classes(axes[0, column], plane(prediction), classes)
        axes[0, column].set_title(_wrapped(model, side), fontsize=10)
        wrong = plane(errors[model])
        draw_errors(axes[1, column], wrong)
        axes[1, column].set_title("Errors", fontsize=10)
        kinds |= set(np.unique(wrong).tolist())
    if image is None:
        axes[1, 0].set_visible(False)
    handles = [Patch(color=seen[name], label=name) for name in classes.values() if name in seen]
    handles += [Patch(color=colour, label=name) for kind, (name, colour) in ERRORS.items() if kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def _wrapped(name: str, inches: float) -> str:
    """A name of several words on lines that fit over a panel."""
    lines: list[str] = [""]
    for word in name.split():
        if lines[-1] and len(lines[-1]) + len(word) > 11 * inches:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
