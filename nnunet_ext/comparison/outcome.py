"""All that a comparison found, before it is drawn or written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunet_ext.challenges.compare import bootstrap_interval
from nnunet_ext.comparison.costs import Costs
from nnunet_ext.comparison.models import Paired
from nnunet_ext.comparison.statistics import Difference


@dataclass(frozen=True)
class Outcome:
    """The numbers of a comparison.

    Attributes:
        paired: the models and their cases.
        measures: names of `MEASURES`; Dice is the first.
        tolerance: of the NSD, mm.
        seed: of the bootstrap.
        results: model -> measures by case and structure, as `compared_results` gives them.
        differences: every model against the baseline.
        costs: model -> what it costs.
        tested: model or ensemble -> result of `nnunet_ext score` on test cases.
    """

    paired: Paired
    measures: Sequence[str]
    tolerance: float
    seed: int
    results: Mapping[str, Mapping[str, Any]]
    differences: Sequence[Difference]
    costs: Mapping[str, Costs]
    tested: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def structures(self) -> list[str]:
        """The mean over classes, where there are several, and the classes."""
        return list(next(iter(self.results.values()))["mean"])

    @property
    def overall(self) -> str:
        """The structure that stands for all: the mean over classes, or the only class."""
        return self.structures[0]

    def values(self, model: str, structure: str, measure: str) -> list[float]:
        """One number of every case, in the order of `paired.cases`; NaN where it is not defined."""
        return [case["structures"][structure][measure] for case in self.results[model]["cases"]]

    def difference(self, model: str, structure: str, measure: str) -> Difference | None:
        """A model against the baseline; None for the baseline."""
        return next(
            (
                row
                for row in self.differences
                if (row.model, row.paired.structure, row.paired.measure) == (model, structure, measure)
            ),
            None,
        )

    def mean_and_interval(self, model: str, structure: str, measure: str) -> tuple[float, float, float]:
        """The mean over the cases that have the number, and its bootstrap interval."""
        values = np.array(self.values(model, structure, measure))
        finite = values[np.isfinite(values)]
        return (float(finite.mean()) if finite.size else float("nan"), *bootstrap_interval(finite, self.seed))
