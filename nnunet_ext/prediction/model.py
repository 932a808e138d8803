"""A trained model folder, read without running code that it holds: networks of all folds, plans, labels."""

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json
from nnunet_ext.weights.checkpoints import read_checkpoint


@dataclass(frozen=True)
class Model:
    """What prediction needs; `networks` are in eval, one a fold, on the CPU."""

    folder: Path
    folds: tuple[int | str, ...]
    checkpoint: str
    networks: list[nn.Module]
    plans: Any  # nnU-Net's managers
    configuration: Any
    labels: Any
    dataset: dict[str, Any]
    trainer: str
    mirroring: tuple[int, ...] | None
    channels: int = 1  # of the network's input

    @property
    def ending(self) -> str:
        """Of the files with images and label maps, such as ".nii.gz"."""
        return self.dataset["file_ending"]

    @property
    def channel_names(self) -> list[str]:
        """Of the images, such as "CT", in the order of their files."""
        return [str(name) for name in self.dataset.get("channel_names", self.dataset.get("modality", {})).values()]


def load_model(folder: Path, folds: Sequence[int | str], checkpoint: str) -> Model:
    """Builds the networks as nnU-Net's predictor does, and loads their weights strictly.

    Raises:
        ConfigurationError: a file is missing, damaged or holds more than data; the trainer is not installed; the
            weights do not fit the network.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    paths = check_model(folder, folds, checkpoint)
    dataset = read_json(folder / "dataset.json")
    plans = PlansManager(read_json(folder / "plans.json"))
    checkpoints = [read_checkpoint(path) for path in paths]
    first = checkpoints[0]
    try:
        trainer = recursive_find_trainer_class_by_name(first["trainer_name"])
    except RuntimeError as error:
        raise ConfigurationError(
            f"{folder} was trained by {first['trainer_name']}, which nnU-Net does not find here. Install the package "
            f"that has it, or name its folder in nnUNet_extTrainer."
        ) from error
    configuration = plans.get_configuration(first["init_args"]["configuration"])
    labels = plans.get_label_manager(dataset)
    sizes = (determine_num_input_channels(plans, configuration, dataset), labels.num_segmentation_heads)
    new_form = "plans_manager" in inspect.signature(trainer.build_network_architecture).parameters
    architecture: tuple[Any, ...] = (plans, configuration)
    if not new_form:
        architecture = (
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
        )
    networks = []
    for path, content in zip(paths, checkpoints, strict=True):
        network = trainer.build_network_architecture(*architecture, *sizes, enable_deep_supervision=False)
        try:
            network.load_state_dict(content["network_weights"])
        except RuntimeError as error:
            raise ConfigurationError(f"{path} does not fit the network of {folder / 'plans.json'}: {error}") from error
        networks.append(network.eval())
    mirroring = first.get("inference_allowed_mirroring_axes")
    return Model(folder, tuple(folds), checkpoint, networks, plans, configuration, labels, dataset,
                 first["trainer_name"], None if mirroring is None else tuple(mirroring), sizes[0])  # fmt: skip


def check_model(folder: Path, folds: Sequence[int | str], checkpoint: str) -> list[Path]:
    """The checkpoint of each fold.

    Raises:
        ConfigurationError: a file of the model folder is not there.
    """
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            raise ConfigurationError(f"{folder} is no trained model: it has no {name}.")
    paths = [folder / f"fold_{fold}" / checkpoint for fold in folds]
    for fold, path in zip(folds, paths, strict=True):
        if not path.is_file():
            there = sorted(p.parent.name.removeprefix("fold_") for p in folder.glob(f"fold_*/{checkpoint}"))
            found = f" It has -f {' '.join(there)}." if there else ""
            raise ConfigurationError(
                f"{folder} has no fold_{fold}/{checkpoint}.{found} Choose with -d, -tr, -p, -c, -f and -chk."
            )
    return paths


def compiled(network: nn.Module) -> nn.Module:
    """The network under torch.compile where nnU-Net's variable asks for it, as nnU-Net's predictor does."""
    import torch

    if os.environ.get("nnUNet_compile", "").lower() in ("true", "1", "t"):
        return torch.compile(network)  # type: ignore[return-value]
    return network
