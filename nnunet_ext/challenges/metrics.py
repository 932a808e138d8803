"""Overlap and surface distances of two masks. Masks are boolean `[X, Y, Z]` (or `[X, Y]`), spacing is in mm.

The surface of a mask is its set of boundary voxels: those with at least one face neighbour outside the mask, where
outside the image counts as outside the mask. Distances are between voxel centres and exact. These are the definitions
of MONAI's `compute_hausdorff_distance` and of its `compute_surface_dice` with `use_subvoxels=False`; they count
boundary voxels, not areas of surface elements.

Formulas: Dice 1945; Hausdorff distance and its 95th percentile as in Huttenlocher et al., doi 10.1109/34.232073;
normalized surface Dice (NSD) of Nikolov et al., arXiv 1809.04430; average, root mean square and maximum symmetric
surface distance of Heimann et al., doi 10.1109/TMI.2009.2013851.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported when they are first used

from nnunet_ext.challenges.facts import Conventions
from nnunet_ext.errors import ConfigurationError

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Pair:
    """A predicted and a reference mask, cropped to the box that holds both, and what measures need besides.

    Attributes:
        prediction, reference: boolean, same shape.
        spacing: mm along each axis.
        image_shape: of the image before cropping.
        tolerance: of the NSD, mm.
        conventions: for empty masks and the percentile.
    """

    prediction: np.ndarray
    reference: np.ndarray
    spacing: tuple[float, ...]
    image_shape: tuple[int, ...]
    tolerance: float = 1.0
    conventions: Conventions = Conventions()


@dataclass(frozen=True)
class Distances:
    """Distance (mm) of each boundary voxel of one mask to the nearest boundary voxel of the other."""

    to_reference: np.ndarray
    to_prediction: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """Both directions together."""
        return np.concatenate([self.to_reference, self.to_prediction])


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


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], connectivity: int = 1
) -> Distances:
    """Distances between the surfaces of two masks, neither of them empty."""
    ours, theirs = boundary(prediction, connectivity), boundary(reference, connectivity)
    return Distances(_nearest(ours, theirs, spacing), _nearest(theirs, ours, spacing))


def _nearest(origin: np.ndarray, target: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance of each voxel of `origin` to the nearest of `target`, mm; those that are in both come last, with 0."""
    apart = origin & ~target
    distances = np.zeros(np.count_nonzero(origin))
    here = np.argwhere(apart) * spacing
    if len(here):
        # A tree of the boundary's points needs no distances between them, as a transform of the whole box does.
        distances[: len(here)] = scipy.spatial.KDTree(np.argwhere(target) * spacing).query(here)[0]
    return distances


def union_box(*masks: np.ndarray) -> Box:
    """The smallest box that holds all true voxels of masks of one shape; an empty box if there are none."""
    shape = masks[0].shape
    spans = []
    for axis in range(len(shape)):
        others = tuple(k for k in range(len(shape)) if k != axis)
        used = np.flatnonzero(np.logical_or.reduce([mask.any(axis=others) for mask in masks]))
        spans.append(slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0))
    return tuple(spans)


def dice(pair: Pair) -> float:
    """2 |A and B| / (|A| + |B|)."""
    total = np.count_nonzero(pair.prediction) + np.count_nonzero(pair.reference)
    return 2 * np.count_nonzero(pair.prediction & pair.reference) / total


def sensitivity(pair: Pair) -> float:
    """Share of the reference that was found; 0 where the reference alone is empty, as BraTS counts it."""
    total = np.count_nonzero(pair.reference)
    return np.count_nonzero(pair.prediction & pair.reference) / total if total else 0.0


def specificity(pair: Pair) -> float:
    """Share of the voxels outside the reference that were left out; over the whole image."""
    outside = math.prod(pair.image_shape) - np.count_nonzero(pair.reference)
    wrong = np.count_nonzero(pair.prediction & ~pair.reference)
    return (outside - wrong) / outside if outside else 1.0


def percentile_distance(distances: Distances, percent: float, conventions: Conventions) -> float:
    """The Hausdorff distance at a percentile, mm; linear between ranks."""
    if conventions.hausdorff == "pooled":
        return float(np.percentile(distances.both, percent))
    return float(max(np.percentile(d, percent) for d in (distances.to_reference, distances.to_prediction)))


def surface_dice(distances: Distances, tolerance: float) -> float:
    """NSD: share of both surfaces that lies within `tolerance` mm of the other."""
    return float(np.count_nonzero(distances.both <= tolerance) / distances.both.size)


def mean_distance(distances: Distances) -> float:
    """Average symmetric surface distance, mm."""
    return float(distances.both.mean())


def root_mean_square_distance(distances: Distances) -> float:
    """Root mean square symmetric surface distance, mm."""
    return float(np.sqrt((distances.both**2).mean()))


