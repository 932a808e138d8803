"""Measures by model, case and class: Dice as nnU-Net's validation recorded it, surface measures from the label maps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ext.challenges.metrics import MEASURES
from nnunet_ext.challenges.parallel import each
from nnunet_ext.challenges.results import means
from nnunet_ext.challenges.score import CasePair, score_case
from nnunet_ext.challenges.scoring import Scoring, plain_scoring
from nnunet_ext.comparison.models import Model, Paired
from nnunet_ext.comparison.statistics import MEAN
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.report.cases import Unavailable, prediction_file, reference_file
from nnunet_ext.report.scores import nan_mean


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
        surfaces = _surface_measures(paired, model, further, tolerance, processes) if further else {}
        cases = []
        for name in paired.cases:
            score = paired.score(model, name)
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


def _surface_measures(
    paired: Paired, model: Model, measures: tuple[str, ...], tolerance: float, processes: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Case -> class -> measure."""
    scoring = _scoring(model, measures, tolerance)
    pairs = []
    for name in paired.cases:
        score = paired.score(model, name)
        try:
            files = prediction_file(model.folder, score), reference_file(model.folder, score)
        except Unavailable as error:
            wanted = ", ".join(MEASURES[measure].text for measure in measures)
            raise ConfigurationError(
                f"{wanted} of {model.name} cannot be computed. {error} Set nnU-Net's variables, or leave the measure "
                f"out."
            ) from error
        pairs.append(CasePair(name, *files, scoring))
    found = {}
    for result in each(score_case, pairs, processes=processes, title=f"Scoring {model.name}"):
        if result["problems"]:
            raise ConfigurationError(f"{model.name} cannot be scored: {result['problems'][0]}")
        found[result["case"]] = result["structures"]
    return found


def _scoring(model: Model, measures: tuple[str, ...], tolerance: float) -> Scoring:
    folder = model.folder.path
    plain = plain_scoring(folder, folder, folder / "dataset.json")
    return plain.changed(measures=measures, tolerance=[str(tolerance)])
