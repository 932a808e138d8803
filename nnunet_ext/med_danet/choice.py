"""Which candidate a slice should have had: the choice metric of Med-DANet (arXiv 2206.06575, section 3.3, equation 4).

All of it is computed in float32: half precision cannot tell the scores of two good candidates apart.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.layers.precision import without_autocast

ALPHA = 0.001
REFERENCE_GFLOPS = 0.605  # of the cheapest candidate in the paper, to which costs are scaled
UNKNOWN = -100  # the label of a slice of which too little is annotated; cross-entropy ignores it
EPSILON = 1e-8


def scaled_costs(macs: Sequence[float]) -> list[float]:
    """Costs F in the paper's GFLOPs, so that alpha means the same at every patch: the cheapest candidate has 0.605."""
    cheapest = min(macs)
    return [REFERENCE_GFLOPS * value / cheapest for value in macs]


def cheapness(costs: Sequence[float]) -> Tensor:
    """softmax(1 / F) `[n]` of costs F in G, from equation 4."""
    return (1 / torch.tensor(costs, dtype=torch.float32)).softmax(0)


def truth_and_valid(
    target: Tensor, num_classes: int, *, regions: bool = False, ignore_label: int | None = None
) -> tuple[Tensor, Tensor]:
    """What is foreground and what is annotated, from targets as nnU-Net makes them.

    Args:
        target: `[N, 1, H, W]` labels; or with `regions` `[N, R, H, W]` masks, followed by the mask of ignored pixels
            where there is an ignore label.
        num_classes: K, the network's logits; without regions, class 0 is background.

    Returns:
        Masks of the foreground classes `[N, K - 1, H, W]` (regions: `[N, K, H, W]`), false where not annotated, and of
        the annotated pixels `[N, 1, H, W]`, both bool.
    """
    if regions:
        masks = target > 0.5
        valid = ~masks[:, num_classes : num_classes + 1] if ignore_label is not None else torch.ones_like(masks[:, :1])
        return masks[:, :num_classes] & valid, valid
    valid = target != ignore_label if ignore_label is not None else torch.ones_like(target, dtype=torch.bool)
    classes = torch.arange(1, num_classes, device=target.device).view(1, -1, 1, 1)
    return (target == classes) & valid, valid


def slice_dice(logits: Tensor, truth: Tensor, valid: Tensor, *, regions: bool = False) -> Tensor:
    """Hard Dice of each slice `[N]` in float32, the mean over all foreground classes; a class absent from both is 1.

    The paper does not define its score of a slice; this is the one in its authors' code, averaged over the classes.

    Args:
        logits: `[N, K, H, W]` in any precision.
        truth, valid: of `truth_and_valid`.
    """
    if regions:
        predicted = logits > 0
    else:
        classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, 1, 1)
        predicted = logits.argmax(1, keepdim=True) == classes
    predicted = predicted & valid
    both, ours, theirs = (mask.flatten(2).sum(2).float() for mask in (predicted & truth, predicted, truth))
    return ((2 * both + EPSILON) / (ours + theirs + EPSILON)).mean(1)


def choice_labels(scores: Tensor, foreground: Tensor, costs: Sequence[float], alpha: float = ALPHA) -> Tensor:
    """Equation 4: 0 (skip) for slices without foreground, else 1 + the candidate with the best score for its cost.

    The metric is (1 - alpha) S_i + alpha softmax(1 / F)_i; of equal ones the first candidate wins.

    Args:
        scores: S `[N, n]`, Dice of each candidate.
        foreground: `[N]`, foreground pixels of each slice.
        costs: F, one a candidate, in G; see `scaled_costs`.

    Returns:
        `[N]` int64.

    Raises:
        ConfigurationError: another number of costs than of candidates, or a cost that is not above 0.
    """
    if len(costs) != scores.shape[1] or min(costs) <= 0:
        raise ConfigurationError(f"Each of the {scores.shape[1]} candidates needs a cost above 0, found {costs}.")
    metric = (1 - alpha) * scores.float() + alpha * cheapness(costs).to(scores.device)
    return torch.where(foreground >= 1, metric.argmax(1) + 1, 0)


def without_unknown(labels: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """The labels, `UNKNOWN` where pixels without annotation leave open whether a slice could be skipped."""
    has_foreground = truth.flatten(1).any(1)
    whole = valid.flatten(1).all(1)
    return torch.where(has_foreground | whole, labels, UNKNOWN)


@torch.no_grad()
def slice_labels(
    network: Any,
    slices: Tensor,
    target: Tensor,
    costs: Sequence[float],
    alpha: float = ALPHA,
    *,
    regions: bool = False,
    ignore_label: int | None = None,
) -> Tensor:
    """Labels `[N]` of slices: what the candidates of `network` (a `MedDANet`), as they are now, are worth on each.

    Only slices with foreground run the candidates.

    Args:
        slices: `[N, C, H, W]`.
        target, regions, ignore_label: see `truth_and_valid`.
        costs, alpha: see `choice_labels`.

    Returns:
        `[N]` int64: 0 for skip, 1 + the index of a candidate, or `UNKNOWN`.
    """
    truth, valid = truth_and_valid(target, network.num_classes, regions=regions, ignore_label=ignore_label)
    foreground = truth.any(1).flatten(1).sum(1)
    where = foreground.nonzero()[:, 0]
    scores = torch.zeros(len(slices), len(network.candidates), device=slices.device)
    if len(where):
        for index in range(len(network.candidates)):
            logits = network.candidate(index, slices[where])
            scores[where, index] = slice_dice(logits, truth[where], valid[where], regions=regions)
    return without_unknown(choice_labels(scores, foreground, costs, alpha), truth, valid)


def decision_loss(logits: Tensor, labels: Tensor, class_weights: Sequence[float]) -> Tensor:
    """Weighted cross-entropy (equation 7) in float32; 0 with a gradient of 0 where no label is known.

    Args:
        logits: `[N, n + 1]`. labels: `[N]`. class_weights: n + 1 numbers.
    """
    weights = torch.tensor(class_weights, dtype=torch.float32, device=logits.device)
    if not bool((labels != UNKNOWN).any()):
        return logits.float().sum() * 0
    with without_autocast(logits.device):
        return F.cross_entropy(logits.float(), labels, weights, ignore_index=UNKNOWN)
