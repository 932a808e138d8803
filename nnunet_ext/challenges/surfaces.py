"""Surfaces of masks and the distances between them, in both definitions that challenges use.

"voxels": the surface is the set of boundary voxels, those with at least one face neighbour outside the mask, where
outside the image counts as outside the mask. Distances are between voxel centres. This is what MONAI's
`compute_hausdorff_distance` takes, and its `compute_surface_dice` with `use_subvoxels=False`.

"elements": the surface consists of the elements that marching cubes puts into every cell between 2x2x2 voxel centres
(2x2 pixels in 2D), each weighted with its area in mm^2 (length in mm). Distances are between the middles of cells. This
is Nikolov et al., arXiv 1809.04430, as in github.com/google-deepmind/surface-distance, which MSD, KiTS21, KiTS23, FLARE
and TotalSegmentator score with.

Masks are boolean `[X, Y, Z]` (or `[X, Y]`), spacing is in mm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import scipy  # its parts are imported when they are first used

Box = tuple[slice, ...]
DENSE = 0.1  # share of the box
LEAF = 32  # points in a leaf of the search tree; a third faster than scipy's 10


@dataclass(frozen=True)
class Distances:
    """Distance (mm) of each part of one surface to the other surface, and what each part weighs."""

    to_reference: np.ndarray
    to_prediction: np.ndarray
    prediction_weights: np.ndarray | None = None  # None: all alike
    reference_weights: np.ndarray | None = None

    @property
    def both(self) -> np.ndarray:
        """Both directions together."""
        return np.concatenate([self.to_reference, self.to_prediction])

    @property
    def weights(self) -> np.ndarray | None:
        """Of `both`."""
        if self.prediction_weights is None or self.reference_weights is None:
            return None
        return np.concatenate([self.prediction_weights, self.reference_weights])


def voxel_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], connectivity: int = 1
) -> Distances:
    """Distances between the boundary voxels of two masks, neither of them empty."""
    ours, theirs = (np.flatnonzero(boundary(mask, connectivity)) for mask in (prediction, reference))
    shape = prediction.shape
    return Distances(_nearest(ours, theirs, shape, spacing), _nearest(theirs, ours, shape, spacing))


def element_distances(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> Distances:
    """Distances between the surface elements of two masks, neither of them empty, with their areas."""
    areas = element_areas(tuple(float(step) for step in spacing))
    (ours, our_areas), (theirs, their_areas) = (_elements(mask, areas) for mask in (prediction, reference))
    shape = tuple(n + 1 for n in prediction.shape)
    to_reference, to_prediction = _nearest(ours, theirs, shape, spacing), _nearest(theirs, ours, shape, spacing)
    return Distances(to_reference, to_prediction, our_areas, their_areas)


def _elements(mask: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the cells with a surface, and its area in each."""
    codes = cells(mask).ravel()
    places = np.flatnonzero((codes > 0) & (codes < len(areas) - 1))
    return places, areas[codes[places]]


def boundary(mask: np.ndarray, connectivity: int = 1) -> np.ndarray:
    """Boundary voxels of a mask: 1 looks at face neighbours, 2 at face and edge neighbours."""
    if connectivity != 1:
        structure = scipy.ndimage.generate_binary_structure(mask.ndim, connectivity)
        return mask & ~scipy.ndimage.binary_erosion(mask, structure)
    inner = mask.copy()
    for axis in range(mask.ndim):
        below, above, first, last = ([slice(None)] * mask.ndim for _ in range(4))
        below[axis], above[axis], first[axis], last[axis] = slice(None, -1), slice(1, None), slice(1), slice(-1, None)
        inner[tuple(above)] &= mask[tuple(below)]
        inner[tuple(below)] &= mask[tuple(above)]
        inner[tuple(first)] = inner[tuple(last)] = False
    return mask & ~inner


