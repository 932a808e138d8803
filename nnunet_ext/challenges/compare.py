"""Two methods on the same cases: paired differences with bootstrap confidence intervals and Wilcoxon's test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from nnunet_ext.challenges.metrics import MEASURES
from nnunet_ext.errors import ConfigurationError

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """One measure of one structure, first method against second.

    Attributes:
        structure, measure: what is compared.
        cases: identifiers of the cases in which both numbers are finite.
        differences: first minus second, in the order of `cases`.
        first, second: means over these cases.
        difference: their difference.
        low, high: bounds of the confidence interval of the mean difference.
        p: two-sided p value of Wilcoxon's signed-rank test.
        left_out: number of cases in which a number is not defined or not finite.
        only_first, only_second: cases of these in which one method alone has a finite number.
    """

    structure: str
    measure: str
    cases: tuple[str, ...]
    differences: np.ndarray
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    left_out: int
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()

    @property
    def better(self) -> int:
        """Number of cases in which the first method is better."""
        sign = -1 if MEASURES[self.measure].better == "lower" else 1
        return int(np.count_nonzero(sign * self.differences > 0))

    @property
    def equal(self) -> int:
        """Number of cases without a difference."""
        return int(np.count_nonzero(self.differences == 0))


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, seed: int = 0) -> list[Comparison]:
    """Compares two results of `score_folder` measure by measure.

    Args:
        first, second: results with the same cases.
        seed: of the bootstrap.

    Raises:
        ConfigurationError: no common case.
    """
    ours, theirs = ({case["case"]: case["structures"] for case in result["cases"]} for result in (first, second))
    names = [name for name in ours if name in theirs]
    if not names:
        raise ConfigurationError("The two folders of predictions have no case in common.")
    rows = []
    for structure, means in first["mean"].items():
        for measure in means:
            if measure in MEASURES:
                pairs = np.array([(ours[n][structure][measure], theirs[n][structure][measure]) for n in names])
                rows.append(_comparison(structure, measure, names, pairs, seed))
    return rows


def _comparison(structure: str, measure: str, names: Sequence[str], pairs: np.ndarray, seed: int) -> Comparison:
    finite = np.isfinite(pairs).all(1)
    kept = pairs[finite]
    differences = kept[:, 0] - kept[:, 1]
    low, high = bootstrap_interval(differences, seed)
    return Comparison(
        structure=structure,
        measure=measure,
        cases=tuple(name for name, keep in zip(names, finite, strict=True) if keep),
        differences=differences,
        first=_mean(kept[:, 0]),
        second=_mean(kept[:, 1]),
        difference=_mean(differences),
        low=low,
        high=high,
        p=wilcoxon_p(differences),
        left_out=int(np.count_nonzero(~finite)),
        only_first=_alone(pairs, names, 0),
        only_second=_alone(pairs, names, 1),
    )


def _alone(pairs: np.ndarray, names: Sequence[str], method: int) -> tuple[str, ...]:
    """Cases in which that method alone has a finite number."""
    known = np.isfinite(pairs)
    return tuple(name for name, row in zip(names, known, strict=True) if row[method] and not row[1 - method])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def bootstrap_interval(differences: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over cases; the same for the same seed, not defined below two cases."""
    if differences.size < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = differences[rng.integers(0, differences.size, (RESAMPLES, differences.size))].mean(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def wilcoxon_p(differences: np.ndarray) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test; cases without a difference are left out, 1 if all are."""
    if not differences.size:
        return math.nan
    return float(stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def comparison_table(rows: Sequence[Comparison], first: str, second: str) -> str:
    """The comparisons as text."""
    width = max(len("structure"), *(len(row.structure) for row in rows))
    lines = [
        f"A = {first}",
        f"B = {second}",
        f"Mean difference A - B over cases, {CONFIDENCE:.0%} interval from {RESAMPLES} bootstrap samples, "
        f"p of Wilcoxon's test.",
        f"{'structure':<{width}}  {'measure':<11}  cases  {'A':>7}  {'B':>7}  {'A - B':>8}  {'interval':<20}  "
        f"{'p':<8}  A better/equal/worse",
    ]
    for row in rows:
        n = len(row.cases)
        interval = f"[{_text(row.low)}, {_text(row.high)}]"
        lines.append(
            f"{row.structure:<{width}}  {row.measure:<11}  {n:>5}  {_text(row.first):>7}  {_text(row.second):>7}  "
            f"{_text(row.difference, '+.4f'):>8}  {interval:<20}  {_text(row.p, '.3g'):<8}  {row.better}/{row.equal}/"
            f"{n - row.better - row.equal}"
        )
    left_out = {row.left_out for row in rows if row.left_out}
    if left_out:
        lines.append("Cases in which a number is not defined are left out; the number of cases says how many remain.")
    for row in rows:
        for method, names in (("A", row.only_first), ("B", row.only_second)):
            if names:
                lines.append(f"{row.structure} {row.measure}: only {method} has a number for {', '.join(names)}")
    return "\n".join(lines)


def _text(value: float, form: str = ".4f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def comparison_json(rows: Sequence[Comparison], first: str, second: str, seed: int) -> dict[str, Any]:
    """The comparisons for a JSON file."""
    return {
        "first": first,
        "second": second,
        "difference": "first minus second",
        "confidence": CONFIDENCE,
        "bootstrap_samples": RESAMPLES,
        "seed": seed,
        "test": "Wilcoxon signed-rank, two-sided, cases without a difference left out",
        "rows": [
            {
                "structure": row.structure,
                "measure": row.measure,
                "cases": len(row.cases),
                "left_out": row.left_out,
                "only_first": list(row.only_first),
                "only_second": list(row.only_second),
                "first_mean": row.first,
                "second_mean": row.second,
                "mean_difference": row.difference,
                "interval": [row.low, row.high],
                "p": row.p,
                "first_better": row.better,
                "equal": row.equal,
                "differences": dict(zip(row.cases, row.differences.tolist(), strict=True)),
            }
            for row in rows
        ],
    }
