"""Named settings for `nnunet_ext plan --preset e2enet/NAME`: the rows of the papers' tables, and forms of ours.

Each changes one thing, and several combine: `--preset e2enet/amos-s70 --preset e2enet/no-shift`.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "s70": {"sparsity": 0.7},
    "s80": {"sparsity": 0.8},
    "s90": {"sparsity": 0.9},
    # The published AMOS figures at S = 0.7 fit only with density 0.2 in the fusion convolutions with 48 outputs.
    "amos-s70": {"sparsity": 0.7, "density_overrides": {"48": 0.2}},
    # Not of the papers: 16 neighbouring outputs share their inputs. Processors compute these in sixteens: at the first
    # level 16 instead of 19.
    "s80_blocks": {"sparsity": 0.8, "connection_block": 16, "fan_in_multiple": 16},
    "s90_blocks": {"sparsity": 0.9, "connection_block": 16},
    "dense": {"sparsity": None},
    "static": {"freeze_topology": True},
    "no-shift": {"shift_size": 0},
    "shift-1": {"shift_size": 1},
    "shift-2": {"shift_size": 2},
    "shift-3": {"shift_size": 3},
    "shift-7": {"shift_size": 7},
    "3x1x3": {"kernel_size": [3, 1, 3]},
    "3x3x1": {"kernel_size": [3, 3, 1]},
    "3x3x3": {"kernel_size": [3, 3, 3]},
    "plus": {"base_features": 58},
    "update-600": {"update_every": 600},
    "update-1200": {"update_every": 1200},
    "update-1800": {"update_every": 1800},
    # CT to MRI: the topology of the pretrained network stays.
    "fine-tune": {"freeze_topology": True, "num_epochs": 250},
}


def demo_settings(device: str, real_images: bool, steps: int) -> dict[str, Any]:
    """What the demo sets for E2ENet: narrow on a CPU, and masks that move some times in so short a training.

    Real images get, on a CPU, a wider network, as 8 channels are too few to learn from them, and single patches of
    twice the size, from which it is easier to see where in the body one is.

    Args:
        device: "cpu" or "cuda".
        steps: of the whole training.
    """
    if device == "cuda":
        return {"base_features": 32, "drop_rate": 0.3, "initial_lr": 0.03, "update_every": max(1, steps // 15)}
    settings = {"base_features": 8, "drop_rate": 0.3, "initial_lr": 0.1, "update_every": max(1, steps // 8)}
    if real_images:
        settings |= {"base_features": 16, "batch_size": 1, "patch_voxels": 2 * 32 * 48 * 48}
    return settings
