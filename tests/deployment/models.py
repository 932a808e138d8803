"""Model folders of tiny networks after one step of their optimizers, as nnU-Net stores them, and images for them."""

import json
import os
from copy import deepcopy
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from contract.trainer import STRIDES
from end_to_end.stock import Workspace, handmade_plans, stock_architecture, write_image
from med_danet.small import OPTIONS as ROUTED
from med_danet.small import TWO
from med_danet.small import arch_kwargs as routed
from med_tuning import training

from nnunet_ext.discovery.registry import TRAINERS

LABELS = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "a": 1, "b": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
ARCHITECTURES = {
    "E2ENetTrainer": ({"strides": STRIDES, "features_per_stage": [4, 5, 6], "sparsity": 0.5}, SHORT),
    "MedTuningTrainer": (training.arch_kwargs(STRIDES, patch_size=[8, 16, 16]), training.OPTIONS),
    "MedDANetTrainer": (routed(STRIDES, TWO), ROUTED),
}


def trainer_class(name):
    if name == "nnUNetTrainer":
        return import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
    return getattr(import_module(TRAINERS[name]), name)


def plans_of(name):
    if name == "nnUNetTrainer":
        return handmade_plans(stock_architecture(STRIDES), strides=STRIDES)
    arch_kwargs, options = ARCHITECTURES[name]
    network = trainer_class(name).network_class
    architecture = {
        "network_class_name": f"{network.__module__}.{network.__name__}",
        "arch_kwargs": deepcopy(arch_kwargs),
        "_kw_requires_import": [],
    }
    return handmade_plans(architecture, strides=STRIDES, **options)


def make_model(root, name="E2ENetTrainer", folds=(0, 1), labels=LABELS):
    """`root` with nnU-Net's three folders; returns the model folder."""
    workspace = Workspace(root)
    data = workspace.preprocessed / workspace.dataset / "nnUNetPlans_3d_fullres"
    data.mkdir(parents=True)
    (data / "case_000.b2nd").touch()  # the trainer asks for the kind of its data when it is initialised
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in workspace.folders.items():
            patch.setenv(variable, value)
        for fold in folds:
            plans = plans_of(name)
            trainer = trainer_class(name)(plans, "3d_fullres", fold, deepcopy(labels), torch.device("cpu"))
            trainer.initialize()
            for parameter in trainer.network.parameters():
                parameter.grad = torch.full_like(parameter, 1e-3) if parameter.requires_grad else None
            trainer.optimizer.step()
            trainer.inference_allowed_mirroring_axes = (0, 2)
            trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
    folder = Path(trainer.output_folder).parent
    assert folder.is_relative_to(root)
    plans = plans_of(name)
    plans.pop("continue_training")
    plans["foreground_intensity_properties_per_channel"] = {"0": {"mean": 1.5, "std": 20.0}}
    for file, content in (("plans.json", plans), ("dataset.json", labels)):
        (folder / file).write_text(json.dumps(content))
    (folder / "fold_0" / "progress.png").write_bytes(b"a curve")
    return folder


def make_images(folder, cases=2, channels=1):
    """Noise with a bright block, smaller and larger than a patch."""
    rng = np.random.default_rng(0)
    for case in range(cases):
        for channel in range(channels):
            array = rng.normal(size=(7 + 4 * case, 20, 18)).astype(np.float32)
            array[2:5, 5:12, 5:12] += 3
            write_image(folder / f"case_{case}_{channel:04d}.nii.gz", array, (1.0, 1.0, 2.0))
    return folder
