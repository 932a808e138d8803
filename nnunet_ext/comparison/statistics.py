"""Numbers of the comparison: what each model reaches, its paired differences to the baseline, and their tests.

Intervals and Wilcoxon's test are those of `nnunet_ext score --compare`; here their p values are corrected for their
number by Holm's method (Holm 1979), within two families a measure: the means over classes of all models, and the
classes of all models.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_ext.challenges.compare import Comparison, compare

MEAN = "mean over classes"  # a structure of its own


@dataclass(frozen=True)
class Distribution:
    """Of one number over cases: how many have it, mean, median and quartiles; NaN without any."""

    cases: int
    mean: float
    median: float
    first_quartile: float
    third_quartile: float


@dataclass(frozen=True)
class Difference:
    """A model against the baseline, one measure of one structure; `p_holm` is `paired.p` after the correction."""

    model: str
    paired: Comparison
    p_holm: float


def distribution(values: Sequence[float]) -> Distribution:
    """Of the finite values; quartiles are linear between ranks."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if not finite.size:
        return Distribution(0, *[math.nan] * 4)
    first, median, third = (float(value) for value in np.percentile(finite, [25, 50, 75]))
    return Distribution(len(finite), float(finite.mean()), median, first, third)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given; NaN stays NaN and does not count."""
    ranked = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - rank) * p))
        adjusted[index] = largest
    return adjusted


def differences(results: Mapping[str, Mapping[str, Any]], baseline: str, *, seed: int = 0) -> list[Difference]:
    """Every model against the baseline.

    Args:
        results: model -> `{"cases": [{"case", "structures"}], "mean"}` with the same cases, as `score_folder` gives.
        baseline: one of these models.
        seed: of the bootstrap.
    """
    pairs = [
        (model, row)
        for model, result in results.items()
        if model != baseline
        for row in compare(result, results[baseline], seed=seed)
    ]
    adjusted = [math.nan] * len(pairs)
    families: dict[tuple[str, bool], list[int]] = {}
    for index, (_, row) in enumerate(pairs):
        families.setdefault((row.measure, row.structure == MEAN), []).append(index)
    for family in families.values():
        for index, p in zip(family, holm([pairs[k][1].p for k in family]), strict=True):
            adjusted[index] = p
    return [Difference(model, row, p) for (model, row), p in zip(pairs, adjusted, strict=True)]
