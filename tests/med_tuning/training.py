"""A tiny transformer and a short schedule for the tests of Med-Tuning's training."""

BACKBONE = "vit_tiny_patch16_224"
SETTINGS = {"embed_dim": 24, "depth": 4, "num_heads": 2, "patch_size": 8}
OPTIONS = {
    "num_epochs": 3,
    "num_iterations_per_epoch": 4,
    "num_val_iterations_per_epoch": 2,
    "save_every": 50,
    "initial_lr": 0.001,
    "warmup_epochs": 1,
    "pretrained": False,
}


def arch_kwargs(strides, **further):
    return {
        "strides": strides,
        "backbone": BACKBONE,
        "backbone_settings": SETTINGS,
        "decoder": "setr_naive",
        "alpha": 4,
        **further,
    }
