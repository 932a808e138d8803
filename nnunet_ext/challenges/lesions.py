"""LiTS17's measures: lesions found and missed, detected lesions, liver, tumor burden.

They follow the organisers' scorer (github.com/PatrickChrist/lits-challenge-scoring and the later
github.com/veugene/lits-challenge-scoring), written anew from what it does:

- Lesions are face-connected components; those of the reference are connected after growing it by one voxel within the
  slice, so that specks beside a lesion are no lesions of their own.
- Reference lesions that have their largest overlap with the same predicted lesion are taken together, then each
  predicted lesion belongs to the group with which it overlaps most. A group is detected if the intersection over union
  of its predicted and reference voxels exceeds a limit (0 or 0.5).
- True positives are the reference lesions of detected groups, false negatives all others, false positives the
  predicted lesions that belong to no detected group.
- A prediction without any voxel of value 1 has no liver: Dice 0, and the penalty for distances.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # its parts are imported when they are first used

from nnunet_ext.challenges.metrics import mean_distance, root_mean_square_distance, surface_distances, union_box

LIVER, LESION = 1, 2  # values in label maps
PENALTY = 9001.0
LIMITS = (0.0, 0.5)
SEGMENTATION = ("dice", "voe", "rvd", "assd", "rmsd", "msd")


def lesion_groups(prediction: np.ndarray, reference: np.ndarray) -> tuple[list[dict[str, Any]], int, int]:
    """Matches predicted and reference lesions.

    Args:
        prediction, reference: boolean lesion masks `[X, Y, Z]`, same shape; slices lie along the last axis.

    Returns:
        The groups that hold predicted and reference lesions, each with its `iou`, the masks `predicted` and
        `referenced`, and the numbers of lesions in them; then the numbers of all predicted and all reference lesions.
    """
    ours, n_ours = scipy.ndimage.label(prediction)
    in_slice = scipy.ndimage.generate_binary_structure(3, 1)
    in_slice[1, 1, [0, 2]] = False
    theirs, n_theirs = scipy.ndimage.label(scipy.ndimage.binary_dilation(reference, in_slice))
    theirs[~reference] = 0
    pairs = np.bincount(ours.ravel() * (n_theirs + 1) + theirs.ravel(), minlength=(n_ours + 1) * (n_theirs + 1))
    overlap = pairs.reshape(n_ours + 1, n_theirs + 1)[1:, 1:]

    members: dict[int, list[int]] = {}  # best predicted lesion -> reference lesions
    for column in np.flatnonzero(overlap.any(0)):
        members.setdefault(int(overlap[:, column].argmax()), []).append(int(column))
    columns = sorted(members.values())
    owners: dict[int, list[int]] = {}  # group -> predicted lesions
    for row in np.flatnonzero(overlap.any(1)):
        owners.setdefault(int(np.argmax([overlap[row, group].sum() for group in columns])), []).append(int(row))

    groups = []
    for number, rows in sorted(owners.items()):
        predicted = np.isin(ours, np.array(rows) + 1)
        referenced = np.isin(theirs, np.array(columns[number]) + 1)
        groups.append(
            {
                "iou": np.count_nonzero(predicted & referenced) / np.count_nonzero(predicted | referenced),
                "predicted": predicted,
                "referenced": referenced,
                "n_predicted": len(rows),
                "n_referenced": len(columns[number]),
            }
        )
    return groups, n_ours, n_theirs


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
    distances = surface_distances(ours, theirs, spacing, connectivity=2)
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
    box = tuple(  # one voxel more, for the growing within the slice
        slice(max(span.start - 1, 0), span.stop + 1) for span in union_box(prediction == LESION, reference == LESION)
    )
    groups, n_ours, n_theirs = lesion_groups(prediction[box] == LESION, reference[box] == LESION)
    detection = {}
    for limit in LIMITS:
        hits = [group for group in groups if group["iou"] > limit]
        found = sum(group["n_referenced"] for group in hits)
        detection[f"iou>{limit:g}"] = {
            "tp": found,
            "fp": n_ours - sum(group["n_predicted"] for group in hits),
            "fn": n_theirs - found,
        }
    detected = []
    for group in groups:
        if group["iou"] > LIMITS[-1]:  # lesions that were taken together share their scores
            scores = segmentation_scores(group["predicted"], group["referenced"], spacing)
            detected += [scores] * group["n_referenced"]

    has_liver = (prediction == LIVER).any() and (reference == LIVER).any()
    liver = prediction >= LIVER if has_liver else np.zeros_like(prediction, bool)
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
