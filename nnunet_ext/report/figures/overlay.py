"""Image, truth and prediction side by side: a few slices as PNG, with a palette that colour-blind people can read."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from nnunet_ext.files import write_atomically

# Okabe and Ito's colours without black and, at the end, the dark blue that is hard to see on a dark image. Then those
# that are farthest from all before them and from `ERRORS`, by distance in CIELAB: no two are nearer than 26.
PALETTE = (
    *("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2"),
    *("#00FF00", "#FFD9B2", "#665926", "#FF00A6", "#4CA600", "#0073FF", "#00FF99"),
    *("#B20D40", "#BFF299", "#8040A6", "#FF8C80", "#FF8CFF", "#8C8C00", "#B2A6FF"),
)
# What is wrong with a voxel, beside the classes' colours.
ERRORS = {1: ("missed", "#FF1A1A"), 2: ("extra", "#00F0FF"), 3: ("another class", "#C04DFF")}
PANEL_WIDTH = 3.6  # inches
_SCALE_BARS = (200, 100, 50, 20, 10, 5, 2, 1)  # mm


def overlay_figure(path: str | os.PathLike, *volumes: np.ndarray, **how: Any) -> None:
    """Writes what `draw_overlay` makes of the same arguments to a PNG."""
    figure = draw_overlay(*volumes, **how)
    with matplotlib.rc_context({"savefig.facecolor": "white"}):
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130, bbox_inches="tight"))


def draw_overlay(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing: Sequence[float],
    label_names: Mapping[int, str],
    title: str = "",
    scores: Mapping[int, float] | None = None,
    rows: int = 3,
    axis: int | None = None,
) -> Figure:
    """Draws some slices of one case: image | truth | prediction with the truth's outline.

    Args:
        image: `[D, H, W]`, any unit; the grey window is taken from the labelled voxels.
        truth, prediction: label maps `[D, H, W]`.
        spacing: of the three axes in mm; panels have the true aspect and a scale bar.
        label_names: label -> name for the legend; other labels are left out.
        title: above the panels.
        scores: label -> Dice, added to the legend.
        rows: number of slices, those that show most of the labels.
        axis: the axis that is cut; by default the one with the largest spacing (the first, if equal).

    Raises:
        ValueError: shapes differ, or they are not three-dimensional.
    """
    if image.ndim != 3 or not image.shape == truth.shape == prediction.shape or len(spacing) != 3:
        raise ValueError(f"need three volumes [D, H, W], found {image.shape}, {truth.shape}, {prediction.shape}")
    axis = int(np.argmax(np.round(spacing, 3))) if axis is None else axis
    image, truth, prediction = (np.moveaxis(a, axis, 0) for a in (image, truth, prediction))
    spacing = [spacing[axis], *(s for k, s in enumerate(spacing) if k != axis)]
    labels = sorted(label for label in label_names if label != 0)
    shown = np.isin(truth, labels) | np.isin(prediction, labels)
    box = _box(shown)
    slices = choose_slices(np.where(np.isin(truth, labels), truth, 0), rows)
    low, high = grey_window(image, shown)

    height, width = ((b.stop - b.start) * s for b, s in zip(box, spacing[1:], strict=True))
    panel_height = PANEL_WIDTH * height / width
    legend_rows = -(-len(labels) // 4)
    figure = Figure(
        figsize=(3 * PANEL_WIDTH + 0.5, len(slices) * (panel_height + 0.06) + 1.0 + 0.3 * legend_rows),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01, compress=True),
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(slices), 3, squeeze=False)
    extent = (0.0, width, height, 0.0)
    for row, index in zip(axes, slices, strict=True):
        cut = [np.asarray(a[index][box]) for a in (image, truth, prediction)]
        for panel in row:
            panel.imshow(cut[0], cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        _draw_labels(row[1], cut[1], labels, extent)
        _draw_labels(row[2], cut[2], labels, extent)
        _outline(row[2], cut[1], labels, extent, "white", 0.9)
        row[0].set_ylabel(f"slice {index + 1} of {len(image)}", fontsize=10)
    for panel, name in zip(axes[0], ("Image", "Truth", "Prediction (white: truth)"), strict=True):
        panel.set_title(name, fontsize=12)
    _scale_bar(axes[-1][0], width, height)
    if title:
        figure.suptitle(title, fontsize=13)
    _legend(figure, labels, label_names, scores or {})
    return figure


def choose_slices(labels: np.ndarray, count: int) -> list[int]:
    """Up to `count` slices of `labels [D, H, W]` that show most, in ascending order and well apart.

    Each label counts the same, however small it is: a slice's value is the sum over the labels of the label's area in
    it, relative to the label's largest area. The next slice lies at least a sixth of the labelled range away. Without
    any label it is the middle slice.
    """
    areas = np.stack(
        [(labels == label).sum((1, 2)) for label in np.unique(labels) if label != 0] or [[0] * len(labels)]
    )
    labelled = areas.any(0).nonzero()[0]
    if not len(labelled):
        return [len(labels) // 2]
    value = (areas / np.maximum(1, areas.max(1, keepdims=True))).sum(0)
    apart = max(1, round((labelled[-1] - labelled[0] + 1) / (2 * count)))
    chosen: list[int] = []
    for index in sorted(labelled, key=lambda k: (-value[k], k)):
        if len(chosen) < count and all(abs(index - other) >= apart for other in chosen):
            chosen.append(int(index))
    return sorted(chosen)


def grey_window(image: np.ndarray, labelled: np.ndarray) -> tuple[float, float]:
    """Grey values for black and white: the 10th to 90th percentile of the labelled voxels, widened by once its width.

    (The outer tenths are left out for the gas in a labelled bowel, which would take the contrast from all others.)
    """
    values = image[labelled] if labelled.any() else image
    low, high = (float(v) for v in np.percentile(values, (10, 90)))
    margin = high - low or 1.0
    return low - margin, high + margin


def label_colour(position: int) -> tuple[float, float, float]:
    """Colour of the label at that position of the legend; after the palette follow lighter, then darker shades."""
    red, green, blue = to_rgb(PALETTE[position % len(PALETTE)])
    cycle = position // len(PALETTE) % 3
    if cycle == 1:
        return (red + 1) / 2, (green + 1) / 2, (blue + 1) / 2
    return (red, green, blue) if cycle == 0 else (0.55 * red, 0.55 * green, 0.55 * blue)


def _box(shown: np.ndarray) -> tuple[slice, slice]:
    """The labelled rectangle of all slices with a margin of a fifth of its size on each side."""
    slices = []
    for axis, other in ((1, 2), (2, 1)):
        used = shown.any((0, other)).nonzero()[0]
        size = shown.shape[axis]
        if not len(used):
            slices.append(slice(0, size))
            continue
        margin = max(3, round(0.2 * (used[-1] - used[0] + 1)))
        slices.append(slice(max(0, int(used[0]) - margin), min(size, int(used[-1]) + 1 + margin)))
    return slices[0], slices[1]


def _draw_labels(panel: matplotlib.axes.Axes, cut: np.ndarray, labels: Sequence[int], extent: tuple) -> None:
    colours = np.zeros((*cut.shape, 4))
    for position, label in enumerate(labels):
        colours[cut == label] = (*label_colour(position), 0.55)
    panel.imshow(colours, extent=extent, interpolation="nearest")


def _outline(
    panel: matplotlib.axes.Axes, cut: np.ndarray, labels: Sequence[int], extent: tuple, colour: str, width: float
) -> None:
    """The border of each label along the edges of its pixels."""
    _, right, bottom, _ = extent
    y, x = bottom / cut.shape[0], right / cut.shape[1]
    segments = []
    for label in labels:
        inside = np.pad(cut == label, 1)
        for i, j in zip(*(inside[:-1, 1:-1] != inside[1:, 1:-1]).nonzero(), strict=True):
            segments.append([(j * x, i * y), ((j + 1) * x, i * y)])
        for i, j in zip(*(inside[1:-1, :-1] != inside[1:-1, 1:]).nonzero(), strict=True):
            segments.append([(j * x, i * y), (j * x, (i + 1) * y)])
    panel.add_collection(matplotlib.collections.LineCollection(segments, colors=colour, linewidths=width))


def _scale_bar(panel: matplotlib.axes.Axes, width: float, height: float) -> None:
    length = next((bar for bar in _SCALE_BARS if bar <= width / 4), _SCALE_BARS[-1])
    left, bottom = 0.04 * width, 0.95 * height
    panel.plot([left, left + length], [bottom, bottom], color="white", linewidth=3, solid_capstyle="butt")
    panel.text(left + length / 2, bottom - 0.02 * height, f"{length} mm", color="white", ha="center", va="bottom")


def _legend(figure: Figure, labels: Sequence[int], names: Mapping[int, str], scores: Mapping[int, float]) -> None:
    handles = [
        Patch(
            color=label_colour(position),
            label=f"{names[label]}  Dice {scores[label]:.2f}" if label in scores else names[label],
        )
        for position, label in enumerate(labels)
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=11)
