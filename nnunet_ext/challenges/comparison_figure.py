"""Two methods on the same cases: every case's difference as a dot, the mean difference with its interval."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_ext.challenges.compare import CONFIDENCE, Comparison
from nnunet_ext.challenges.metrics import MEASURES
from nnunet_ext.files import write_atomically

BETTER, WORSE, EQUAL, MEAN = "#0072B2", "#D55E00", "0.5", "#222222"  # told apart by the colour-blind too


def draw_comparison(rows: Sequence[Comparison], first: str, second: str, path: str | os.PathLike) -> None:
    """Writes what `comparison_figure` makes of the same arguments to a PNG."""
    figure = comparison_figure(rows, first, second)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))


def comparison_figure(rows: Sequence[Comparison], first: str, second: str) -> Figure:
    """One panel per measure and one line per structure.

    Args:
        rows: the comparisons, first minus second.
        first, second: names of the methods.
    """
    measures = list(dict.fromkeys(row.measure for row in rows))
    structures = list(dict.fromkeys(row.structure for row in rows))
    size = (2.2 + 3.6 * len(measures), 1.9 + 0.42 * len(structures))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)
    for panel, measure in zip(panels[0], measures, strict=True):
        _draw_panel(panel, [row for row in rows if row.measure == measure], structures, measure)
    panels[0][0].set_yticks(range(len(structures)), structures)
    panels[0][0].set_ylim(len(structures) - 0.4, -0.6)
    kinds = {"case, A better": BETTER, "case, equal": EQUAL, "case, A worse": WORSE}
    handles = [
        *(Line2D([], [], marker="o", ls="", color=colour, markersize=5, label=text) for text, colour in kinds.items()),
        Line2D([], [], marker="D", color=MEAN, markersize=6, label=f"mean, {CONFIDENCE:.0%} interval"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"A = {first}\nB = {second}", fontsize=10, x=0.01, ha="left")
    return figure


def _draw_panel(panel: Axes, rows: Sequence[Comparison], structures: list[str], measure: str) -> None:
    kind = MEASURES[measure]
    panel.axvline(0, color="0.6", linewidth=1)
    for row in rows:
        line = structures.index(row.structure)
        sign = -1 if kind.better == "lower" else 1
        colors = [BETTER if sign * d > 0 else WORSE if sign * d < 0 else EQUAL for d in row.differences]
        spread = np.random.default_rng(line).uniform(-0.17, 0.17, row.differences.size)  # so that dots do not hide
        panel.scatter(row.differences, line + spread, c=colors, s=16, alpha=0.65, linewidths=0)
        if row.differences.size:
            if np.isfinite(row.low):
                panel.plot([row.low, row.high], [line, line], color=MEAN, linewidth=2, solid_capstyle="butt")
            panel.plot(row.difference, line, marker="D", color=MEAN, markersize=6, markeredgecolor="white")
        label = f"n = {len(row.cases)}" + (f"\np = {row.p:.2g}" if np.isfinite(row.p) else "")
        panel.annotate(label, (1.01, line), xycoords=("axes fraction", "data"), va="center", fontsize=7, color="0.3")
    panel.set_title(kind.text, fontsize=10)
    panel.set_xlabel(f"A − B ({'right' if kind.better == 'higher' else 'left'} of 0: A is better)", fontsize=9)
    panel.tick_params(labelsize=9)
    panel.grid(axis="x", color="0.9")
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
