"""What a Med-Tuning network holds and costs, counted on its layers without computing them (torch's meta device)."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ext.errors import ConfigurationError

PARTS = {"backbone": "backbone", "adapters": "tuning", "decoder": "decoder"}


def cost_report(
    input_channels: int, num_classes: int, patch_size: Sequence[int], arch_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Parameters in all and by part, GMACs (1e9 multiply-adds) and GFLOPs of one patch; "parts" gives all / trainable.

    The network is the one that is built for `patch_size`, whatever patch the arch_kwargs name: positions and frequency
    branches have its size. "adapters" is whatever the tuning method inserts. Attention within windows that hold
    prompts (VPT in a Swin) is counted without its two products.

    Raises:
        ConfigurationError: arch_kwargs that the network refuses.
    """
    import torch

    from nnunet_ext.costs.complexity import complexity_report
    from nnunet_ext.med_tuning.network import MedTuningNet

    sized = {**arch_kwargs, "patch_size": [int(side) for side in patch_size]}
    try:
        with torch.device("meta"):
            network = MedTuningNet(input_channels, num_classes, **sized)
    except TypeError as error:
        raise ConfigurationError(f"arch_kwargs of a Med-Tuning network: {error}") from error
    report = complexity_report(network, input_channels, patch_size)
    report["parts"] = part_counts(network)
    return report


def part_counts(network: Any) -> dict[str, dict[str, int]]:
    """Parameters, all and trainable, of a Med-Tuning network's backbone, adapters and decoder."""
    from nnunet_ext.costs.complexity import count_parameters

    return {
        name: {key: count_parameters(getattr(network, part))[key] for key in ("total", "trainable")}
        for name, part in PARTS.items()
    }
