"""Named settings for `nnunet_ext plan --preset med_tuning/NAME`: the paper's networks and its recipe."""

from typing import Any

_VIT, _SWIN = {"decoder": "upernet"}, {"decoder": "swin_unet"}

PRESETS: dict[str, dict[str, Any]] = {
    # The two networks of tables 1 and 2, and the other sets of weights of table 7.
    "vit-upernet": {"backbone": "vit_base_patch16_224.orig_in21k", **_VIT},
    "vit-upernet-augreg": {"backbone": "vit_base_patch16_224.augreg_in21k", **_VIT},
    "vit-upernet-clip": {"backbone": "vit_base_patch16_clip_quickgelu_224.openai", **_VIT},
    "vit-upernet-mae": {"backbone": "vit_base_patch16_224.mae", **_VIT},
    "swin-unet": {"backbone": "swin_tiny_patch4_window7_224.ms_in1k", **_SWIN},
    # How the authors' code trains: 250 epochs of 21 steps of 16 crops, adapters that are no identity at the start.
    "paper-recipe": {
        "optimizer": "adam",
        "initial_lr": 2e-3,
        "weight_decay": 1e-5,
        "num_epochs": 250,
        "num_iterations_per_epoch": 21,
        "warmup_epochs": 25,
        "cosine_epochs": 250,
        "batch_size": 16,
        "zero_init": False,
    },
}


def demo_settings(device: str, real_images: bool, steps: int) -> dict[str, Any]:
    """What the demo sets for Med-Tuning: a small transformer with random weights, trained whole.

    So nothing is downloaded, and nothing is seen of what pretrained weights bring.

    Args:
        device: "cpu" or "cuda".
        steps: of the whole training.
    """
    return {
        "backbone": "vit_tiny_patch16_224",
        "backbone_settings": {"patch_size": 6},
        "depths": [1, 1, 1, 1],
        "decoder": "setr_naive",
        "tuning": "scratch",
        "pretrained": False,
        "initial_lr": 1e-3,
    }
