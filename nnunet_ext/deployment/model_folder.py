"""A trained model folder: which folds and checkpoints it has, and what of a checkpoint prediction needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json
from nnunet_ext.weights.checkpoints import read_checkpoint

# What nnU-Net's predictor reads of a checkpoint. Our own key is not among it: methods keep there what `--c` needs.
KEPT = ("network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes")
FOLDER_FILES = ("plans.json", "dataset.json")


@dataclass(frozen=True)
class ModelFolder:
    """`.../TRAINER__PLANS__CONFIGURATION` with the folds that are asked for.

    Attributes:
        path: the folder.
        plans, dataset_json: its two files.
        folds: "0" to "4", or "all" for the fold of that name.
        checkpoint: the file of each fold.
    """

    path: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    folds: tuple[str, ...]
    checkpoint: str

    @property
    def checkpoints(self) -> list[Path]:
        """The file of each fold, in their order."""
        return [self.path / f"fold_{fold}" / self.checkpoint for fold in self.folds]

    def is_second_stage(self, configuration: str) -> bool:
        """Whether the configuration needs the predictions of another one, as the second stage of a cascade does."""
        return bool(self.plans["configurations"].get(configuration, {}).get("previous_stage"))


def open_model(path: Path, folds: Sequence[str] = (), checkpoint: str = "checkpoint_final.pth") -> ModelFolder:
    """The model folder; without `folds` with all numbered ones that have the checkpoint, else with `all`.

    Raises:
        ConfigurationError: it is no model folder, or a fold or checkpoint is not there.
    """
    plans, dataset_json = (_read(path / name) for name in FOLDER_FILES)
    if not isinstance(plans.get("configurations"), dict) or "labels" not in dataset_json:
        raise ConfigurationError(f"{path} is no model folder: plans.json or dataset.json is not nnU-Net's.")
    model = ModelFolder(path, plans, dataset_json, tuple(folds) or _folds(path, checkpoint), checkpoint)
    missing = [str(file) for file in model.checkpoints if not file.is_file()]
    if missing or not model.folds:
        raise ConfigurationError(f"{', '.join(missing) or path} is not there: choose with --folds and --checkpoint.")
    return model


def slim_checkpoint(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What prediction needs of a checkpoint, and the names of what else it has.

    Raises:
        ConfigurationError: it cannot be read without running code, or is none of nnU-Net's.
    """
    content = read_checkpoint(path)
    missing = [key for key in KEPT[:3] if key not in content]
    if not missing and "configuration" not in content["init_args"]:
        missing = ["configuration in its init_args"]
    if missing:
        raise ConfigurationError(f"{path} is no checkpoint of an nnU-Net training: it has no {', '.join(missing)}.")
    return {key: content[key] for key in KEPT if key in content}, sorted(set(content) - set(KEPT))


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with its matrices and kernels in float16, which `load_state_dict` reads as it reads float32.

    Biases, norms and running statistics stay: they weigh nothing, and a small variance would become 0. So does a tensor
    with a value beyond float16's range. What shared memory does so still, and is stored once.
    """
    made: dict[tuple, Tensor] = {}
    for tensor in weights.values():
        if tensor.dtype == torch.float32 and tensor.ndim > 1:
            half = tensor.half()
            made[place(tensor)] = half if bool(half.isfinite().all()) else tensor
    return {name: made.get(place(tensor), tensor) for name, tensor in weights.items()}


def place(tensor: Tensor) -> tuple:
    """Where a tensor's values lie: the same for two names of one tensor, of which nnU-Net's networks have many."""
    return (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        return content
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path.parent} is no model folder: {path.name} cannot be read ({error}).") from error


def _folds(model: Path, checkpoint: str) -> tuple[str, ...]:
    """The numbered folds that have the checkpoint, else `all`."""
    found = sorted(path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{checkpoint}"))
    return tuple(fold for fold in found if fold.isdigit()) or tuple(found)
