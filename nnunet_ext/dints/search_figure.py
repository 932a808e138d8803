"""A search along its epochs: losses of the logits, memory against its budget, the gap G, the supernet's Dice."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_ext.report.figures.training import BLUE, GREEN, GREY, ORANGE

Rows = Sequence[Mapping[str, Any]]


def search_figure(runs: Mapping[str, Rows], joint_from: float | None = None) -> Figure:
    """Four plots; several searches (folds) are drawn as several lines.

    Args:
        runs: name -> rows with epoch, L_alpha, L_eta, L_tp, memory_ratio, sigma, G; dice and memory_ratio_of_code
            may be missing or None.
        joint_from: the epoch in which the architecture began to move, drawn as a dotted line.
    """
    figure = Figure(figsize=(12.6, 3.5), layout="constrained")
    axes = figure.subplots(1, 4)
    for rows in runs.values():
        _losses(axes[0], rows)
        _line(axes[1], rows, "memory_ratio", BLUE, "expected")
        _line(axes[1], rows, "memory_ratio_of_code", GREEN, "of the code")
        axes[1].axhline(rows[-1]["sigma"], color=GREY, linestyle="--", linewidth=1.2, label="budget sigma")
        _line(axes[2], rows, "G", ORANGE, "changed to be feasible")
        _line(axes[3], rows, "dice", GREEN, "supernet")
    for ax, label in zip(
        axes, ("loss / its value at the start", "memory ratio", "gap G [edges]", "pseudo Dice"), strict=True
    ):
        ax.set_ylabel(label)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_ylim(0, None)
        ax.grid(color="#e5e5e5", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
        if joint_from is not None:
            moves = "architecture moves" if ax is axes[0] else None
            ax.axvline(joint_from, color=GREY, linestyle=":", linewidth=1.2, label=moves)
        handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))  # one entry for all runs
        if handles:
            above = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
            ax.legend(handles.values(), handles.keys(), fontsize=8, frameon=False, ncols=2, **above)
    axes[1].set_ylim(0, 1)
    return figure


def _losses(ax: Axes, rows: Rows) -> None:
    for key, colour, label in (("L_alpha", BLUE, "L_alpha"), ("L_eta", GREEN, "L_eta"), ("L_tp", ORANGE, "L_tp")):
        start = rows[0][key] or 1.0
        _plot(ax, [row["epoch"] for row in rows], [row[key] / start for row in rows], colour, label)


def _line(ax: Axes, rows: Rows, key: str, colour: str, label: str) -> None:
    known = [row for row in rows if row.get(key) is not None]
    if known:
        _plot(ax, [row["epoch"] for row in known], [row[key] for row in known], colour, label)


def _plot(ax: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str) -> None:
    ax.plot(x, y, color=colour, linewidth=1.6, label=label, marker="o" if len(x) == 1 else None)
