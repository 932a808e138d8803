"""Slices in their order, with every reason why they are not one regular volume."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_ext.dicom.slices import OF_A_VOLUME, Slice
from nnunet_ext.errors import ConfigurationError

SAME_ANGLE = 1e-4  # between components of unit vectors; moves a point 0.5 m away by 0.05 mm
SAME_PLACE = 1e-3  # mm
# Positions are often written with two decimals, whose rounding moves a distance by 0.01 mm.
REGULAR_MM, REGULAR = 0.01, 0.01  # the larger one of mm and share of the spacing
STRAIGHT = 0.1  # of a pixel: no slice lies further beside the normal
SHOWN = 4  # files in a message


@dataclass(frozen=True)
class Geometry:
    """Of a volume `[X, Y, Z]`: as SimpleITK has it, in mm and LPS; X along a row, Z along the slice normal."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]  # nine, row by row; its columns are the axes X, Y, Z


def ordered(slices: Sequence[Slice]) -> tuple[list[Slice], Geometry]:
    """The slices of one series in the order of their positions along the normal, and the volume that they are.

    Raises:
        ConfigurationError: they are not one regular volume; the message names files and positions.
    """
    _check_each(slices)
    _check_alike(slices)
    _check_instances(slices)
    axes = _axes(slices[0])
    along = np.array([one.position for one in slices]) @ axes[2]
    order = np.argsort(along, kind="stable")
    slices, along = [slices[n] for n in order], along[order]
    _check_once(slices, along)
    if len(slices) == 1:
        step = slices[0].thickness or 0.0
        if not step > 0:
            raise ConfigurationError(
                f"a single slice without SliceThickness ({slices[0].path.name}); a volume has several, or one with a "
                "thickness"
            )
    else:
        _check_gaps(slices, along)
        step = float(along[-1] - along[0]) / (len(slices) - 1)
        _check_straight(slices, along, axes[2])
    rows, columns = slices[0].size
    first = slices[0]
    return slices, Geometry(
        (columns, rows, len(slices)),
        (first.spacing[1], first.spacing[0], step),
        (first.position[0], first.position[1], first.position[2]),
        tuple(float(value) for value in axes.T.ravel()),
    )


def _check_each(slices: Sequence[Slice]) -> None:
    by_problem = defaultdict(list)
    for one in slices:
        if one.problem:
            by_problem[one.problem].append(one)
    if by_problem:
        raise ConfigurationError("; ".join(f"{what} ({_files(those)})" for what, those in by_problem.items()))


def _check_alike(slices: Sequence[Slice]) -> None:
    """One grid: nothing of what must be the same for all slices differs."""
    first = slices[0]

    def close(name: str, tolerance: float) -> Callable[[Slice], bool]:
        return lambda one: bool(np.abs(np.subtract(getattr(one, name), getattr(first, name))).max() <= tolerance)

    alike: dict[str, tuple[Callable[[Slice], bool], Callable[[Slice], Any]]] = {
        "studies": (lambda one: one.study == first.study, lambda one: one.study),
        "modalities": (lambda one: one.modality == first.modality, lambda one: one.modality),
        "frames of reference": (lambda one: one.frame == first.frame, lambda one: one.frame),
        "units": (lambda one: one.unit == first.unit, lambda one: one.unit),
        "sizes (rows, columns)": (lambda one: one.size == first.size, lambda one: one.size),
        "orientations": (close("orientation", SAME_ANGLE), lambda one: one.orientation),
        "pixel spacings": (close("spacing", SAME_ANGLE * min(first.spacing)), lambda one: one.spacing),
    }
    for name, (same, value) in alike.items():
        others = [one for one in slices if not same(one)]
        if others:
            those = [one for one in slices if same(one)]
            raise ConfigurationError(
                f"mixed {name}: {value(first)} ({_files(those)}), {value(others[0])} ({_files(others)}); one series "
                "with one grid is expected"
            )


def _check_instances(slices: Sequence[Slice]) -> None:
    files = defaultdict(list)
    for one in slices:
        files[one.instance].append(one)
    twice = [those for those in files.values() if len(those) > 1]
    if twice:
        pairs = "; ".join(" and ".join(str(one.path) for one in those) for those in twice[:SHOWN])
        raise ConfigurationError(f"the same SOPInstanceUID in several files: {pairs}. Keep one of them")


