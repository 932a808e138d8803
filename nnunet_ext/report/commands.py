"""The commands that make a model again, predict with it, and write its page again; all words quoted for a shell."""

import re
import shlex
from collections.abc import Sequence

from nnunet_ext.report.model_folder import ModelFolder


def preprocess_command(model: ModelFolder) -> str:
    """Preprocessing for this configuration; nnU-Net's command takes the data set's number only."""
    number = re.match(r"Dataset(\d+)_", model.dataset)
    dataset = str(int(number.group(1))) if number else model.dataset
    return shlex.join(
        ["nnUNetv2_preprocess", "-d", dataset, "-plans_name", model.plans_name, "-c", model.configuration]
    )


def train_commands(model: ModelFolder) -> list[str]:
    """One command per fold; those that are missing come last, and validation alone where only that is missing."""
    commands = []
    for name in [*(fold.name for fold in model.folds), *model.missing]:
        words = ["nnUNetv2_train", model.dataset, model.configuration, name]
        words += ["-tr", model.trainer, "-p", model.plans_name, *_device(model)]
        fold = next((fold for fold in model.folds if fold.name == name), None)
        if fold is None:
            remark = "missing"
        elif not fold.is_finished:
            words.append("--c")
            remark = "not finished: continues it"
        elif fold.scores is None:
            words.append("--val")
            remark = "validates it"
        else:
            remark = ""
        commands.append(shlex.join(words) + (f"  # {remark}" if remark else ""))
    return commands


def predict_command(model: ModelFolder) -> str | None:
    """Prediction with the finished folds, or else with the best checkpoints; None without any.

    Fold `all` is left out where there are others. A cascade needs the predictions of its previous stage.
    """
    checkpoint: list[str] = []
    usable = [fold.name for fold in model.folds if fold.is_finished]
    if not usable:
        usable = [fold.name for fold in model.folds if fold.checkpoint == "checkpoint_best.pth"]
        checkpoint = ["-chk", "checkpoint_best.pth"]
    folds = [name for name in usable if name != "all"] or usable
    if not folds:
        return None
    words = ["-d", model.dataset, "-c", model.configuration, "-tr", model.trainer, "-p", model.plans_name, "-f", *folds]
    words += [*checkpoint, *_device(model)]
    previous = f" -prev_stage_predictions PREDICTIONS_OF_{model.previous_stage}" if model.previous_stage else ""
    return f"nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER {shlex.join(words)}{previous}"


def _device(model: ModelFolder) -> list[str]:
    return ["-device", model.device] if model.device else []


def report_command(model: ModelFolder, options: Sequence[str] = ()) -> str:
    """The command that wrote the page, for the folder at nnU-Net's place."""
    words = shlex.join([f"{model.dataset}/{model.path.name}", *options])
    return f'nnunet_ext report "$nnUNet_results"/{words}'