def cells(mask: np.ndarray) -> np.ndarray:
    """For each cell between voxel centres, also beyond the image's edges, which of its corners are in the mask.

    Returns:
        uint8, each axis one longer than the mask's; bit `k` stands for the `k`-th corner, the last axis counting
        fastest.
    """
    codes = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for bit, corner in enumerate(product((0, 1), repeat=mask.ndim)):
        # The cell at i has the voxels i - 1 and i; that at the corner c is i - 1 + c.
        place = tuple(slice(1 - c, n + 1 - c) for c, n in zip(corner, mask.shape, strict=True))
        codes[place] |= mask.astype(np.uint8) << bit
    return codes


@cache
def element_areas(spacing: tuple[float, ...]) -> np.ndarray:
    """Area (mm^2) of the surface in a cell, or length (mm) in 2D, by the code of `cells`; 0 where there is none."""
    normals = _normals(len(spacing))
    # A triangle's area vector has along each axis the area that it shows there; the spacing stretches that area.
    scale = np.prod(spacing) / np.array(spacing)
    return np.array([np.linalg.norm(vectors * scale, axis=1).sum() for vectors in normals])


@cache
def _normals(dimensions: int) -> list[np.ndarray]:
    """The area vectors of the triangles (3D), or vectors across the segments (2D), in a cell of edge 1 by its code.

    Cells with more corners inside than outside have the surface of their complement.
    """
    corners = 2**dimensions
    found = []
    for code in range(2**corners):
        least = code if code.bit_count() <= corners // 2 else 2**corners - 1 - code
        inside = np.array([least >> bit & 1 for bit in range(corners)], bool).reshape((2,) * dimensions)
        empty = np.zeros((0, dimensions))
        found.append((_triangles(inside) if dimensions == 3 else _segments(inside)) if least else empty)
    return found


def _triangles(inside: np.ndarray) -> np.ndarray:
    from skimage.measure import marching_cubes

    points, faces, _, _ = marching_cubes(inside.astype(np.float32), 0.5, method="lorensen", allow_degenerate=False)
    first, second, third = np.moveaxis(points.astype(float)[faces], 1, 0)
    return np.cross(second - first, third - first) / 2


def _segments(inside: np.ndarray) -> np.ndarray:
    """Half diagonals that cut off single corners, or a middle line between two neighbours."""
    if inside.sum() == 2 and not inside[0, 0] == inside[1, 1]:
        along = 0 if inside[0, 0] == inside[1, 0] else 1
        return np.eye(2)[[1 - along]]
    return np.full((int(inside.sum()), 2), 0.5)


def _nearest(origin: np.ndarray, target: np.ndarray, shape: tuple[int, ...], spacing: Sequence[float]) -> np.ndarray:
    """Distance (mm) of each place of `origin` to the nearest of `target`; both are ascending flat indices.

    A tree of the surface's points needs no distances between them, as a transform of the whole box does, which is
    faster where the surface fills much of the box, as that of noise.
    """
    distances = np.zeros(len(origin))
    apart = ~np.isin(origin, target, assume_unique=True)
    if len(target) > DENSE * math.prod(shape):
        elsewhere = np.ones(shape, bool)
        elsewhere.ravel()[target] = False
        found = scipy.ndimage.distance_transform_edt(elsewhere, sampling=spacing).ravel()
        distances[apart] = found[origin[apart]]
    elif apart.any():
        tree = scipy.spatial.KDTree(_points(target, shape, spacing), leafsize=LEAF)
        distances[apart] = tree.query(_points(origin[apart], shape, spacing))[0]
    return distances


def _points(places: np.ndarray, shape: tuple[int, ...], spacing: Sequence[float]) -> np.ndarray:
    """Flat indices as points in mm `[N, axes]`."""
    return np.stack(np.unravel_index(places, shape), 1) * np.asarray(spacing, float)


def union_box(*masks: np.ndarray) -> Box:
    """The smallest box that holds all true voxels of masks of one shape; an empty box if there are none."""
    shape = masks[0].shape
    spans = []
    for axis in range(len(shape)):
        others = tuple(k for k in range(len(shape)) if k != axis)
        used = np.flatnonzero(np.logical_or.reduce([mask.any(axis=others) for mask in masks]))
        spans.append(slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0))
    return tuple(spans)
