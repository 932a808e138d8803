"""Scales and shifts of the cells' norms all at once: a launch for each would take longer than the arithmetic.

torch's instance norm repeats a norm's parameters for every sample, in a launch each; a supernet multiplies them with
the weights of their operations, in a launch each; and all of it has its way back. Here the parameters of equal width
are stacked, multiplied and repeated together, and each norm gets a view. The numbers are the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.dints.cells import Affine, Weight


class StackedAffine:
    """Scale and shift `[B, C]` of each norm, in the place of `cells.affine`.

    Args:
        norms: those of one width in a list.
        batch: B.
        weights: what each is multiplied with, in the same order, `[number of norms]`; None for ones.
    """

    def __init__(self, norms: Sequence[Sequence[Any]], batch: int, weights: Tensor | None = None) -> None:
        self._given: dict[Any, Affine] = {}
        split = [None] * len(norms) if weights is None else weights.split([len(group) for group in norms])
        for group, factors in zip(norms, split, strict=True):
            stacked = torch.stack([norm.weight for norm in group] + [norm.bias for norm in group])
            if factors is not None:
                stacked = stacked * factors.repeat(2)[:, None]
            rows = (stacked[:, None].expand(-1, batch, -1).contiguous() if batch > 1 else stacked[:, None]).unbind(0)
            self._given.update(zip(group, zip(rows[: len(group)], rows[len(group) :], strict=True), strict=True))

    def __call__(self, norm: Any, weight: Weight) -> Affine:
        """As `cells.affine`, with the weight that is in it already."""
        return self._given[norm]
