"""Parameters of a Med-Tuning network by part."""

from typing import Any

from nnunet_ext.costs.complexity import count_parameters

PARTS = {"backbone": "backbone", "adapters": "tuning", "decoder": "decoder"}


def part_counts(network: Any) -> dict[str, dict[str, int]]:
    """Parameters, all and trainable, of the backbone, of what the tuning method inserts, and of the decoder."""
    return {
        name: {key: count_parameters(getattr(network, part))[key] for key in ("total", "trainable")}
        for name, part in PARTS.items()
    }
