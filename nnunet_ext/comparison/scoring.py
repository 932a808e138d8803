"""Measures by model, case and class: Dice as nnU-Net's validation recorded it, surface measures from the label maps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ext.challenges.results import means
from nnunet_ext.comparison.models import Paired
from nnunet_ext.comparison.statistics import MEAN
from nnunet_ext.report.scores import nan_mean
from nnunet_ext.report.surfaces import surface_measures


def compared_results(
    paired: Paired, measures: Sequence[str], *, tolerance: float = 1.0, processes: int = 1
) -> dict[str, dict[str, Any]]:
    """Model -> result as `score_folder` gives it, with the mean over the classes as a structure of its own.

    Args:
        paired: the models.
        measures: of `PLAIN_MEASURES`.
        tolerance: of the NSD, mm.
        processes: worker processes that score label maps.

    Raises:
        ConfigurationError: a label map that surface measures need is missing or cannot be used.
    """
    further = tuple(measure for measure in measures if measure != "dice")
    results = {}
    for model in paired.models:
        scores = {name: paired.score(model, name) for name in paired.cases}
        surfaces = surface_measures(model.folder, scores, further, tolerance, processes, model.name) if further else {}
        cases = []
        for name, score in scores.items():
            dice = score.dice
            structures = {
                structure: {
                    measure: dice[structure] if measure == "dice" else surfaces[name][structure][measure]
                    for measure in measures
                }
                for structure in dice
            }
            if len(structures) > 1:
                means_of_case = {
                    measure: _mean_over_classes({s: values[measure] for s, values in structures.items()}, score.voxels)
                    for measure in measures
                }
                structures = {MEAN: means_of_case, **structures}
            cases.append({"case": name, "structures": structures})
        mean, defined = means(cases)
        results[model.name] = {"cases": cases, "mean": mean, "defined": defined}
    return results


def _mean_over_classes(values: Mapping[str, float], voxels: Mapping[str, int]) -> float:
    """Of one case; NaN where a class of the reference has no number, as a distance to a class that was lost.

    The mean over the others would favour the model that lost it. `voxels` of the reference by class.
    """
    if any(math.isnan(value) and voxels.get(name, 0) > 0 for name, value in values.items()):
        return math.nan
    return nan_mean(values.values())
