"""Named settings for `nnunet_ext plan --preset e2enet/NAME`: the rows of the papers' tables.

Each changes one thing, and several combine: `--preset e2enet/amos-s70 --preset e2enet/no-shift`.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "s70": {"sparsity": 0.7},
    "s80": {"sparsity": 0.8},
    "s90": {"sparsity": 0.9},
    # The published AMOS figures at S = 0.7 fit only with density 0.2 in the fusion convolutions with 48 outputs.
    "amos-s70": {"sparsity": 0.7, "density_overrides": {"48": 0.2}},
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
