"""What a training asks of a cluster, from its plans: upper estimates, which a study file or Snakemake can replace."""

import math
from collections.abc import Mapping
from typing import Any

# Voxels of batches that a training step goes through in a second. Slow machines of their kind: a limit that ends a
# training costs more than one that is too long.
_VOXELS_PER_SECOND = {"cuda": 4e6, "mps": 1e6, "cpu": 1e5}
_STEP_SECONDS = 0.2  # of a step at least
_VALIDATION_MINUTES = 60
_BASE_MB = 6000  # Python, torch and nnU-Net's workers
_BATCHES = 24  # that augmentation keeps at once, with its copies


def training_resources(
    configuration: Mapping[str, Any], channels: int, device: str, *, epochs: int, iterations: int, val_iterations: int
) -> dict[str, int]:
    """Memory and time of one fold.

    Args:
        configuration: of the plans, resolved: `patch_size` (voxels) and `batch_size`.
        channels: of the images.
        device: cuda, mps or cpu.
        epochs, iterations, val_iterations: the schedule.

    Returns:
        `mem_mb` (1e6 bytes of main memory) and `runtime` (minutes).
    """
    voxels = configuration["batch_size"] * math.prod(configuration["patch_size"])
    batch_mb = voxels * (channels + 1) * 4 / 1e6
    step = max(_STEP_SECONDS, voxels / _VOXELS_PER_SECOND[device])
    seconds = epochs * (iterations + val_iterations / 2) * step
    return {
        "mem_mb": math.ceil((_BASE_MB + _BATCHES * batch_mb) / 1000) * 1000,
        "runtime": math.ceil(seconds / 60) + _VALIDATION_MINUTES,
    }
