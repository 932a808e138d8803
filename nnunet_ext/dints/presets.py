"""Named settings for `nnunet_ext plan`: the paper's models and recipes (`dints/`), and searches (`dints_search/`)."""

from typing import Any

from nnunet_ext.dints.architecture_code import CVPR_CODE

PRESETS: dict[str, dict[str, Any]] = {
    # The paper's sigma 0.8 model, searched on MSD Pancreas, as its authors published it.
    "cvpr": {**CVPR_CODE.settings(), "use_downsample": True, "base_features": 32},
    # Retraining, section 4.1: 41k iterations. The paper's peak rate is 0.2 for 16 patches; this is for nnU-Net's 2.
    "paper-recipe": {
        "schedule": "steps",
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 4e-5,
        "initial_lr": 0.025,
        "num_epochs": 164,
        "num_iterations_per_epoch": 250,
    },
    "checkpointed": {"checkpoint_cells": True},
}

SEARCH_PRESETS: dict[str, dict[str, Any]] = {
    # Budgets of table 1.
    "sigma-02": {"sigma": 0.2},
    "sigma-05": {"sigma": 0.5},
    "sigma-08": {"sigma": 0.8},
    # The whole search in a tenth of the iterations, for a first look.
    "short-search": {"num_epochs": 8, "weight_epochs": 4, "warmup_iterations": 100, "halve_every": 800},
    "checkpointed": {"checkpoint_cells": True},
}


def demo_settings(device: str, real_images: bool, steps: int) -> dict[str, Any]:
    """What the demo sets for DiNTS: the published topology, narrow; a search takes hours and has its own commands.

    Args:
        device: "cpu" or "cuda".
        steps: of the whole training.
    """
    return {"base_features": 16} if device == "cuda" else {"base_features": 6, "initial_lr": 0.02}
