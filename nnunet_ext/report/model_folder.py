"""A trained model folder as nnU-Net writes it: which folds are there, and what their small files say.

Only JSON and text are read, and checkpoints only where there is no log, without running code of theirs: a folder may
come from a stranger. What is missing or damaged in a fold becomes a sentence in `notes`, not an error.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json
from nnunet_ext.planning.options import PLANS_KEY
from nnunet_ext.report.scores import FoldScores, Labels, Postprocessing, read_postprocessing, read_scores
from nnunet_ext.report.training_log import Epoch, read_checkpoint_logging, read_logs

DEFAULT_FOLDS = 5
_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Fold:
    """One `fold_<name>` folder; what the training did not write is empty or None."""

    name: str
    folder: Path
    epochs: list[Epoch]
    planned_epochs: int | None
    checkpoint: str | None
    debug: dict[str, Any]
    complexity: dict[str, Any] | None
    method: str | None
    history: list[dict[str, Any]]
    scores: FoldScores | None

    @property
    def is_finished(self) -> bool:
        """Whether the training came to its end."""
        return self.checkpoint == "checkpoint_final.pth"

    @property
    def seconds(self) -> float:
        """Time spent in the epochs that the log holds; NaN without any."""
        return sum(epoch.seconds for epoch in self.epochs) if self.epochs else math.nan


@dataclass(frozen=True)
class ModelFolder:
    """`<results>/<dataset>/<trainer>__<plans_name>__<configuration>`."""

    path: Path
    dataset: str
    trainer: str
    plans_name: str
    configuration: str
    plans: dict[str, Any]
    values: dict[str, Any]
    dataset_json: dict[str, Any]
    labels: Labels
    folds: list[Fold]
    missing: list[str]
    notes: list[str] = field(default_factory=list)
    postprocessing: list[Postprocessing] = field(default_factory=list)

    @property
    def arch_kwargs(self) -> dict[str, Any]:
        """Arguments of the network; empty for plans of nnU-Net before 2.3, which did not name any."""
        return self.values.get("architecture", {}).get("arch_kwargs", {})

    @property
    def file_ending(self) -> str:
        """Ending of the data set's files."""
        return _ending(self.dataset_json)

    @property
    def network(self) -> str | None:
        """Dotted path of the network that was trained, where the trainer recorded it."""
        return next((fold.complexity["network"] for fold in self.folds if fold.complexity), None)

    @property
    def planned_network(self) -> str | None:
        """Dotted path of the network that the plans name; a trainer may build another one."""
        return self.values.get("architecture", {}).get("network_class_name")

    @property
    def strides(self) -> list[Any] | None:
        """Stride of each level."""
        return self.arch_kwargs.get("strides") or self.values.get("pool_op_kernel_sizes")

    @property
    def previous_stage(self) -> str | None:
        """Configuration of a cascade whose predictions this one gets beside the image."""
        return self.values.get("previous_stage")

    @property
    def device(self) -> str | None:
        """For `-device`, where the model was trained on something else than nnU-Net's default."""
        devices = {str(fold.debug.get("device", "cuda")).partition(":")[0] for fold in self.folds}
        return devices.pop() if len(devices) == 1 and devices <= {"cpu", "mps"} else None

    @property
    def options(self) -> dict[str, Any]:
        """The training options that the plans hold for our trainers."""
        return self.values.get(PLANS_KEY) or {}

    @property
    def scored(self) -> list[FoldScores]:
        """The scores of the folds that have some."""
        return [fold.scores for fold in self.folds if fold.scores]

    @property
    def cross_validation(self) -> list[FoldScores]:
        """The scores of cases on which the fold was not trained."""
        return [scores for scores in self.scored if scores.fold != "all"]


def read_model_folder(path: str | os.PathLike) -> ModelFolder:
    """Reads `path`.

    Raises:
        ConfigurationError: it is no model folder.
    """
    trainer, plans_name, configuration = model_names(Path(path))
    path = Path(path).resolve()
    plans, dataset_json = _needed(path, "plans.json"), _needed(path, "dataset.json")
    try:
        values = _resolved(plans["configurations"], configuration)
        labels = Labels.from_dataset_json(dataset_json)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} is no model folder that can be read: plans.json has no usable configuration '{configuration}', "
            f"or dataset.json no usable labels ({type(error).__name__}: {error})."
        ) from error
    dataset = str(plans.get("dataset_name") or path.parent.name)
    notes: list[str] = []
    ending = _ending(dataset_json)
    folders = [p for p in path.iterdir() if p.is_dir() and re.fullmatch(r"fold_(\d+|all)", p.name)]
    folds = [_read_fold(folder, labels, ending, notes) for folder in sorted(folders, key=_fold_order)]
    if not folds:
        raise ConfigurationError(f"{path} holds no fold_0, fold_1, ... or fold_all: nothing was trained here.")
    numbered = {fold.name for fold in folds} - {"all"}
    missing = [str(n) for n in range(_number_of_folds(dataset)) if numbered and str(n) not in numbered]
    return ModelFolder(
        path, dataset, trainer, plans_name, configuration, plans, values, dataset_json, labels, folds, missing, notes,
        _read_postprocessing(path, labels, notes),
    )  # fmt: skip


