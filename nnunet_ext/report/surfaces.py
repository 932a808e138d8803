"""HD95 and NSD of the validation cases of a model, scored from its label maps where they are asked for."""

from collections.abc import Mapping, Sequence

from nnunet_ext.challenges.metrics import MEASURES
from nnunet_ext.challenges.parallel import each
from nnunet_ext.challenges.score import CasePair, score_case
from nnunet_ext.challenges.scoring import plain_scoring
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.report.cases import Unavailable, prediction_file, reference_file
from nnunet_ext.report.model_folder import ModelFolder
from nnunet_ext.report.scores import CaseScore


def surface_measures(
    model: ModelFolder,
    scores: Mapping[str, CaseScore],
    measures: Sequence[str],
    tolerance: float,
    processes: int,
    name: str,
) -> dict[str, dict[str, dict[str, float]]]:
    """Case -> class -> measure, NaN where a distance is not defined.

    Args:
        model: whose predictions are scored.
        scores: case -> its score, which says where the label maps are.
        measures: `hd95` (mm), `nsd` (share of the surface).
        tolerance: of the NSD, mm.
        processes: worker processes.
        name: of the model, for messages.

    Raises:
        ConfigurationError: a label map is missing or cannot be used.
    """
    plain = plain_scoring(model.path, model.path, model.path / "dataset.json")
    scoring = plain.changed(measures=tuple(measures), tolerance=[str(tolerance)])
    pairs = []
    for case, score in scores.items():
        try:
            files = prediction_file(model, score), reference_file(model, score)
        except Unavailable as error:
            wanted = ", ".join(MEASURES[measure].text for measure in measures)
            raise ConfigurationError(
                f"{wanted} of {name} cannot be computed. {error} Set nnU-Net's variables, or leave the measure out."
            ) from error
        pairs.append(CasePair(case, *files, scoring))
    found = {}
    for result in each(score_case, pairs, processes=processes, title=f"Scoring {name}"):
        if result["problems"]:
            raise ConfigurationError(f"{name} cannot be scored: {result['problems'][0]}")
        found[result["case"]] = result["structures"]
    return found
