"""The demo's device and short schedule: what is set in the plans so that a training ends within minutes."""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from nnunet_ext.discovery.devices import cpus
from nnunet_ext.methods import Method
from nnunet_ext.planning.patches import smaller_patch

# What the short schedule sets in the plans, by device; `patch_voxels` becomes a patch that the plan's strides divide.
SCHEDULES: dict[str, dict[str, Any]] = {
    "cpu": {
        "batch_size": 2,
        "num_epochs": 6,
        "num_iterations_per_epoch": 34,
        "num_val_iterations_per_epoch": 2,
        "patch_voxels": 32 * 48 * 48,
    },
    "cuda": {
        "batch_size": 2,
        "num_epochs": 30,
        "num_iterations_per_epoch": 50,
        "num_val_iterations_per_epoch": 5,
        "patch_voxels": 96**3,
    },
}
REAL_DATA_FACTOR = 2.7  # more epochs, for real images
STOCK_EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500, 750, 1000)  # for which nnU-Net has trainers, of 250 iterations each
STOCK_WIDTH = {"cpu": 8, "cuda": 32}  # of the U-Net's first level


def stock_trainer(steps: int) -> tuple[str, int]:
    """nnU-Net's own trainer whose number of iterations is nearest to `steps`, by their ratio, and its epochs."""
    epochs = min(STOCK_EPOCHS, key=lambda epochs: abs(math.log(250 * epochs / steps)))
    return f"nnUNetTrainer_{epochs}epoch{'s' if epochs > 1 else ''}", epochs


def short_stock(configuration: Mapping[str, Any], device: str) -> dict[str, Any]:
    """A configuration of nnU-Net's plans with the demo's batch and patch and, on a CPU, a narrow U-Net."""
    kind = "cuda" if device == "cuda" else "cpu"
    short = deepcopy(dict(configuration))
    kwargs, schedule = short["architecture"]["arch_kwargs"], SCHEDULES[kind]
    short["batch_size"] = schedule["batch_size"]
    short["patch_size"] = smaller_patch(short["patch_size"], kwargs["strides"], schedule["patch_voxels"])
    planned = kwargs["features_per_stage"]
    kwargs["features_per_stage"] = [min(width, width * STOCK_WIDTH[kind] // planned[0]) for width in planned]
    return short


def augmentation_processes(device: str) -> int:
    """Worker processes that prepare the training's batches."""
    return min(8, cpus() - 1) if cpus() > 1 else 0


def demo_settings(
    method: Method,
    device: str,
    configuration: Mapping[str, Any],
    *,
    phantoms: bool = True,
    epochs: int | None = None,
    mirroring: bool = False,
) -> dict[str, Any]:
    """The settings for `derive_plans` that make the planned training short.

    Args:
        method: adds settings of its own.
        device: "cuda" gets the larger schedule.
        configuration: as planned; its patch is only ever made smaller.
        phantoms: real images get `REAL_DATA_FACTOR` times the epochs, and what the method adds for them.
        epochs: instead of the schedule's.
        mirroring: as nnU-Net has it; so short a training can hardly learn both sides of a body in each place.
    """
    kind = "cuda" if device == "cuda" else "cpu"
    schedule = dict(SCHEDULES[kind])
    if not phantoms:
        schedule["num_epochs"] = round(REAL_DATA_FACTOR * schedule["num_epochs"])
    if epochs is not None:
        schedule["num_epochs"] = epochs
    steps = schedule["num_epochs"] * schedule["num_iterations_per_epoch"]
    schedule["mirroring"] = mirroring
    schedule |= method.demo_settings()(kind, not phantoms, steps)
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    schedule["patch_size"] = smaller_patch(configuration["patch_size"], strides, schedule.pop("patch_voxels"))
    return schedule
