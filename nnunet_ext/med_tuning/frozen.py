"""Frozen weights are rounded to half precision once, before the first step, so that files hold them in half the size.

What is trained against is then exactly what is stored: reading a checkpoint gives the same numbers again. Under
nnU-Net's mixed precision (float16 on CUDA) matrix products see these rounded values anyway.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def _is_large(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.ndim > 1  # biases and norms weigh nothing


@torch.no_grad()
def round_to_half(network: nn.Module, names: Iterable[str]) -> None:
    """Rounds these matrices and kernels to the nearest float16, in place; they stay float32. Repeating changes nothing.

    A value beyond float16's range leaves its tensor as it is.
    """
    state = network.state_dict()
    for name in names:
        if _is_large(state[name]):
            rounded = state[name].half().float()
            if rounded.isfinite().all():
                state[name].copy_(rounded)


def with_halves(weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """A state dict in which these tensors are float16 where that loses nothing. `load_state_dict` reads both."""
    result = dict(weights)
    for name in names:
        half = weights[name].half() if _is_large(weights[name]) else None
        if half is not None and torch.equal(half.float(), weights[name]):
            result[name] = half
    return result
