"""Scores case by case: Dice by class and fold as strips of dots, and predicted against true volumes."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_ext.report.figures.training import BLUE, ORANGE

_STEEPEST = 20  # largest over smallest volume on a linear axis


def strip_figure(values: Mapping[str, Mapping[str, Sequence[float]]], label: str) -> Figure:
    """One dot a case, one row a class and fold, the median as a bar.

    Args:
        values: class -> fold -> finite values of its cases.
        label: of the axis.
    """
    rows = [(name, fold, numbers) for name, folds in values.items() for fold, numbers in folds.items()]
    figure = Figure(figsize=(8.2, 0.26 * len(rows) + 0.2 * len(values) + 0.8), layout="constrained")
    ax = figure.subplots()
    places, y = [], 0.0
    for k, (name, _, numbers) in enumerate(rows):
        y += 1.0 if k and rows[k - 1][0] == name else 1.6
        places.append(y)
        # spread by the golden ratio: even, and the same in every run
        offsets = 0.5 * ((0.618034 * np.arange(len(numbers))) % 1 - 0.5)
        ax.plot(numbers, y + offsets, marker="o", linestyle="none", color=BLUE, alpha=0.55, markersize=4, mew=0)
        if len(numbers):
            ax.plot([np.median(numbers)] * 2, [y - 0.4, y + 0.4], color=ORANGE, linewidth=2.2)
    ax.set_yticks(places, [f"{name}, fold {fold}" for name, fold, _ in rows])
    ax.set_ylim(y + 0.8, 0.8)
    ax.set_xlabel(label)
    _plain(ax, "x")
    return figure


def volumes_figure(volumes: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit: str) -> Figure:
    """One panel a class, one dot a case: predicted over true volume, with the line on which they are equal.

    Args:
        volumes: class -> true and predicted volumes of the cases.
        unit: of the volumes.
    """
    columns = min(3, len(volumes))
    lines = -(-len(volumes) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.0 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, (name, (true, found)) in zip(axes, volumes.items(), strict=False):
        positive = [value for value in (*true, *found) if value > 0]
        low, high = min(positive, default=1.0), max(positive, default=1.0)
        if high > _STEEPEST * low:  # zero has a place on it too, left of and below all others
            for set_scale in (ax.set_xscale, ax.set_yscale):
                set_scale("symlog", linthresh=low, linscale=0.3)
        limits = (-0.1 * low if high > _STEEPEST * low else 0.0, 1.1 * high)
        ax.plot(limits, limits, color="0.6", linewidth=1)
        ax.plot(true, found, marker="o", linestyle="none", color=BLUE, alpha=0.6, markersize=5, mew=0)
        ax.set(xlim=limits, ylim=limits)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel(f"reference [{unit}]", fontsize=9)
        ax.set_ylabel(f"prediction [{unit}]", fontsize=9)
        ax.tick_params(labelsize=8)
        _plain(ax, "both")
    for ax in axes[len(volumes) :]:
        ax.set_visible(False)
    return figure


def _plain(ax: Axes, grid: str) -> None:
    ax.grid(axis=grid, color="#e5e5e5", linewidth=0.6)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
