"""From what the decision network says of a slice to what it gets: one decision, whichever way it is mirrored."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IN_PLANE = (-2, -1)


def mirrored(slices: Tensor, axes: Sequence[int]) -> Tensor:
    """Slices `[N, C, H, W]` and their flips along all combinations of `axes`, `[2^axes * N, C, H, W]`."""
    for axis in axes:
        slices = torch.cat([slices, slices.flip(axis)])
    return slices


def mean_of_mirrored(shares: Tensor, slices: int) -> Tensor:
    """The mean over the views of `mirrored`: `[views * N, choices]` -> `[N, choices]`.

    Halves are added to halves, so that a flip of the slices, which exchanges views, gives the same to the last bit.
    """
    views = len(shares) // slices
    while len(shares) > slices:
        first, second = shares.chunk(2)
        shares = first + second
    return shares / views


def lowest_nearby(skip: Tensor, neighbours: int) -> Tensor:
    """The lowest of a slice and its `neighbours` on either side, of shares `[B, D]`; there are none beyond the ends."""
    if neighbours == 0:
        return skip
    return -F.max_pool1d(-skip[:, None], 2 * neighbours + 1, 1, neighbours)[:, 0]


def choices_of(shares: Tensor, threshold: Tensor | float, neighbours: int) -> Tensor:
    """What each slice gets `[B, D]`: 0 for skip, else 1 + the index of a candidate.

    Args:
        shares: `[B, D, choices]`, of skip and of each candidate.
        threshold: a slice is skipped where its own share of skip, and those of its neighbours, are above it.
    """
    skipped = lowest_nearby(shares[..., 0], neighbours) > threshold
    return torch.where(skipped, 0, shares[..., 1:].argmax(-1) + 1)