@dataclass(frozen=True)
class Measure:
    """A number of a pair of masks.

    Attributes:
        text: for tables and figures.
        better: "higher" or "lower".
        overlap: computes it from the masks; defined where one mask is empty.
        surface: computes it from surface distances; not defined where a mask is empty.
        perfect: its value for equal masks.
        is_distance: it is in mm, and has a convention for one empty mask; other surface measures are 0 there.
    """

    text: str
    better: str
    perfect: float
    overlap: Callable[[Pair], float] | None = None
    surface: Callable[[Distances, Pair], float] | None = None
    is_distance: bool = False


MEASURES: Mapping[str, Measure] = {
    "dice": Measure("Dice", "higher", 1.0, overlap=dice),
    "nsd": Measure("NSD", "higher", 1.0, surface=lambda d, pair: surface_dice(d, pair.tolerance)),
    "hd95": Measure(
        "HD95 (mm)",
        "lower",
        0.0,
        surface=lambda d, pair: percentile_distance(d, 95, pair.conventions),
        is_distance=True,
    ),
    "hausdorff": Measure(
        "Hausdorff distance (mm)",
        "lower",
        0.0,
        surface=lambda d, pair: percentile_distance(d, 100, pair.conventions),
        is_distance=True,
    ),
    "assd": Measure(
        "mean surface distance (mm)", "lower", 0.0, surface=lambda d, pair: mean_distance(d), is_distance=True
    ),
    "sensitivity": Measure("sensitivity", "higher", 1.0, overlap=sensitivity),
    "specificity": Measure("specificity", "higher", 1.0, overlap=specificity),
}


def measure(pair: Pair, names: Sequence[str]) -> dict[str, float]:
    """The named measures of one pair of masks; see `Conventions` for empty masks."""
    ours, theirs = bool(pair.prediction.any()), bool(pair.reference.any())
    if not ours and not theirs:
        perfect = pair.conventions.both_empty == "perfect"
        return {name: MEASURES[name].perfect if perfect else math.nan for name in names}
    needs_surface = ours and theirs and any(MEASURES[name].surface for name in names)
    distances = surface_distances(pair.prediction, pair.reference, pair.spacing) if needs_surface else None
    values = {}
    for name in names:
        kind = MEASURES[name]
        if kind.overlap is not None:
            values[name] = float(kind.overlap(pair))
        elif distances is not None and kind.surface is not None:
            values[name] = kind.surface(distances, pair)
        else:
            values[name] = one_empty_distance(pair) if kind.is_distance else 0.0
    return values


def one_empty_distance(pair: Pair) -> float:
    """What a distance is where one mask alone is empty."""
    kind = pair.conventions.one_empty_distance
    if kind == "voxel diagonal":
        return math.hypot(*pair.image_shape)
    if kind == "diagonal":
        return math.hypot(*(n * step for n, step in zip(pair.image_shape, pair.spacing, strict=True)))
    return math.inf if kind == "inf" else math.nan


def structure_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, ...],
    structures: Mapping[str, Sequence[int]],
    names: Sequence[str],
    *,
    tolerance: Mapping[str, float] | float = 1.0,
    conventions: Conventions = Conventions(),  # noqa: B008 (immutable)
) -> dict[str, dict[str, float]]:
    """Measures of each structure of two label maps.

    Args:
        prediction, reference: uint8 `[X, Y, Z]`, same shape.
        spacing: mm along each axis.
        structures: name -> label values that make up the structure.
        names: of `MEASURES`.
        tolerance: of the NSD in mm, for all structures or by name.
        conventions: for empty masks and the percentile.

    Raises:
        ConfigurationError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ConfigurationError(f"Label maps of shapes {prediction.shape} and {reference.shape} cannot be compared.")
    boxes = [scipy.ndimage.find_objects(labels) for labels in (prediction, reference)]
    nowhere = (slice(0, 0),) * prediction.ndim
    scores = {}
    for name, values in structures.items():
        box = _joined([found[value - 1] for found in boxes for value in values if value <= len(found)])
        limit = tolerance if isinstance(tolerance, float | int) else tolerance[name]
        ours, theirs = (_mask(labels[box or nowhere], values) for labels in (prediction, reference))
        scores[name] = measure(Pair(ours, theirs, spacing, prediction.shape, limit, conventions), names)
    return scores


def _mask(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    if len(values) == 1:
        return labels == values[0]
    table = np.zeros(256, bool)
    table[list(values)] = True
    return table[labels]


def _joined(boxes: Sequence[Box | None]) -> Box | None:
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    return tuple(
        slice(min(span.start for span in spans), max(span.stop for span in spans)) for spans in zip(*found, strict=True)
    )
