"""From model folders to all numbers of a comparison."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.comparison.costs import costs_of
from nnunet_ext.comparison.models import read_models
from nnunet_ext.comparison.outcome import Outcome
from nnunet_ext.comparison.scoring import compared_results
from nnunet_ext.comparison.statistics import differences
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json


def compare_models(
    words: Sequence[str],
    *,
    baseline: str | None = None,
    measures: Sequence[str] = ("dice",),
    tolerance: float = 1.0,
    seed: int = 0,
    timings: Sequence[str] = (),
    tested: Sequence[str] = (),
    processes: int = 1,
) -> Outcome:
    """Compares models.

    Args:
        words, baseline: as for `read_models`.
        measures: of `PLAIN_MEASURES`; Dice is always among them.
        tolerance: of the NSD, mm.
        seed: of the bootstrap.
        timings: `MODEL=FILE`, files of `nnunet_ext predict --timing`.
        tested: `NAME=FILE`, files of `nnunet_ext score plain`.
        processes: worker processes that score label maps.

    Raises:
        ConfigurationError: models that cannot be compared, a file that is not what it should be.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigurationError(f"--tolerance takes mm of at least 0, found {tolerance}.")
    measures = list(dict.fromkeys(["dice", *measures]))
    paired = read_models(words, baseline)
    names = [model.name for model in paired.models]
    files: dict[str, list[Path]] = {}
    for name, path in map(_named_file, timings):
        if name not in names:
            raise ConfigurationError(f"--timing names '{name}', which is none of the models: {', '.join(names)}.")
        files.setdefault(name, []).append(path)
    scores = {name: _read_scores(path) for name, path in map(_named_file, tested)}
    results = compared_results(paired, measures, tolerance=tolerance, processes=processes)
    return Outcome(
        paired,
        measures,
        tolerance,
        seed,
        results,
        differences(results, paired.baseline.name, seed=seed),
        {model.name: costs_of(model, files.get(model.name)) for model in paired.models},
        scores,
    )


def _named_file(word: str) -> tuple[str, Path]:
    name, equals, path = word.partition("=")
    if not equals or not name or not path:
        raise ConfigurationError(f"--timing and --test take NAME=FILE, found '{word}'.")
    return name, Path(path)


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        if not all(
            isinstance(content[key], kind)
            for key, kind in (("mean", dict), ("defined", dict), ("average", dict), ("cases", list))
        ):
            raise ValueError("it must hold mean, defined, average and cases")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is no JSON file of 'nnunet_ext score' ({type(error).__name__}: {error})."
        ) from error
    return content
