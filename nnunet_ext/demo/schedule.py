"""The demo's device and short schedule: what is set in the plans so that a training ends within minutes."""

import os
from collections.abc import Mapping
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.planning.patches import smaller_patch

# What the short schedule sets in the plans, by device; `patch_voxels` and `topology_updates` are worked out per plan.
SCHEDULES: dict[str, dict[str, Any]] = {
    "cpu": {
        "batch_size": 2,
        "num_epochs": 8,
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
# What real images get on top: more epochs, a wider network where the phantoms' is too narrow to learn from them, and
# single patches of twice the size, from which it is easier to see where in the body one is.
REAL_DATA_FACTOR = 2.5
REAL_DATA_SCHEDULES: dict[tuple[str, str], dict[str, Any]] = {
    ("e2enet", "cpu"): {"base_features": 16, "batch_size": 1, "patch_voxels": 2 * 32 * 48 * 48},
}
METHOD_SCHEDULES: dict[str, dict[str, dict[str, Any]]] = {
    # The published topology; a search takes hours and has commands of its own.
    "dints": {
        "cpu": {"base_features": 6, "initial_lr": 0.02},
        "cuda": {"base_features": 16},
    },
    "e2enet": {
        "cpu": {"base_features": 8, "topology_updates": 8, "drop_rate": 0.3, "initial_lr": 0.1},
        "cuda": {"base_features": 32, "topology_updates": 15, "drop_rate": 0.3, "initial_lr": 0.03},
    },
}


def chosen_device(asked: str) -> str:
    """The device: "auto" is CUDA where there is a GPU, else the CPU.

    Raises:
        ConfigurationError: the device that was asked for is not there.
    """
    import torch

    if asked == "cpu":
        return asked
    if asked == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigurationError("torch finds no Apple GPU (mps). Use --device cpu.")
        return asked
    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise ConfigurationError("torch finds no CUDA GPU. Use --device cpu.")
    return "cpu"


def cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def augmentation_processes(device: str) -> int:
    """Worker processes that prepare the training's batches."""
    return min(8, cpus() - 1) if cpus() > 1 else 0


def demo_settings(
    method: str, device: str, configuration: Mapping[str, Any], *, phantoms: bool = True, epochs: int | None = None
) -> dict[str, Any]:
    """The settings for `derive_plans` that make the planned training short.

    Args:
        method: its name.
        device: "cuda" gets the larger schedule.
        configuration: as planned; its patch is only ever made smaller.
        phantoms: real images get `REAL_DATA_FACTOR` times the epochs and what `REAL_DATA_SCHEDULES` adds.
        epochs: instead of the schedule's.
    """
    kind = "cuda" if device == "cuda" else "cpu"
    schedule = {**SCHEDULES[kind], **METHOD_SCHEDULES[method][kind]}
    if not phantoms:
        schedule |= REAL_DATA_SCHEDULES.get((method, kind), {})
        schedule["num_epochs"] = round(REAL_DATA_FACTOR * schedule["num_epochs"])
    if epochs is not None:
        schedule["num_epochs"] = epochs
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    schedule["patch_size"] = smaller_patch(configuration["patch_size"], strides, schedule.pop("patch_voxels"))
    if updates := schedule.pop("topology_updates", None):
        steps = schedule["num_epochs"] * schedule["num_iterations_per_epoch"]
        schedule["update_every"] = max(1, steps // updates)
    return schedule