def model_names(path: Path) -> tuple[str, str, str]:
    """Trainer, plans and configuration of a model folder, by its name or by that of what it links to.

    Raises:
        ConfigurationError: no folder, a fold, or a name that nnU-Net does not give.
    """
    if not path.is_dir():
        raise ConfigurationError(f"{path} is not a folder. Give a model folder: .../DatasetXXX/TRAINER__PLANS__CONFIG")
    if path.name.startswith("fold_") and (path.parent / "plans.json").is_file():
        raise ConfigurationError(f"{path} is one fold of a model. Give the folder above it: {path.parent}")
    names = next((n for n in (path.absolute().name.split("__"), path.resolve().name.split("__")) if len(n) == 3), [])
    if not names or not all(names):
        raise ConfigurationError(
            f"{path} is no model folder of nnU-Net: its name must be TRAINER__PLANS__CONFIGURATION, "
            f"for example nnUNetTrainer__nnUNetPlans__3d_fullres."
        )
    return names[0], names[1], names[2]


def _needed(path: Path, name: str) -> dict[str, Any]:
    file = path / name
    if not file.is_file():
        raise ConfigurationError(f"{path} is no trained model folder of nnU-Net: it has no {name}.")
    try:
        content = read_json(file)
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{file} cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} must hold a JSON object.")
    return content


def _resolved(configurations: Mapping[str, Any], name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration with all that it inherits, as nnU-Net resolves it."""
    values = configurations[name]
    parent = values.get("inherits_from")
    if parent is None:
        return dict(values)
    if parent in seen:
        raise ValueError(f"configurations inherit in a circle: {', '.join(seen)}")
    return {**_resolved(configurations, parent, (*seen, name)), **values}


def _ending(dataset_json: Mapping[str, Any]) -> str:
    return str(dataset_json.get("file_ending", ".nii.gz"))


def _fold_order(folder: Path) -> float:
    name = folder.name.removeprefix("fold_")
    return int(name) if name.isdigit() else math.inf


def _number_of_folds(dataset: str) -> int:
    """As many as the data set's split file has, where it is at hand; nnU-Net's default otherwise."""
    root = os.environ.get("nnUNet_preprocessed")
    try:
        return len(read_json(Path(root) / dataset / "splits_final.json")) if root else DEFAULT_FOLDS
    except (OSError, ValueError, TypeError):
        return DEFAULT_FOLDS


_MERGED = "crossval_results_folds_"  # nnU-Net's folder of the cases of several folds, with their numbers behind it


def _read_postprocessing(path: Path, labels: Labels, notes: list[str]) -> list[Postprocessing]:
    found = []
    for folder in sorted(path.glob(f"{_MERGED}*")):
        take = partial(read_postprocessing, folds=folder.name.removeprefix(_MERGED).split("_"), labels=labels)
        found.append(_optional(folder, "postprocessing.json", take, notes))
    return [postprocessing for postprocessing in found if postprocessing is not None]


def _read_fold(folder: Path, labels: Labels, ending: str, notes: list[str]) -> Fold:
    name = folder.name.removeprefix("fold_")
    debug = _optional(folder, "debug.json", _dict, notes) or {}
    histories = sorted(path.name for path in folder.glob("*_history.json"))
    checkpoint = next((name for name in _CHECKPOINTS if (folder / name).is_file()), None)
    planned = str(debug.get("num_epochs", ""))
    return Fold(
        name=name,
        folder=folder,
        epochs=_read_epochs(folder, checkpoint, notes),
        planned_epochs=int(planned) if planned.isdigit() else None,
        checkpoint=checkpoint,
        debug=debug,
        complexity=_optional(folder, "complexity.json", _complexity, notes),
        method=histories[0].removesuffix("_history.json") if histories else None,
        history=(_optional(folder, histories[0], _history, notes) if histories else None) or [],
        scores=_optional(
            folder, "validation/summary.json", lambda content: read_scores(_dict(content), name, labels, ending), notes
        ),
    )


def _optional(folder: Path, name: str, take: Callable[[Any], Any], notes: list[str]) -> Any:
    """`take(content)` of a JSON file that need not be there; None, with a note, where it cannot be taken apart."""
    if not (folder / name).is_file():
        return None
    try:
        return take(read_json(folder / name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(f"{folder.name}/{name} is damaged and was left out ({type(error).__name__}: {error}).")
        return None


def _dict(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("it must hold an object")
    return content


def _history(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(_dict(row).get("epoch"), int) for row in content):
        raise ValueError("it must hold a list of epochs")
    return content


def _complexity(content: Any) -> dict[str, Any]:
    """The numbers that `nnunet_ext.costs.complexity.complexity_report` gives, and no others."""
    return {
        "network": str(content["network"]),
        "patch_size": [int(size) for size in content["patch_size"]],
        "parameters": {key: int(content["parameters"][key]) for key in ("total", "trainable", "active")},
        **({"density": float(content["density"])} if "density" in content else {}),
        **{
            convention: {unit: float(content[convention][unit]) for unit in ("gmacs", "gflops")}
            for convention in ("true", "paper")
            if convention in content
        },
        "versions": {str(name): str(release) for name, release in dict(content.get("versions") or {}).items()},
    }


def _read_epochs(folder: Path, checkpoint: str | None, notes: list[str]) -> list[Epoch]:
    epochs = read_logs(folder)
    if epochs or checkpoint is None:
        return epochs
    try:
        return read_checkpoint_logging(folder / checkpoint)
    except ValueError as error:
        reason = str(error).replace(str(folder / checkpoint), checkpoint)
        notes.append(f"{folder.name} has no training log, and its checkpoint does not give the curves: {reason}")
        return []
