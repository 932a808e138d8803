"""A segmented case beside its reference, in the slice with the most wrong voxels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from nnunet_ext.report.figures.overlay import ERRORS, grey_window, label_colour

Classes = Mapping[tuple[int, ...], str]
Colour = tuple[float, float, float]

# Left, right, top and bottom of a slice across each axis of a volume in LPS.
SIDES = {0: "RLAP", 1: "RLSI", 2: "APSI"}
_MARGIN = 0.1
PANEL = 3.4  # inches


@dataclass(frozen=True)
class WorstSlice:
    """Where a case is most wrong: `axis` and `index` of the slice, its wrong voxels and those of the whole case."""

    axis: int
    index: int
    wrong: int
    wrong_in_case: int


def error_map(reference: np.ndarray, prediction: np.ndarray, classes: Classes, ignore: int | None) -> np.ndarray:
    """What is wrong where.

    Args:
        reference, prediction: label values `[D, H, W]`.
        classes: label values that make up a class -> its name; several values for a region.
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


def worst_slice(errors: np.ndarray, spacing: Sequence[float], otherwise: np.ndarray) -> WorstSlice:
    """The slice with the most wrong voxels, across the axis of the coarsest spacing (mm), in which scans are read.

    `errors`: `[D, H, W]`, not zero where wrong. Without any error it is the slice with the most of `otherwise`.
    """
    axis = int(np.argmax(np.round(spacing, 3)))
    others = tuple(a for a in range(errors.ndim) if a != axis)
    counts = np.count_nonzero(errors, axis=others)
    index = int(np.argmax(counts if counts.any() else np.count_nonzero(otherwise, axis=others)))
    return WorstSlice(axis, index, int(counts[index]), int(counts.sum()))


def plane_aspect(spacing: Sequence[float], axis: int) -> float:
    """Height of a voxel over its width in slices across `axis`; `spacing` in mm."""
    height_mm, width_mm = (step for other, step in enumerate(spacing) if other != axis)
    return height_mm / width_mm


def plane_origin(axis: int) -> Literal["upper", "lower"]:
    """Slices across the first axis are drawn from the top down, the others stand on their feet."""
    return "upper" if axis == 0 else "lower"


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
        classes: as for `error_map`.
        in_lps: the axes are feet to head, front to back, right to left; the sides are then named (R, L, A, P, S, I).
    """
    labelled = np.isin(reference, [v for values in classes for v in values]) | (prediction > 0)
    content = np.take(labelled, where.index, where.axis)
    window = window_of(content)
    planes = [np.take(a, where.index, where.axis)[window] for a in (reference, prediction, errors)]
    aspect = plane_aspect(spacing, where.axis)
    height, width = planes[0].shape
    panel_height = float(np.clip(PANEL * aspect * height / width, 1.5, 5.0))
    figure = Figure(figsize=(3 * PANEL + 0.2, panel_height + 0.8), layout="constrained")
    axes = figure.subplots(1, 3)
    origin = plane_origin(where.axis)
    low, high = (0.0, 1.0) if image is None else grey_window(image, labelled)
    grey = np.full((height, width), 0.9) if image is None else np.take(image, where.index, where.axis)[window]
    for ax, title in zip(axes, ("Reference", "Prediction", "Errors"), strict=True):
        ax.imshow(grey, cmap="gray", vmin=low, vmax=high, aspect=aspect, origin=origin, interpolation="nearest")
        ax.set_title(title, fontsize=11)
        ax.set(xticks=[], yticks=[])
        ax.autoscale(False)  # outlines may touch the edge
        ax.spines[:].set_visible(False)
        if in_lps:
            name_sides(ax, SIDES[where.axis])
    seen = {**draw_classes(axes[0], planes[0], classes), **draw_classes(axes[1], planes[1], classes)}
    draw_errors(axes[2], planes[2], aspect=aspect, origin=origin)
    wrong = {name: colour for kind, (name, colour) in ERRORS.items() if (planes[2] == kind).any()}
    ordered = {name: seen[name] for name in classes.values() if name in seen}
    handles = [Patch(color=colour, label=name) for name, colour in ordered.items()]
    handles += [Patch(color=colour, label=name) for name, colour in wrong.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def draw_errors(ax: Axes, plane: np.ndarray, **how: Any) -> None:
    """Colours what is wrong in a plane of an `error_map`; `how` is for `imshow`."""
    colours = ListedColormap([colour for _, colour in ERRORS.values()])
    ax.imshow(np.ma.masked_equal(plane, 0), cmap=colours, vmin=0.5, vmax=3.5, interpolation="nearest", **how)


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


def window_of(content: np.ndarray) -> tuple[slice, ...]:
    """The part of a plane with anything in it, and a margin; all of it where there is nothing."""
    window = []
    for axis, size in enumerate(content.shape):
        used = np.flatnonzero(content.any(axis=1 - axis))
        margin = max(4, round(_MARGIN * size))
        window.append(slice(max(0, used[0] - margin), used[-1] + margin + 1) if len(used) else slice(0, size))
    return tuple(window)


def draw_classes(ax: Axes, plane: np.ndarray, classes: Classes) -> dict[str, Colour]:
    """Fills and outlines each class, regions one over the other; returns name -> colour of those that are there."""
    seen = {}
    for position, (values, name) in enumerate(classes.items()):
        mask = np.isin(plane, values)
        if not mask.any():
            continue
        colour = label_colour(position)
        padded = np.pad(mask.astype(float), 1)  # so that the outline closes at the edge of the picture
        y, x = (np.arange(-1, size + 1) for size in mask.shape)
        ax.contourf(x, y, padded, levels=[0.5, 2], colors=[colour], alpha=0.35)
        ax.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=1.5)
        seen[name] = colour
    return seen
