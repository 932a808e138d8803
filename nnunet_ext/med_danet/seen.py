"""What the parts of Med-DANet say of the slices of a tile whose truth is known: the numbers that `evidence` weighs."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.med_danet.choice import ChoiceMetric, choice_labels, pixel_counts, slice_scores, truth_and_valid
from nnunet_ext.med_danet.routing import choices_of, lowest_nearby


@torch.no_grad()
def seen_slices(
    network: Any, x: Tensor, target: Tensor, metric: ChoiceMetric, neighbours: int, **told: Any
) -> dict[str, np.ndarray]:
    """What is to be known of the slices of one tile, as arrays with one row a slice.

    Args:
        network: a `MedDANet` in evaluation.
        x: `[B, C, D, H, W]` or `[B, C, H, W]`.
        target, told: see `choice.truth_and_valid`; `[B, T, ...]`.
        neighbours: on either side, that a skip needs.

    Returns:
        `counts [S, choices, classes, 3]`, `choice.pixel_counts` of skip and of each candidate; `skip [S]`, the share of
        skip with its neighbours; `chosen [S]`, the best candidate; `label [S]`, what the metric says of the truth;
        `foreground [S]` in pixels; `known [S]`, whether all is annotated.
    """
    truth, valid = truth_and_valid(network.fold(target), network.num_classes, **told)
    regions = bool(told.get("regions"))
    found = [
        pixel_counts(network.fold(network.candidate(index, x)), truth, valid, regions=regions)
        for index in range(len(network.candidates))
    ]
    none = found[0].clone()
    none[..., :2] = 0
    shares = network.shares(x)
    foreground = truth.any(1).flatten(1).sum(1)
    scores = torch.stack([slice_scores(counts, metric.score) for counts in found], 1)
    columns = {
        "counts": torch.stack([none, *found], 1),
        "skip": lowest_nearby(shares[..., 0], neighbours).flatten(),
        "chosen": choices_of(shares, 2.0, 0).flatten(),
        "label": choice_labels(scores, foreground, metric),
        "foreground": foreground,
        "known": valid.flatten(1).all(1),
    }
    return {name: column.cpu().numpy() for name, column in columns.items()}
