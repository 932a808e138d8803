"""Overlap and surface distances of two masks. Masks are boolean `[X, Y, Z]` (or `[X, Y]`), spacing is in mm.

Both definitions of a surface, and what follows from them, stand in `surfaces`.

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
from nnunet_ext.challenges.surfaces import Box, Distances, element_distances, voxel_distances
from nnunet_ext.errors import ConfigurationError


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
    """The Hausdorff distance at a percentile, mm."""
    if conventions.hausdorff == "pooled":
        return percentile(distances.both, distances.weights, percent)
    ours = percentile(distances.to_reference, distances.prediction_weights, percent)
    return max(ours, percentile(distances.to_prediction, distances.reference_weights, percent))


def percentile(values: np.ndarray, weights: np.ndarray | None, percent: float) -> float:
    """Linear between ranks; with weights the first value at which at least `percent` of all weight is reached."""
    if weights is None or percent == 100:
        return float(np.percentile(values, percent))
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    index = min(int(np.searchsorted(reached, percent / 100)), len(values) - 1)
    return float(values[order[index]])


def surface_dice(distances: Distances, tolerance: float) -> float:
    """NSD: share of both surfaces that lies within `tolerance` mm of the other."""
    return float(np.average(distances.both <= tolerance, weights=distances.weights))


def mean_distance(distances: Distances) -> float:
    """Average symmetric surface distance, mm."""
    return float(np.average(distances.both, weights=distances.weights))


def root_mean_square_distance(distances: Distances) -> float:
    """Root mean square symmetric surface distance, mm."""
    return float(np.sqrt(np.average(distances.both**2, weights=distances.weights)))


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
PLAIN_MEASURES = ("dice", "hd95", "nsd")  # where no challenge says which


def measure(pair: Pair, names: Sequence[str]) -> dict[str, float]:
    """The named measures of one pair of masks; see `Conventions` for empty masks."""
    ours, theirs = bool(pair.prediction.any()), bool(pair.reference.any())
    if not ours and not theirs:
        perfect = pair.conventions.both_empty == "perfect"
        return {name: MEASURES[name].perfect if perfect else math.nan for name in names}
    needs_surface = ours and theirs and any(MEASURES[name].surface for name in names)
    between = element_distances if pair.conventions.surface == "elements" else voxel_distances
    distances = between(pair.prediction, pair.reference, pair.spacing) if needs_surface else None
    values = {}
    for name in names:
        kind = MEASURES[name]
        if kind.overlap is not None:
            values[name] = float(kind.overlap(pair))
        elif distances is not None and kind.surface is not None:
            values[name] = kind.surface(distances, pair)
        else:
            values[name] = one_empty_distance(pair) if kind.is_distance else 0.0
    if "nsd" in values and pair.conventions.nsd_from_dice > dice(pair):
        values["nsd"] = 0.0
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
    # The search is ten times slower against the order in memory, and files come in Fortran's.
    if prediction.flags.f_contiguous and reference.flags.f_contiguous:
        prediction, reference, spacing = prediction.T, reference.T, spacing[::-1]
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
