"""E2ENet's fusion flow: the share of a node's active connections by direction (arXiv 2312.04727, figures 12, 13).

Shares are dicts as `nnunet_ext.e2enet.topology.direction_shares` returns them and the training history holds them:
`{"stage,level": {"forward": 0.4, "up": 0.4, "down": 0.2}}`, stages from 1, levels from 0 (full resolution).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

Shares = Mapping[str, Mapping[str, float]]

# The palette of Okabe and Ito, which the colour-blind can tell apart. In a node the order is that of the arrival:
# what comes down enters at the top, what comes up at the bottom.
COLOURS = {"down": "#009E73", "forward": "#0072B2", "up": "#D55E00"}
_LEGEND = {
    "down": "down: from the finer level",
    "forward": "forward: same level",
    "up": "up: from the coarser level",
}
_ORIGIN = {"forward": 0, "up": 1, "down": -1}  # levels from the node to where the flow comes from
_STEP_X, _STEP_Y, _WIDTH, _HEIGHT = 2.0, 1.6, 0.66, 1.15
_INCHES = 0.56  # of the figure, for a unit of the drawing
_LEAVING = 0.45  # width of a ribbon where it leaves, relative to where it arrives


def random_shares(columns: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """Expected shares of masks that are drawn at random.

    Args:
        columns: "stage,level" -> input channels of the node's first convolution from the forward, up and down flow.

    Exact: with a fixed number of active kernels, drawn without replacement, each direction expects its share of them.
    """
    return {
        node: {name: count / sum(counts) for name, count in zip(("forward", "up", "down"), counts, strict=True)}
        for node, counts in columns.items()
    }


def mean_shares(several: Sequence[Shares]) -> dict[str, dict[str, float]]:
    """The mean over networks of the same grid, for instance over folds."""
    return {
        node: {name: sum(shares[node][name] for shares in several) / len(several) for name in several[0][node]}
        for node in several[0]
    }


def flow_figure(shares: Shares) -> Figure:
    """The fusion grid, with ribbons as wide as the shares of the node in which they arrive."""
    levels = _levels(shares)
    width, height = _STEP_X * (levels - 1) + 2.25, _STEP_Y * (levels - 1) + 1.6
    figure = Figure(figsize=(_INCHES * width, _INCHES * height), layout="constrained")
    ax = figure.subplots()
    _draw_axes(ax, levels)
    for node, share in shares.items():
        stage, level = map(int, node.split(","))
        _draw_node(ax, stage * _STEP_X, level, share)
    _legend(ax)
    return figure


def _levels(shares: Shares) -> int:
    return 1 + max(int(node.split(",")[0]) for node in shares)


def _draw_axes(ax: Axes, levels: int) -> None:
    """The backbone's column and the names of stages and levels."""
    for level in range(levels):
        ax.add_patch(Rectangle((-_WIDTH / 2, -level * _STEP_Y - _HEIGHT / 2), _WIDTH, _HEIGHT, color="#d9d9d9"))
        name = "level 0\n(full res.)" if level == 0 else f"level {level}"
        ax.text(-_WIDTH / 2 - 0.1, -level * _STEP_Y, name, ha="right", va="center", fontsize=9)
    for stage in range(levels):
        ax.text(stage * _STEP_X, 0.68, f"stage {stage}" if stage else "backbone", ha="center", fontsize=9)
    ax.set_xlim(-1.5, (levels - 1) * _STEP_X + 0.75)
    ax.set_ylim(-(levels - 1) * _STEP_Y - 0.7, 0.9)
    ax.set_aspect("equal")
    ax.set_axis_off()


