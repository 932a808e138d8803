"""LiTS17's measures: lesions found and missed, detected lesions, liver, tumor burden.

They are those of the organisers' scorer, with which the challenge was ranked (github.com/PatrickChrist/
lits-challenge-scoring, the same rules since September 2017), written anew from what it does:

- Lesions are face-connected components. Reference lesions that have their largest overlap with the same predicted
  lesion become one group, then each predicted lesion joins the group with which it overlaps most.
- A group counts as detected if its intersection over union exceeds a limit, 0 or 0.5. That union is not the group's
  own: the scorer has already given the predicted lesions the numbers of their groups when it asks for those with the
  number of the group's first predicted lesion, which are another group's, or none. Published numbers hold this, so that
  it is kept here.
- Detected are as many lesions as there are groups, less the reference lesions of the groups that do not count. False
  positives are all other predicted lesions, false negatives all other reference lesions.
- A prediction without any voxel of value 1 has no liver: Dice 0, and the penalty for distances.

The scorer stops at a case whose reference has no lesion; here every predicted lesion of it is a false positive.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its parts are imported when they are first used

from nnunet_ext.challenges.metrics import mean_distance, root_mean_square_distance
from nnunet_ext.challenges.surfaces import union_box, voxel_distances

LIVER, LESION = 1, 2  # values in label maps
PENALTY = 9001.0
LIMITS = (0.0, 0.5)
SEGMENTATION = ("dice", "voe", "rvd", "assd", "rmsd", "msd")


@dataclass
class Group:
    """Predicted and reference lesions (numbers from 1) that belong together."""

    predicted: list[int]
    referenced: list[int]


class Lesions:
    """The lesions of two masks.

    Args:
        prediction, reference: boolean `[X, Y, Z]`, same shape.
    """

    def __init__(self, prediction: np.ndarray, reference: np.ndarray) -> None:
        self.ours, self.n_ours = scipy.ndimage.label(prediction)
        self.theirs, self.n_theirs = scipy.ndimage.label(reference)
        both = prediction & reference
        shape = self.n_ours + 1, self.n_theirs + 1
        pairs = np.ravel_multi_index((self.ours[both], self.theirs[both]), shape)
        self.overlap = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
        self.sizes = np.bincount(self.ours[prediction], minlength=shape[0])
        self.reference_sizes = np.bincount(self.theirs[reference], minlength=shape[1])
        self.boxes = scipy.ndimage.find_objects(self.ours) if self.n_ours else []
        self.reference_boxes = scipy.ndimage.find_objects(self.theirs) if self.n_theirs else []
        self.groups = self._grouped()

    def _grouped(self) -> list[Group]:
        """In the order of their first predicted lesions."""
        members: dict[int, list[int]] = {}  # predicted lesion -> the reference lesions that it overlaps most
        for column in np.flatnonzero(self.overlap.any(0)):
            members.setdefault(int(self.overlap[:, column].argmax()), []).append(int(column))
        columns = sorted(members.values())
        owners: dict[int, list[int]] = {}  # number in `columns` -> predicted lesions
        for row in np.flatnonzero(self.overlap.any(1)):
            sums = [self.overlap[row, group].sum() for group in columns]
            owners.setdefault(int(np.argmax(sums)), []).append(int(row))
        return sorted((Group(rows, columns[number]) for number, rows in owners.items()), key=lambda g: g.predicted[0])

    def detected(self, limit: float) -> tuple[int, list[Group]]:
        """How many lesions the scorer calls detected, and the groups whose shapes it then compares."""
        numbered = {group.referenced[0]: group for group in self.groups}  # the number that the scorer gives a group
        count = len(self.groups)
        for group in self.groups:
            columns = group.referenced
            other = numbered.get(group.predicted[0])
            rows = [] if other is None else other.predicted
            union = self.sizes[rows].sum() + self.reference_sizes[columns].sum()
            union -= self.overlap[np.ix_(rows, columns)].sum()
            if self.overlap[np.ix_(group.predicted, columns)].sum() / union <= limit:
                numbered.pop(columns[0])
                count -= len(columns)
        return count, list(numbered.values())

    def masks(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """The predicted and the reference mask of a group, in the box that holds both."""
        found = [self.boxes[row - 1] for row in group.predicted]
        found += [self.reference_boxes[column - 1] for column in group.referenced]
        box = tuple(
            slice(min(s.start for s in spans), max(s.stop for s in spans)) for spans in zip(*found, strict=True)
        )
        return np.isin(self.ours[box], group.predicted), np.isin(self.theirs[box], group.referenced)


def segmentation_scores(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """Dice, volumetric overlap error, relative volume difference and surface distances (mm) of two masks.

    The surface looks at face and edge neighbours, and the volume difference is (reference - prediction) / prediction,
    both as in the scorer.
    """
    box = union_box(prediction, reference)
    ours, theirs = prediction[box], reference[box]
    n_ours, n_theirs = np.count_nonzero(ours), np.count_nonzero(theirs)
    if not n_ours or not n_theirs:
        return {**dict.fromkeys(SEGMENTATION, PENALTY), "dice": 0.0, "voe": 1.0}
    both = np.count_nonzero(ours & theirs)
    distances = voxel_distances(ours, theirs, spacing, connectivity=2)
    return {
        "dice": 2 * both / (n_ours + n_theirs),
        "voe": 1 - both / (n_ours + n_theirs - both),
        "rvd": (n_theirs - n_ours) / n_ours,
        "assd": mean_distance(distances),
        "rmsd": root_mean_square_distance(distances),
        "msd": float(distances.both.max()),
    }


def case_measure(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> dict[str, Any]:
    """Lesion detection, detected lesions, liver and tumor burden of one case; label maps `[X, Y, Z]`."""
    box = union_box(prediction == LESION, reference == LESION)
    lesions = Lesions(prediction[box] == LESION, reference[box] == LESION)
    detection = {}
    for limit in LIMITS:
        count, groups = lesions.detected(limit)
        detection[f"iou>{limit:g}"] = {"tp": count, "fp": lesions.n_ours - count, "fn": lesions.n_theirs - count}
    # Of the last limit; the scorer looks at no shape where its count is not above 0.
    detected = [segmentation_scores(*lesions.masks(group), spacing) for group in groups if count > 0]
    liver = prediction >= LIVER if (prediction == LIVER).any() else np.zeros_like(prediction, bool)
    return {
        "structures": {"liver": segmentation_scores(liver, reference >= LIVER, spacing)},
        "detection": detection,
        "detected_lesions": detected,
        "overlap": {
            "liver": _overlap(liver, reference >= LIVER),
            "lesion": _overlap(prediction == LESION, reference == LESION),
        },
        "tumor_burden_error": _burden(reference) - (_burden(prediction) if (prediction == LIVER).any() else PENALTY),
    }


def _overlap(prediction: np.ndarray, reference: np.ndarray) -> dict[str, int]:
    return {
        "intersection": int(np.count_nonzero(prediction & reference)),
        "sum": int(np.count_nonzero(prediction) + np.count_nonzero(reference)),
    }


def _burden(labels: np.ndarray) -> float:
    """Share of the liver that is lesion."""
    whole = np.count_nonzero(labels >= LIVER)
    return np.count_nonzero(labels == LESION) / whole if whole else math.nan


def totals(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Dice over all voxels of all cases, detection over all lesions, detected lesions, and tumor burden."""
    result: dict[str, Any] = {}
    for name in ("liver", "lesion"):
        overlaps = [case["overlap"][name] for case in cases]
        total = sum(overlap["sum"] for overlap in overlaps)
        result[f"{name}_dice_global"] = (
            2 * sum(overlap["intersection"] for overlap in overlaps) / total if total else math.nan
        )
    for limit in LIMITS:
        counts = [case["detection"][f"iou>{limit:g}"] for case in cases]
        tp, fp, fn = (sum(count[key] for count in counts) for key in ("tp", "fp", "fn"))
        result[f"lesion_precision_iou>{limit:g}"] = tp / (tp + fp) if tp + fp else 0.0
        result[f"lesion_recall_iou>{limit:g}"] = tp / (tp + fn) if tp + fn else 0.0
    lesions = [lesion for case in cases for lesion in case["detected_lesions"]]
    nothing = {**dict.fromkeys(SEGMENTATION, PENALTY), "dice": 0.0, "voe": 1.0}
    for key in SEGMENTATION:
        result[f"detected_lesions_{key}"] = (
            float(np.mean([lesion[key] for lesion in lesions])) if lesions else nothing[key]
        )
    errors = np.array([case["tumor_burden_error"] for case in cases])
    result["tumor_burden_rmse"] = float(np.sqrt(np.mean(errors**2)))
    result["tumor_burden_max"] = float(errors.max())
    return result
