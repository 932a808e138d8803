"""A topology of DiNTS as a graph (CVPR 2021, figure 7): scales down, layers across, operations by colour."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# The palette of Okabe and Ito, which the colour-blind can tell apart.
COLOURS = {
    "skip": "#7f7f7f",
    "conv_3x3": "#0072B2",
    "conv_3x3x3": "#0072B2",
    "p3d_3x3x1": "#D55E00",
    "p3d_3x1x3": "#009E73",
    "p3d_1x3x3": "#CC79A7",
}
_NAMES = {
    "skip": "skip",
    "conv_3x3": "3\N{MULTIPLICATION SIGN}3",
    "conv_3x3x3": "3\N{MULTIPLICATION SIGN}3\N{MULTIPLICATION SIGN}3",
    "p3d_3x3x1": "P3D 3\N{MULTIPLICATION SIGN}3\N{MULTIPLICATION SIGN}1",
    "p3d_3x1x3": "P3D 3\N{MULTIPLICATION SIGN}1\N{MULTIPLICATION SIGN}3",
    "p3d_1x3x3": "P3D 1\N{MULTIPLICATION SIGN}3\N{MULTIPLICATION SIGN}3",
}
_UNKNOWN_WIDTH = 2.2  # points, for edges without a probability
_STEM = "#404040"
_ENTRY_WIDTH = 2.1  # inches, of the legend's longest entry


def topology_figure(
    edges: Sequence[Sequence[int]],
    active: Sequence[Sequence[int]],
    operations: Sequence[Sequence[str]],
    scales: Sequence[str],
    probabilities: Sequence[Sequence[float]] | None = None,
) -> Figure:
    """The graph of one code.

    Args:
        edges: `(scale that sends, scale that receives)` of a layer's edges.
        active: `[L][E]` of 0 and 1.
        operations: `[L][E]`, names as in `COLOURS`.
        scales: what to write beside each scale, finest first.
        probabilities: `[L][E]`; an edge is as wide as its probability.
    """
    layers, depth = len(active), len(scales)
    width = 0.62 * layers + 2.6
    figure = Figure(figsize=(width, 0.72 * depth + 1.35), layout="constrained")
    ax = figure.subplots()
    nodes = [{edges[e][0] for e, on in enumerate(active[0]) if on}]
    nodes += [{edges[e][1] for e, on in enumerate(row) if on} for row in active]
    _draw_ends(ax, nodes[0], nodes[-1], layers, depth)
    for layer, row in enumerate(active):
        for edge, (source, target) in enumerate(edges):
            ends = [layer, layer + 1], [-source, -target]
            if not row[edge]:
                ax.plot(*ends, color="#e3e3e3", linewidth=0.6, zorder=1)
                continue
            probability = None if probabilities is None else probabilities[layer][edge]
            ax.plot(
                *ends, color=COLOURS[operations[layer][edge]], linewidth=_width(probability), solid_capstyle="round",
                alpha=0.9, zorder=2,
            )  # fmt: skip
    for layer, reached in enumerate(nodes):
        for scale in range(depth):
            colour = _STEM if scale in reached else "white"
            edge_colour = _STEM if scale in reached else "#cfcfcf"
            ax.scatter(layer, -scale, s=70, color=colour, edgecolors=edge_colour, linewidths=0.8, zorder=3)
    _label(ax, scales, layers)
    used = {operations[layer][e] for layer, row in enumerate(active) for e, on in enumerate(row) if on}
    _legend(ax, [name for name in COLOURS if name in used], probabilities is not None, int(width / _ENTRY_WIDTH))
    return figure


def _width(probability: float | None) -> float:
    return _UNKNOWN_WIDTH if probability is None else 0.6 + 3.6 * probability


def _draw_ends(ax: Axes, inputs: set[int], outputs: set[int], layers: int, depth: int) -> None:
    """Stems from the image at the left, the head's way up at the right."""
    for scale in inputs:
        ax.plot([-0.62, 0], [-scale, -scale], color=_STEM, linewidth=1.2, zorder=1)
    ax.plot([-0.62, -0.62], [0.62, -max(inputs)], color=_STEM, linewidth=1.2, zorder=1)
    ax.text(-0.62, 0.68, "image", ha="center", va="bottom", fontsize=9)
    right = layers + 0.62
    for scale in outputs:
        ax.plot([layers, right], [-scale, -scale], color=_STEM, linewidth=1.2, zorder=1)
    ax.plot([right, right], [-max(outputs), 0.62], color=_STEM, linewidth=1.2, zorder=1)
    ax.text(right, 0.68, "logits", ha="center", va="bottom", fontsize=9)
    ax.set_ylim(-depth + 0.55, 1.05)
    ax.set_xlim(-1.55, layers + 1.05)


def _label(ax: Axes, scales: Sequence[str], layers: int) -> None:
    for scale, name in enumerate(scales):
        ax.text(-0.8, -scale, name, ha="right", va="center", fontsize=9)
    for layer in range(layers + 1):
        ax.text(layer, 0.3, str(layer), ha="center", va="bottom", fontsize=8, color=_STEM)
    ax.set_axis_off()


def _legend(ax: Axes, used: Sequence[str], with_probabilities: bool, columns: int) -> None:
    handles: list[Any] = [Line2D([], [], color=COLOURS[name], linewidth=3, label=_NAMES[name]) for name in used]
    if with_probabilities:
        for probability in (0.25, 1.0):
            label = f"edge probability {probability:g}"
            handles.append(Line2D([], [], color="#b0b0b0", linewidth=_width(probability), label=label))
    handles.append(Line2D([], [], color="#e3e3e3", linewidth=0.8, label="edge not used"))
    ax.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=max(1, min(4, columns)),
        frameon=False, fontsize=9, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip


def histogram(active: Sequence[Sequence[int]], operations: Sequence[Sequence[str]]) -> Mapping[str, int]:
    """How many active edges have each operation."""
    counts: dict[str, int] = {}
    for row, names in zip(active, operations, strict=True):
        for on, name in zip(row, names, strict=True):
            if on:
                counts[name] = counts.get(name, 0) + 1
    return {name: counts[name] for name in COLOURS if name in counts}
