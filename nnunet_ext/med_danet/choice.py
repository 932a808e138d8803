"""Which candidate a slice should have had: the choice metric of Med-DANet (arXiv 2206.06575, section 3.3, equation 4).

All of it is computed in float32: half precision cannot tell the scores of two good candidates apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.layers.precision import without_autocast
from nnunet_ext.med_danet.routing import IN_PLANE, mean_of_mirrored, mirrored

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


def pixel_counts(logits: Tensor, truth: Tensor, valid: Tensor, *, regions: bool = False) -> Tensor:
    """Annotated pixels of each slice and foreground class that are predicted and true, predicted, and true.

    Args:
        logits: `[N, K, H, W]` in any precision.
        truth, valid: of `truth_and_valid`.

    Returns:
        `[N, classes, 3]` in float32.
    """
    if regions:
        predicted = logits > 0
    else:
        classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, 1, 1)
        predicted = logits.argmax(1, keepdim=True) == classes
    predicted = predicted & valid
    return torch.stack([mask.flatten(2).sum(2).float() for mask in (predicted & truth, predicted, truth)], 2)


def slice_scores(counts: Tensor, score: str = "mean") -> Tensor:
    """Hard Dice `[N]` of slices from their `pixel_counts`.

    The paper does not define its score of a slice. "mean" is the one in its authors' code, averaged over the foreground
    classes: a class absent from truth and prediction counts 1, and one wrong pixel of an absent class makes it 0.
    "pooled" is the Dice of the pixels of all classes together.
    """
    both, ours, theirs = (counts.sum(1, keepdim=True) if score == "pooled" else counts).unbind(2)
    return ((2 * both + EPSILON) / (ours + theirs + EPSILON)).mean(1)


@dataclass(frozen=True)
class ChoiceMetric:
    """What a candidate is worth on a slice: (1 - alpha) S + alpha softmax(1 / F) (equation 4), or another weighing.

    Args:
        costs: F, one a candidate, in G; see `scaled_costs`.
        alpha: weight of cheapness.
        softmax: which of both goes through a softmax over the candidates: "cost" (the paper's), "score", "both" or
            "none" (the rows of table 4).
        cost: where given, the metric is S - cost * F / max(F) instead: the Dice that the dearest candidate must gain
            over one that costs nothing.
        score: of a slice, see `slice_scores`.
        views: 1, 2 or 4: S is the mean over so many flips of the slice.

    Raises:
        ConfigurationError: a cost that is not above 0.
    """

    costs: Sequence[float]
    alpha: float = ALPHA
    softmax: str = "cost"
    cost: float | None = None
    score: str = "mean"
    views: int = 1

    def __post_init__(self) -> None:
        if min(self.costs, default=0) <= 0:
            raise ConfigurationError(f"Each candidate needs a cost above 0, found {list(self.costs)}.")

    def __call__(self, scores: Tensor) -> Tensor:
        """S `[N, candidates]` -> the metric, in float32."""
        scores = scores.float()
        if self.cost is not None:
            return scores - self.cost * torch.tensor(self.costs, device=scores.device) / max(self.costs)
        if self.softmax in ("score", "both"):
            scores = scores.softmax(1)
        cheap = cheapness(self.costs) if self.softmax in ("cost", "both") else 1 / torch.tensor(self.costs)
        return (1 - self.alpha) * scores + self.alpha * cheap.to(scores.device)


def choice_labels(scores: Tensor, foreground: Tensor, metric: ChoiceMetric) -> Tensor:
    """0 (skip) for slices without foreground, else 1 + the candidate with the best metric, of equal ones the first.

    Args:
        scores: S `[N, candidates]`, Dice of each.
        foreground: `[N]`, foreground pixels of each slice.

    Returns:
        `[N]` int64.

    Raises:
        ConfigurationError: the metric is of another number of candidates.
    """
    if len(metric.costs) != scores.shape[1]:
        raise ConfigurationError(f"Each of the {scores.shape[1]} candidates needs a cost, found {list(metric.costs)}.")
    return torch.where(foreground >= 1, metric(scores).argmax(1) + 1, 0)


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
    metric: ChoiceMetric,
    *,
    regions: bool = False,
    ignore_label: int | None = None,
) -> Tensor:
    """Labels `[N]` of slices: what the candidates of `network` (a `MedDANet`), as they are now, are worth on each.

    Only slices with foreground run the candidates.

    Args:
        slices: `[N, C, H, W]`.
        target, regions, ignore_label: see `truth_and_valid`.

    Returns:
        `[N]` int64: 0 for skip, 1 + the index of a candidate, or `UNKNOWN`.
    """
    truth, valid = truth_and_valid(target, network.num_classes, regions=regions, ignore_label=ignore_label)
    foreground = truth.any(1).flatten(1).sum(1)
    where = foreground.nonzero()[:, 0]
    scores = torch.zeros(len(slices), len(network.candidates), device=slices.device)
    if len(where):
        axes = IN_PLANE[: metric.views.bit_length() - 1]
        seen, true, known = (mirrored(tensor[where], axes) for tensor in (slices, truth, valid))
        for index in range(len(network.candidates)):
            counts = pixel_counts(network.candidate(index, seen), true, known, regions=regions)
            scores[where, index] = mean_of_mirrored(slice_scores(counts, metric.score), len(where))
    return without_unknown(choice_labels(scores, foreground, metric), truth, valid)


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
