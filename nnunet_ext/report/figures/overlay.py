"""Segmentations over their image: one slice of a case with its errors, or some slices of it.

Volumes are `[D, H, W]`. In slices, classes are filled and outlined along the edges of their voxels.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from nnunet_ext.files import write_atomically
from nnunet_ext.report.figures.palette import ERRORS, label_colour

Classes = Mapping[tuple[int, ...], str]  # label values that make up a class -> its name; several for a region
Colour = tuple[float, float, float]

# Left, right, top and bottom of a slice across each axis of a volume in LPS.
SIDES = {0: "RLAP", 1: "RLSI", 2: "APSI"}
PANEL = 3.4  # inches
_MARGIN = 0.2  # of what is segmented, on each side
_SCALE_BARS = (200, 100, 50, 20, 10, 5, 2, 1)  # mm


@dataclass(frozen=True)
class WorstSlice:
    """Where a case is most wrong: `axis` and `index` of the slice, its wrong voxels and those of the whole case."""

    axis: int
    index: int
    wrong: int
    wrong_in_case: int


# what is drawn


def error_map(reference: np.ndarray, prediction: np.ndarray, classes: Classes, ignore: int | None) -> np.ndarray:
    """What is wrong where.

    Args:
        reference, prediction: label values `[D, H, W]`.
        classes: label values -> name.
        ignore: label value of the reference where nothing counts.

    Returns:
        `[D, H, W]` uint8: 0 = right or ignored, 1 = a class of the reference is missing, 2 = a class is there that
        should not be, 3 = both, that is one class in the place of another.
    """
    differs = reference != prediction
    if ignore is not None:
        differs &= reference != ignore
    here, there = reference[differs], prediction[differs]
    kinds = np.zeros(here.shape, np.uint8)
    for values in classes:
        true, found = np.isin(here, values), np.isin(there, values)
        kinds[true & ~found] |= 1
        kinds[found & ~true] |= 2
    errors = np.zeros(reference.shape, np.uint8)
    errors[differs] = kinds
    return errors


def coarsest_axis(spacing: Sequence[float]) -> int:
    """The axis of the largest spacing (mm), across which scans are read; the first, if equal."""
    return int(np.argmax(np.round(spacing, 3)))


def worst_slice(errors: np.ndarray, spacing: Sequence[float], otherwise: np.ndarray) -> WorstSlice:
    """The slice with the most wrong voxels, across the axis of the coarsest spacing (mm).

    `errors`: `[D, H, W]`, not zero where wrong. Without any error it is the slice with the most of `otherwise`.
    """
    axis = coarsest_axis(spacing)
    others = tuple(a for a in range(errors.ndim) if a != axis)
    counts = np.count_nonzero(errors, axis=others)
    index = int(np.argmax(counts if counts.any() else np.count_nonzero(otherwise, axis=others)))
    return WorstSlice(axis, index, int(counts[index]), int(counts.sum()))


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


def window_of(content: np.ndarray) -> tuple[slice, ...]:
    """The box of a plane or volume with anything in it, and a margin; all of it where there is nothing."""
    window = []
    for axis, size in enumerate(content.shape):
        used = np.flatnonzero(content.any(axis=tuple(a for a in range(content.ndim) if a != axis)))
        if not len(used):
            window.append(slice(0, size))
            continue
        margin = max(4, round(_MARGIN * (used[-1] - used[0] + 1)))
        window.append(slice(max(0, int(used[0]) - margin), min(size, int(used[-1]) + 1 + margin)))
    return tuple(window)


def plane_aspect(spacing: Sequence[float], axis: int) -> float:
    """Height of a voxel over its width in slices across `axis`; `spacing` in mm."""
    height_mm, width_mm = (step for other, step in enumerate(spacing) if other != axis)
    return height_mm / width_mm


def plane_origin(axis: int) -> Literal["upper", "lower"]:
    """Slices across the first axis are drawn from the top down, the others stand on their feet."""
    return "upper" if axis == 0 else "lower"


# how it is drawn


def draw_grey(ax: Axes, grey: np.ndarray, low: float, high: float, spacing: Sequence[float], axis: int) -> None:
    """A plane across `axis` of a volume of that spacing, without frame; labels may be drawn over it."""
    ax.imshow(
        grey, cmap="gray", vmin=low, vmax=high, aspect=plane_aspect(spacing, axis), origin=plane_origin(axis),
        interpolation="nearest",
    )  # fmt: skip
    ax.set(xticks=[], yticks=[])
    ax.autoscale(False)  # outlines may touch the edge
    ax.spines[:].set_visible(False)


def draw_classes(ax: Axes, plane: np.ndarray, classes: Classes) -> dict[str, Colour]:
    """Fills and outlines each class, regions one over the other; returns name -> colour of those that are there."""
    seen = {}
    for position, (values, name) in enumerate(classes.items()):
        mask = np.isin(plane, values)
        if not mask.any():
            continue
        colour = label_colour(position)
        filled = np.zeros((*plane.shape, 4))
        filled[mask] = (*colour, 0.35)
        ax.imshow(filled, aspect=ax.get_aspect(), origin=ax.images[0].origin, interpolation="nearest")
        draw_outline(ax, mask, colour, 1.5)
        seen[name] = colour
    return seen


def draw_outline(ax: Axes, mask: np.ndarray, colour: str | Colour, width: float) -> None:
    """The border of a mask along the edges of its voxels."""
    inside = np.pad(mask, 1)
    i, j = (inside[:-1, 1:-1] != inside[1:, 1:-1]).nonzero()  # edges between rows
    level = np.stack([np.stack([j - 0.5, i - 0.5], -1), np.stack([j + 0.5, i - 0.5], -1)], 1)
    i, j = (inside[1:-1, :-1] != inside[1:-1, 1:]).nonzero()  # and between columns
    upright = np.stack([np.stack([j - 0.5, i - 0.5], -1), np.stack([j - 0.5, i + 0.5], -1)], 1)
    ax.add_collection(LineCollection(list(np.concatenate([level, upright])), colors=[colour], linewidths=width))


def draw_errors(ax: Axes, plane: np.ndarray) -> None:
    """Colours what is wrong in a plane of an `error_map`, over its image."""
    colours = ListedColormap([colour for _, colour in ERRORS.values()])
    wrong = np.ma.masked_equal(plane, 0)
    how: dict[str, Any] = {"aspect": ax.get_aspect(), "origin": ax.images[0].origin, "interpolation": "nearest"}
    ax.imshow(wrong, cmap=colours, vmin=0.5, vmax=3.5, **how)


def name_sides(ax: Axes, sides: str) -> None:
    """Letters at the middle of each side: left, right, top, bottom."""
    places = (
        (0.01, 0.5, "left", "center"),
        (0.99, 0.5, "right", "center"),
        (0.5, 0.99, "center", "top"),
        (0.5, 0.01, "center", "bottom"),
    )
    for letter, (x, y, horizontal, vertical) in zip(sides, places, strict=True):
        ax.text(
            x, y, letter, transform=ax.transAxes, ha=horizontal, va=vertical, color="white", fontsize=9,
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip


def draw_scale_bar(ax: Axes, mm: float) -> None:
    """A bar of a round length near the lower left corner; `mm`: width of a voxel."""
    width = abs(float(np.diff(ax.get_xlim())[0]))
    length = next((bar for bar in _SCALE_BARS if bar <= mm * width / 4), _SCALE_BARS[-1])
    share = length / (mm * width)
    ax.plot(
        [0.04, 0.04 + share], [0.05, 0.05], transform=ax.transAxes, color="white", linewidth=3,
        solid_capstyle="butt", path_effects=[withStroke(linewidth=5, foreground="black")],
    )  # fmt: skip
    ax.text(
        0.04 + share / 2, 0.07, f"{length} mm", transform=ax.transAxes, color="white", ha="center", va="bottom",
        fontsize=9, path_effects=[withStroke(linewidth=2, foreground="black")],
    )  # fmt: skip


# figures


def case_figure(
    image: np.ndarray | None,
    reference: np.ndarray,
    prediction: np.ndarray,
    errors: np.ndarray,
    where: WorstSlice,
    spacing: Sequence[float],
    classes: Classes,
    in_lps: bool = False,
) -> Figure:
    """Reference, prediction and errors in one slice, cut to what is segmented there.

    Args:
        image: grey values `[D, H, W]`, or None to draw the labels alone.
        reference, prediction, errors: `[D, H, W]`; see `error_map`.
        where: the slice.
        spacing: mm per voxel along each axis.
        classes: label values -> name.
        in_lps: the axes are feet to head, front to back, right to left; the sides are then named (R, L, A, P, S, I).
    """
    labelled = np.isin(reference, [v for values in classes for v in values]) | (prediction > 0)
    window = window_of(np.take(labelled, where.index, where.axis))
    planes = [np.take(a, where.index, where.axis)[window] for a in (reference, prediction, errors)]
    height, width = planes[0].shape
    panel_height = float(np.clip(PANEL * plane_aspect(spacing, where.axis) * height / width, 1.5, 5.0))
    figure = Figure(figsize=(3 * PANEL + 0.2, panel_height + 0.8), layout="constrained")
    axes = figure.subplots(1, 3)
    low, high = (0.0, 1.0) if image is None else grey_window(image, labelled)
    grey = np.full((height, width), 0.9) if image is None else np.take(image, where.index, where.axis)[window]
    for ax, title in zip(axes, ("Reference", "Prediction", "Errors"), strict=True):
        draw_grey(ax, grey, low, high, spacing, where.axis)
        ax.set_title(title, fontsize=11)
        if in_lps:
            name_sides(ax, SIDES[where.axis])
    seen = {**draw_classes(axes[0], planes[0], classes), **draw_classes(axes[1], planes[1], classes)}
    draw_errors(axes[2], planes[2])
    wrong = {name: colour for kind, (name, colour) in ERRORS.items() if (planes[2] == kind).any()}
    ordered = {name: seen[name] for name in classes.values() if name in seen}
    handles = [Patch(color=colour, label=name) for name, colour in ordered.items()]
    handles += [Patch(color=colour, label=name) for name, colour in wrong.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def slices_png(path: str | os.PathLike, *volumes: np.ndarray, **how: Any) -> None:
    """Writes what `slices_figure` makes of the same arguments to a PNG."""
    figure = slices_figure(*volumes, **how)
    with matplotlib.rc_context({"savefig.facecolor": "white"}):
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130, bbox_inches="tight"))


def slices_figure(
    image: np.ndarray,
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing: Sequence[float],
    classes: Classes,
    in_lps: bool = False,
    title: str = "",
    scores: Mapping[str, float] | None = None,
    rows: int = 3,
    axis: int | None = None,
) -> Figure:
    """Some slices of one case: image | reference | prediction with the reference's outline.

    Args:
        image: grey values `[D, H, W]`.
        reference, prediction: label maps `[D, H, W]`.
        spacing: of the three axes in mm; panels have the true aspect and a scale bar.
        classes: label values -> name for the legend; other labels are left out.
        in_lps: the axes are feet to head, front to back, right to left; the sides are then named.
        title: above the panels.
        scores: name of a class -> Dice, added to the legend.
        rows: number of slices, those that show most of the labels.
        axis: the axis that is cut; by default the one with the largest spacing.

    Raises:
        ValueError: shapes differ, or they are not three-dimensional.
    """
    if image.ndim != 3 or not image.shape == reference.shape == prediction.shape or len(spacing) != 3:
        raise ValueError(f"need three volumes [D, H, W], found {image.shape}, {reference.shape}, {prediction.shape}")
    axis = coarsest_axis(spacing) if axis is None else axis
    image, reference, prediction = (np.moveaxis(a, axis, 0) for a in (image, reference, prediction))
    values = [value for several in classes for value in several]
    labelled = np.isin(reference, values) | np.isin(prediction, values)
    window = window_of(np.any(labelled, axis=0))
    slices = choose_slices(np.where(np.isin(reference, values), reference, 0), rows)
    low, high = grey_window(image, labelled)

    height, width = (part.stop - part.start for part in window)
    panel_height = PANEL * plane_aspect(spacing, axis) * height / width
    figure = Figure(
        figsize=(3 * PANEL + 0.5, len(slices) * (panel_height + 0.06) + 1.0 + 0.3 * -(-len(classes) // 4)),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01, compress=True),
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(slices), 3, squeeze=False)
    for row, index in zip(axes, slices, strict=True):
        grey, true, found = (a[index][window] for a in (image, reference, prediction))
        for ax in row:
            draw_grey(ax, grey, low, high, spacing, axis)
            if in_lps:
                name_sides(ax, SIDES[axis])
        draw_classes(row[1], true, classes)
        draw_classes(row[2], found, classes)
        for several in classes:
            draw_outline(row[2], np.isin(true, several), "white", 0.9)
        row[0].set_ylabel(f"slice {index + 1} of {len(image)}", fontsize=10)
    for ax, name in zip(axes[0], ("Image", "Reference", "Prediction (white: reference)"), strict=True):
        ax.set_title(name, fontsize=12)
    draw_scale_bar(axes[-1][0], [step for k, step in enumerate(spacing) if k != axis][1])
    if title:
        figure.suptitle(title, fontsize=13)
    handles = [
        Patch(color=label_colour(k), label=f"{name}  Dice {scores[name]:.2f}" if scores and name in scores else name)
        for k, name in enumerate(classes.values())
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=11)
    return figure
