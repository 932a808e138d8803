"""Images that a network's strides do not divide: zeros at the end of each axis, and logits cropped back."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.planning.patches import padded_size


def pad_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """`x [B, C, *]` with zeros at the end of its spatial axes, up to `size`; `x` itself where it has that size."""
    missing = [wanted - there for wanted, there in zip(size, x.shape[2:], strict=True)]
    return F.pad(x, [n for m in reversed(missing) for n in (0, m)]) if any(missing) else x


def pad_to_multiple(x: Tensor, steps: Sequence[int]) -> Tensor:
    """`x [B, C, *]` with zeros at the end of its spatial axes, up to multiples of `steps`."""
    return pad_to(x, padded_size(x.shape[2:], steps))


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` values of each spatial axis of `x [B, C, *]`: a view, or `x` itself where it has that size."""
    for axis, length in enumerate(size, start=2):
        if x.shape[axis] != length:
            x = x.narrow(axis, 0, length)
    return x
