"""BraTS' lesion-wise Dice and HD95 since 2023: each lesion of the reference counts alike, and so does each false one.

After the organisers' scorer for 2023 (github.com/rachitsaluja/BraTS-2023-Metrics), written anew from what it does:

- Lesions of the reference are its 26-connected components after growing it by some steps over face and edge
  neighbours; they keep their own voxels. Predicted lesions are 26-connected components.
- A predicted lesion belongs to every reference lesion whose grown voxels it touches. Dice and HD95 compare each
  reference lesion with all predicted lesions that belong to it; a missed lesion has Dice 0 and the penalty.
- Reference lesions up to a volume are left out. Predicted lesions that belong to none have Dice 0 and the penalty.
- Nothing to count is Dice 1 and HD95 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its parts are imported when they are first used

from nnunet_ext.challenges.facts import Conventions
from nnunet_ext.challenges.metrics import percentile_distance
from nnunet_ext.challenges.surfaces import element_distances, union_box

PENALTY = 374.0  # mm, for lesions missed or invented
EVERY = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Rule:
    """What a task decides.

    Attributes:
        steps: by which lesions of the reference grow, in voxels.
        smallest: reference lesions of at most this many mm^3 are left out.
    """

    steps: int
    smallest: float


def lesion_wise(
    prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...], rule: Rule
) -> dict[str, float]:
    """Lesion-wise Dice and HD95 (mm), and the numbers of lesions found, invented and missed.

    Args:
        prediction, reference: boolean `[X, Y, Z]`, same shape.
        spacing: mm along each axis.
    """
    room = tuple(
        slice(max(span.start - rule.steps, 0), span.stop + rule.steps) for span in union_box(prediction, reference)
    )
    prediction, reference = prediction[room], reference[room]
    ours, n_ours = scipy.ndimage.label(prediction, EVERY)
    steps = scipy.ndimage.generate_binary_structure(3, 2)
    grown = scipy.ndimage.binary_dilation(reference, steps, iterations=rule.steps) if reference.any() else reference
    theirs, n_theirs = scipy.ndimage.label(grown, EVERY)
    both = (ours > 0) & (theirs > 0)
    touched = np.zeros((n_theirs + 1, n_ours + 1), bool)
    touched[theirs[both], ours[both]] = True
    theirs[~reference] = 0
    volumes = np.bincount(theirs.ravel(), minlength=n_theirs + 1) * math.prod(spacing)
    counted = [number for number in range(1, n_theirs + 1) if volumes[number] > rule.smallest]
    dices, distances = [], []
    for number in counted:
        predicted, lesion = np.isin(ours, np.flatnonzero(touched[number])), theirs == number
        size = np.count_nonzero(predicted) + np.count_nonzero(lesion)
        dices.append(2 * np.count_nonzero(predicted & lesion) / size)
        distances.append(_hd95(predicted, lesion, spacing) if predicted.any() else PENALTY)
    invented = n_ours - int(touched[1:].any(0).sum())
    total = len(counted) + invented
    found = sum(bool(touched[number].any()) for number in counted)
    return {
        "lesion_dice": sum(dices) / total if total else 1.0,
        "lesion_hd95": (sum(distances) + invented * PENALTY) / total if total else 0.0,
        "lesions_found": found,
        "lesions_invented": invented,
        "lesions_missed": len(counted) - found,
    }


def _hd95(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> float:
    box = union_box(prediction, reference)
    return percentile_distance(element_distances(prediction[box], reference[box], spacing), 95, Conventions())


@dataclass(frozen=True)
class LesionMeasure:
    """The `case_measure` of a task that scores these structures."""

    structures: Mapping[str, Sequence[int]]
    rule: Rule

    def __call__(self, prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> dict[str, Any]:
        """The lesion-wise measures of each structure of two label maps `[X, Y, Z]`."""
        scores = {}
        for name, values in self.structures.items():
            ours, theirs = (np.isin(labels, values) for labels in (prediction, reference))
            scores[name] = lesion_wise(ours, theirs, spacing, self.rule)
        return {"structures": scores}
