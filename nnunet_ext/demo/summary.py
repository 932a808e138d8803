"""What the demo prints at its end: scores, cost and times as small tables."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.demo.raw_dataset import organs_of
from nnunet_ext.files import read_json
from nnunet_ext.methods import Method

Scores = dict[str, dict[str, float]]  # organ -> case -> Dice; nan where the organ is in neither truth nor prediction


def read_scores(summary: Path, dataset_json: Mapping[str, Any]) -> Scores:
    """Dice per organ and case from the summary.json of nnUNetv2_evaluate_folder."""
    ending = dataset_json["file_ending"]
    cases = {
        Path(case["prediction_file"]).name.removesuffix(ending): case["metrics"]
        for case in read_json(summary)["metric_per_case"]
    }
    return {
        organ.name: {case: float(metrics[organ.key]["Dice"]) for case, metrics in cases.items()}
        for organ in organs_of(dataset_json)
    }


def mean_dice(scores: Scores) -> float:
    """The mean over the organs of each organ's mean over the cases that have it, as nnU-Net's `foreground_mean`."""
    return _mean(_mean(values.values()) for values in scores.values())


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def json_scores(scores: Scores) -> dict[str, dict[str, float | None]]:
    """The same for a JSON file, where nan is null."""
    return {
        organ: {case: value if math.isfinite(value) else None for case, value in by_case.items()}
        for organ, by_case in scores.items()
    }


def scores_table(scores: Scores) -> str:
    """Organs in rows; mean, lowest and highest Dice over the cases in columns."""
    width = max(map(len, [*scores, "organ"]))
    lines = [f"  {'organ':{width}}   mean    min    max"]
    for organ, by_case in scores.items():
        values = [value for value in by_case.values() if math.isfinite(value)] or [math.nan]
        lines.append(f"  {organ:{width}}  {_mean(values):5.3f}  {min(values):5.3f}  {max(values):5.3f}")
    return "\n".join([*lines, f"  {'all':{width}}  {mean_dice(scores):5.3f}"])


def cost_text(complexity: Mapping[str, Any]) -> str:
    """Parameters and cost in two lines; every cost is named with its convention."""
    parameters = complexity["parameters"]
    costs = [
        f"{complexity[convention]['gflops']:.2f} GFLOPs ({convention} convention)"
        for convention in ("true", "paper")
        if convention in complexity
    ]
    return (
        f"Parameters   {parameters['total']:,}, of which {parameters['active']:,} are active\n"
        f"Cost         one patch {times_sign(complexity['patch_size'])}: {', '.join(costs)}"
    )


def models_table(compared: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """Models in rows; mean Dice over classes and validation cases, active parameters, seconds of the training.

    Args:
        compared: the JSON file of `nnunet_ext compare`.
        seconds: model -> its training.
    """
    width = max(map(len, [*seconds, "model"]))
    lines = [f"  {'model':{width}}   Dice   parameters   training"]
    for model in compared["models"]:
        reached = next(iter(model["reached"].values()))["dice"]["mean"]  # the mean over classes stands first
        dice, parameters = math.nan if reached is None else reached, model["costs"]["parameters"]
        shown = "?" if parameters is None else f"{round(parameters):,}"
        lines.append(f"  {model['name']:{width}}  {dice:5.3f}  {shown:>11}  {seconds[model['name']]:7.0f} s")
    cases = len(compared["cases"])
    return "\n".join([f"Mean Dice of the {cases} validation cases of fold {', '.join(compared['folds'])}", *lines])


def times_table(seconds: Mapping[str, float], total: float) -> str:
    """Seconds per stage."""
    width = max(map(len, seconds))
    rows = [*seconds.items(), ("total", total)]
    return "\n".join(f"  {title:{width}}  {value:5.0f} s" for title, value in rows)


def shortened_text(method: Method, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What was made smaller, in one sentence. `before`, `after`: the configuration in the two plans."""
    options_before, options = before["nnunet_ext"], after["nnunet_ext"]
    widths = [_base_width(c["architecture"]["arch_kwargs"]) for c in (before, after)]
    parts = [
        f"{options['num_epochs']} epochs of {options['num_iterations_per_epoch']} iterations "
        f"(a real training: {options_before['num_epochs']} of {options_before['num_iterations_per_epoch']})",
        f"patch {times_sign(after['patch_size'])} (planned: {times_sign(before['patch_size'])})",
    ]
    if all(widths):
        parts.append(f"{widths[1]} channels at the first level (planned: {widths[0]})")
    else:
        parts.append("a small network (--set above)")
    if options_before.get("pretrained") and not options.get("pretrained"):
        parts.append("random weights where a real training downloads pretrained ones")
    return f"{method.title} is trained for a demonstration only: {', '.join(parts)}. --epochs N trains longer."


def _base_width(arch_kwargs: Mapping[str, Any]) -> int | None:
    return arch_kwargs.get("base_features") or next(iter(arch_kwargs.get("features_per_stage", [])), None)


def times_sign(sizes: Iterable[int]) -> str:
    """`[32, 48, 48]` -> "32x48x48"."""
    return "x".join(map(str, sizes))