def _axes(one: Slice) -> np.ndarray:
    """Unit vectors `[3, 3]`: along a row, along a column, along the normal."""
    row, column = np.array(one.orientation[:3]), np.array(one.orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > 1e-3 or abs(row @ column) > 1e-3:
        raise ConfigurationError(
            f"an ImageOrientationPatient of which two perpendicular unit vectors are expected, found {one.orientation} "
            f"({one.path.name})"
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)])


def _check_once(slices: Sequence[Slice], along: np.ndarray) -> None:
    """No two slices at one position; what several volumes of one series are is said as such."""
    starts = np.flatnonzero(np.diff(along, prepend=-np.inf) > SAME_PLACE)
    counts = np.diff(np.append(starts, len(along)))
    if counts.max() == 1:
        return
    start = int(starts[counts.argmax()])
    group = slices[start : start + int(counts.max())]
    differ = [
        f"{name} ({', '.join(sorted(values))})"
        for name, values in zip(OF_A_VOLUME, map(set, zip(*(one.volume for one in group), strict=True)), strict=True)
        if len(values) > 1
    ]
    differing = f"They differ in {' and '.join(differ)}" if differ else "No element of the header tells them apart"
    if (counts == counts[0]).all():
        raise ConfigurationError(
            f"it holds {counts[0]} volumes at the same {len(counts)} positions. {differing}. Give each volume a series "
            f"or folder of its own ({_files(group)} share a position)"
        )
    repeated = [(s, n) for s, n in zip(starts.tolist(), counts.tolist(), strict=True) if n > 1]
    text = "; ".join(f"{along[s]:.3f} mm ({_files(slices[s : s + n])})" for s, n in repeated[:SHOWN])
    raise ConfigurationError(
        f"several slices at {len(repeated)} of {len(counts)} positions along the normal: {text}. {differing}. Keep one "
        "slice a position"
    )


def _check_gaps(slices: Sequence[Slice], along: np.ndarray) -> None:
    """Positions are equally far apart, each measured against the whole, so that small errors cannot add up."""
    gaps = np.diff(along)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower median: a gap among three slices is the wide one
    tolerance = max(REGULAR_MM, REGULAR * usual)
    wide = [n for n in range(len(gaps)) if gaps[n] > 1.5 * usual]
    regular = along[0] + np.arange(len(along)) * (along[-1] - along[0]) / (len(along) - 1)
    if np.abs(along - regular).max() <= tolerance * (1 + 1e-6):
        return
    if wide:
        text = "; ".join(_between(slices, along, n) for n in wide[:SHOWN])
        raise ConfigurationError(f"missing slices: neighbours are {usual:.3f} mm apart, but {text}")
    worst = int(np.abs(gaps - usual).argmax())
    raise ConfigurationError(
        f"irregular distances of slices, from {gaps.min():.3f} to {gaps.max():.3f} mm (tolerance {tolerance:.3f} mm), "
        f"such as {_between(slices, along, worst)}. Resample the series to equal distances first"
    )


def _between(slices: Sequence[Slice], along: np.ndarray, n: int) -> str:
    return (
        f"{along[n + 1] - along[n]:.3f} mm between {slices[n].path.name} at {along[n]:.3f} mm and "
        f"{slices[n + 1].path.name} at {along[n + 1]:.3f} mm along the normal"
    )


def _check_straight(slices: Sequence[Slice], along: np.ndarray, normal: np.ndarray) -> None:
    """Slices lie above one another, along the normal; those of a tilted gantry do not."""
    places = np.array([one.position for one in slices])
    beside = np.linalg.norm(places - places[0] - np.outer(along - along[0], normal), axis=1)
    if beside.max() <= STRAIGHT * min(slices[0].spacing):
        return
    worst = int(beside.argmax())
    angle = np.degrees(np.arctan2(beside[worst], along[worst] - along[0]))
    raise ConfigurationError(
        f"slices that are not above one another, as with a tilted gantry: {slices[worst].path.name} lies "
        f"{beside[worst]:.3f} mm beside the normal through {slices[0].path.name}, {angle:.2f} degrees. Correct the "
        "tilt by resampling first"
    )


def _files(slices: Sequence[Slice]) -> str:
    names = ", ".join(one.path.name for one in slices[:SHOWN])
    return names + (f" and {len(slices) - SHOWN} more" if len(slices) > SHOWN else "")
