"""What the head of the page says about a model: one sentence, what is missing, and the table of facts."""

from collections.abc import Iterator
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import method_of, method_of_trainer
from nnunet_ext.report.model_folder import Fold, ModelFolder
from nnunet_ext.report.parts import counted, number, significant, times
from nnunet_ext.report.scores import pooled_dice

_CONVENTIONS = {
    "true": "what is computed: multiply-adds over active weights",
    "paper": "as the method's paper counts in its tables",
}


def headline(model: ModelFolder) -> str:
    """The page's one sentence."""
    folds = model.cross_validation
    if not folds:
        return "No cross-validation scores: no numbered fold has a validation/summary.json."
    cases = [case for fold in folds for case in fold.cases]
    which = f"{'folds' if len(folds) > 1 else 'fold'} {', '.join(fold.fold for fold in folds)}"
    return f"Mean Dice {number(pooled_dice(folds))} over {counted(len(cases), 'validation case')} of {which}."


def fold_notes(model: ModelFolder) -> list[str]:
    """What a reader must know about the folds: missing, unfinished, not validated."""
    notes = []
    if model.missing:
        several = len(model.missing) > 1
        notes.append(
            f"{'Folds' if several else 'Fold'} {', '.join(model.missing)} {'are' if several else 'is'} missing: the "
            f"scores are those of the folds that are there, and the cases of the missing ones were not predicted. "
            f"The commands to train them are at the end of the page."
        )
    for fold in model.folds:
        if not fold.is_finished:
            notes.append(f"Fold {fold.name} is not finished: {state(fold)}.")
        elif fold.scores is None:
            notes.append(f"Fold {fold.name} has no validation scores. The command with --val at the end makes them.")
    if any(fold.name == "all" and fold.scores for fold in model.folds):
        notes.append(
            "Fold 'all' was validated on the cases that it was trained on: its scores say nothing about new cases."
        )
    return notes


def state(fold: Fold) -> str:
    """How far the fold's training came, in words."""
    if fold.is_finished:
        return "finished"
    done = fold.epochs[-1].number + 1 if fold.epochs else 0
    planned = "" if fold.planned_epochs is None else f" of {fold.planned_epochs}"
    checkpoint = f"{fold.checkpoint} is there" if fold.checkpoint else "no checkpoint"
    return f"{counted(done, 'epoch')}{planned}, {checkpoint}"


def facts(model: ModelFolder) -> list[tuple[str, str]]:
    """Name and value, in the order of the page; what nobody recorded is said to be so."""
    values = model.values
    rows = [
        ("Data set", model.dataset),
        ("Channels", ", ".join(_channels(model.dataset_json)) or "not recorded"),
        ("Regions" if model.labels.has_regions else "Classes", _classes(model)),
        ("Trainer", model.trainer),
        ("Plans", model.plans_name),
        ("Configuration", model.configuration),
        *([("Previous stage", model.previous_stage)] if model.previous_stage else []),
        ("Network", _network(model)),
        ("Patch", f"{times(values.get('patch_size'))} voxels"),
        ("Batch", str(values.get("batch_size", "not recorded"))),
        ("Spacing", f"{times(values.get('spacing'))} mm"),
        ("Strides", ", ".join(times(stride) for stride in model.strides or []) or "not recorded"),
    ]
    features = model.arch_kwargs.get("features_per_stage")
    if features and model.network in (None, model.planned_network):
        rows.append(("Channels per level", ", ".join(map(str, features))))
    if model.network in (None, model.planned_network):
        further = {key: value for key, value in model.arch_kwargs.items() if key not in _SAID_ELSEWHERE}
        if method_of(model.planned_network or "") and further:
            rows.append(("Network options", ", ".join(f"{key} = {_short(value)}" for key, value in further.items())))
    rows += _cost(model)
    if model.options:
        rows.append(("Training options", ", ".join(f"{key} = {value}" for key, value in model.options.items())))
    rows += _hardware(model)
    return rows


_SAID_ELSEWHERE = ("strides", "features_per_stage", "patch_size")


def _short(value: Any) -> str:
    """A value for a table: long lists and architecture codes are cut."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _channels(dataset_json: dict[str, Any]) -> list[str]:
    """Their names; nnU-Net takes either key."""
    names = dataset_json.get("channel_names") or dataset_json.get("modality") or {}
    return [str(name) for name in (names.values() if isinstance(names, dict) else names)]


def _network(model: ModelFolder) -> str:
    if model.network:
        return model.network
    return f"{model.planned_network} (as the plans say)" if model.planned_network else "not recorded"


def _classes(model: ModelFolder) -> str:
    names = [
        f"{name} ({' + '.join(map(str, values))})" if model.labels.has_regions else f"{name} ({values[0]})"
        for values, name in model.labels.classes.items()
    ]
    ignored = [] if model.labels.ignore is None else [f"label {model.labels.ignore} is ignored"]
    return ", ".join([*names, *ignored])


def _cost(model: ModelFolder) -> Iterator[tuple[str, str]]:
    measured = next((fold.complexity for fold in model.folds if fold.complexity), None) or _planned_cost(model)
    if measured is None:
        yield "Parameters and cost", "not recorded by this trainer"
        return
    parameters = measured["parameters"]
    yield (
        "Parameters",
        f"{parameters['total']:,} in all, {parameters['active']:,} active, {parameters['trainable']:,} trainable",
    )
    if "density" in measured:
        yield "Active kernels", f"{measured['density']:.2%} of those of the sparse convolutions"
    for convention, meaning in _CONVENTIONS.items():
        if convention in measured:
            cost = measured[convention]
            yield (
                f"Cost of a patch, {convention} convention",
                f"{significant(cost['gmacs'])} GMACs = {significant(cost['gflops'])} GFLOPs "
                f"for {times(measured['patch_size'])} voxels ({meaning})",
            )


def _planned_cost(model: ModelFolder) -> dict[str, Any] | None:
    """The cost of one of our networks by its plans, which an imported model has; None for others."""
    if method_of_trainer(model.trainer) is None:
        return None
    from nnunet_ext.costs.describe import describe  # which needs torch

    try:
        report = describe(model.plans, model.dataset_json, model.configuration, measure=False, trainer=model.trainer)
    except (ConfigurationError, KeyError, TypeError, ValueError):  # a stranger's plans
        return None
    return report if "parameters" in report else None


def _hardware(model: ModelFolder) -> Iterator[tuple[str, str]]:
    """The machine as nnU-Net's debug.json has it, without the host's name: pages are passed on."""
    seen = dict.fromkeys(_machine(fold.debug) for fold in model.folds)
    yield "Trained with", "; ".join(text for text in seen if text) or "not recorded"
    releases = dict.fromkeys(
        ", ".join(f"{name} {release}" for name, release in fold.complexity["versions"].items())
        for fold in model.folds
        if fold.complexity and fold.complexity["versions"]
    )
    if releases:
        yield "Releases", "; ".join(releases)


def _machine(debug: dict[str, Any]) -> str:
    parts = [str(debug.get("gpu_name") or debug.get("device") or "")]
    for name, key in (("PyTorch", "torch_version"), ("cuDNN", "cudnn_version")):
        if str(debug.get(key, "None")) != "None":
            parts.append(f"{name} {debug[key]}")
    return ", ".join(part for part in parts if part)