def _draw_node(ax: Axes, x: float, level: int, share: Mapping[str, float]) -> None:
    """The node as a bar that is divided by its shares, and the ribbons that arrive at each part."""
    top = -level * _STEP_Y + _HEIGHT / 2
    for name, colour in COLOURS.items():
        part = share[name] * _HEIGHT
        if part == 0:
            continue
        middle = top - part / 2
        source = (x - _STEP_X + _WIDTH / 2, -(level + _ORIGIN[name]) * _STEP_Y + 0.3 * _ORIGIN[name])
        ax.add_patch(_ribbon(source, _LEAVING * part, (x - _WIDTH / 2, middle), part, colour))
        ax.add_patch(Rectangle((x - _WIDTH / 2, top - part), _WIDTH, part, color=colour, linewidth=0))
        text = f"{100 * share[name]:.0f} %"
        if part > 0.18:
            ax.text(x, middle, text, ha="center", va="center_baseline", fontsize=8, color="white", zorder=4)
        else:  # too low for its number, which then stands beside it
            outline = [withStroke(linewidth=2, foreground="white")]
            ax.text(
                x + _WIDTH / 2 + 0.05, middle, text, va="center_baseline", fontsize=8, color=colour,
                path_effects=outline, zorder=4,
            )  # fmt: skip
        top -= part


def _legend(where: Axes | Figure) -> None:
    """In the corner that the triangular grid leaves free."""
    handles: list[Any] = [Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in _LEGEND]
    where.legend(handles, list(_LEGEND.values()), loc="lower right", frameon=False, fontsize=9)


def _ribbon(start: tuple[float, float], width: float, end: tuple[float, float], end_width: float, colour: str) -> Any:
    """A curved band between two points, `width` high where it leaves and `end_width` where it arrives."""
    (x0, y0), (x1, y1) = start, end
    middle = (x0 + x1) / 2
    upper = [(x0, y0 + width / 2), (middle, y0 + width / 2), (middle, y1 + end_width / 2), (x1, y1 + end_width / 2)]
    lower = [(x1, y1 - end_width / 2), (middle, y1 - end_width / 2), (middle, y0 - width / 2), (x0, y0 - width / 2)]
    curve = [Path.CURVE4] * 3
    path = Path([*upper, *lower], [Path.MOVETO, *curve, Path.LINETO, *curve])
    return PathPatch(path, facecolor=colour, alpha=0.45, linewidth=0)


def shares_figure(runs: Sequence[Sequence[tuple[int, Shares]]], start: Shares | None = None) -> Figure:
    """Shares along the training, one small plot per node at its place in the grid.

    Args:
        runs: one history per network (fold): `(epoch, shares)` in order. Several are drawn as several thin lines.
        start: drawn as dotted horizontals.
    """
    nodes = runs[0][0][1]
    stages = _levels(nodes) - 1
    figure = Figure(figsize=(1.45 * stages + 1.1, 1.15 * stages + 0.9), layout="constrained")
    axes = figure.subplots(stages, stages, squeeze=False, sharex=True, sharey=True)
    for level in range(stages):
        for stage in range(1, stages + 1):
            ax, node = axes[level][stage - 1], f"{stage},{level}"
            if node not in nodes:
                ax.set_axis_off()
                continue
            for name, colour in COLOURS.items():
                if name == "down" and level == 0:
                    continue  # nothing is finer than the full resolution
                _plot_share(ax, [[(epoch, shares[node][name]) for epoch, shares in run] for run in runs], colour)
                if start is not None:
                    ax.axhline(100 * start[node][name], color=colour, linewidth=1, linestyle=":")
            ax.tick_params(labelsize=7, labelbottom=stage + level == stages)
            ax.grid(color="#e5e5e5", linewidth=0.6)
            if level == 0:
                ax.set_title(f"stage {stage}", fontsize=9)
            if stage == 1:
                ax.set_ylabel(f"level {level}", fontsize=9)
    axes[0][0].set_ylim(0, None)
    axes[0][0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supylabel("share of active connections [%]", fontsize=9)
    figure.supxlabel("epoch", fontsize=9)
    if stages > 2:
        _legend(figure)
    return figure


def _plot_share(ax: Axes, runs: Sequence[Sequence[tuple[int, float]]], colour: str) -> None:
    for run in runs:
        marker = "o" if len(run) == 1 else None  # a single epoch has no line to draw
        ax.plot(
            [epoch for epoch, _ in run], [100 * share for _, share in run], color=colour, marker=marker,
            linewidth=1.4 if len(runs) == 1 else 0.9,
        )  # fmt: skip
