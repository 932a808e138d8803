"""Named settings for `nnunet_ext plan --preset med_danet/NAME`: the rows of the paper's tables."""

from typing import Any

from nnunet_ext.med_danet.bank import PAPER_BANK

PRESETS: dict[str, dict[str, Any]] = {
    # Table 6, the number of candidates: the lightest two, the four of the paper, and two of medium size besides, whose
    # sizes the paper does not give.
    "n2": {"candidates": [PAPER_BANK[0], PAPER_BANK[2]]},
    "n4": {"candidates": PAPER_BANK},
    "n6": {
        "candidates": [
            PAPER_BANK[0],
            {"type": "unet", "width": 14},
            PAPER_BANK[1],
            PAPER_BANK[2],
            {"type": "transbts", "width": 16, "layers": 2},
            PAPER_BANK[3],
        ]
    },
    # Tables 3 and 4, BraTS: crops of 128 or whole slices. For 2d configurations (--configuration 2d).
    "crop128": {"patch_size": [128, 128], "position_size": [128, 128]},
    "full-resolution": {"patch_size": [240, 240], "position_size": [240, 240]},
    # Table 5, other decision networks, in timm's forms.
    "decision-mobilenetv2": {"decision": "mobilenetv2_100"},
    "decision-ghostnet": {"decision": "ghostnet_050"},
    # The paper's learning rate of the bank, for its 400 epochs on BraTS.
    "paper-lr": {"initial_lr": 1e-4},
    # The learning rate of the decision network in the authors' code instead of the paper's.
    "code-lr": {"decision_lr": 0.001},
}


def demo_settings(device: str, real_images: bool, steps: int) -> dict[str, Any]:
    """What the demo sets for Med-DANet: two small candidates, which learn fast, and costs that count.

    Args:
        device: "cpu" or "cuda".
        steps: of the whole training.
    """
    widths = (12, 16) if device == "cuda" or real_images else (6, 8)
    candidates = [{"type": "unet", "width": width} for width in widths]
    return {"candidates": candidates, "leaving_candidates": [], "initial_lr": 0.005, "cost": 0.1}
