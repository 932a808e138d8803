"""Checkpoints of former versions, which held sparse weights in other forms: how they become slots.

First a layer had `active_kernels` `[active, *kernel]` and `kernel_bits`, 8 kernels of the mask a byte, the first in the
lowest bit; then the dense `weight` with a bool `kernel_mask` over its first two dimensions. Their optimizers had
moments of the dense weight.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_slots(state_dict: dict[str, Any], prefix: str, dense_shape: tuple[int, ...]) -> str | None:
    """Replaces a layer's entries of a former version in `state_dict` by `values` and `index`, in ascending order.

    Returns what is wrong with them, None where nothing is or where there are none.
    """
    mask, values = None, None
    if {prefix + "active_kernels", prefix + "kernel_bits"} <= state_dict.keys():
        values = state_dict.pop(prefix + "active_kernels")
        mask = _unpacked(state_dict.pop(prefix + "kernel_bits"), dense_shape[:2])
        if mask is None or int(mask.sum()) != len(values) or tuple(values.shape[1:]) != dense_shape[2:]:
            return "mask and kernels do not fit; the checkpoint is damaged or of another network"
    elif {prefix + "weight", prefix + "kernel_mask"} <= state_dict.keys():
        weight, mask = state_dict.pop(prefix + "weight"), state_dict.pop(prefix + "kernel_mask")
        if tuple(weight.shape) != dense_shape or tuple(mask.shape) != dense_shape[:2]:
            return f"weight of {list(weight.shape)} is stored, this network has {list(dense_shape)}"
        values = weight[mask]
        if weight.count_nonzero() != values.count_nonzero():
            return "kernels outside of the mask are not zero: these weights are an average over masks that moved"
    if mask is not None:
        state_dict[prefix + "values"] = values
        state_dict[prefix + "index"] = mask.flatten().nonzero().squeeze(1)
    return None


def _unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The bool tensor of `shape`; None where the number of bytes is wrong."""
    count = int(np.prod(shape))
    if bits.dtype != torch.uint8 or bits.numel() != -(-count // 8):
        return None
    flat = np.unpackbits(bits.cpu().numpy(), count=count, bitorder="little")
    return torch.from_numpy(flat).to(bits.device, torch.bool).view(shape)


def moments_to_slots(layers: Iterable[Any], optimizer: torch.optim.Optimizer) -> int:
    """Turns moments of dense weights, which an older checkpoint gave `optimizer`, into those of the slots.

    Moments of inactive kernels were zero: none is lost. The layers must have the checkpoint's index already.

    Args:
        layers: the masked convolutions.

    Returns:
        How many tensors were turned.
    """
    turned = 0
    for layer in layers:
        state = optimizer.state.get(layer.values, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and tuple(value.shape) == layer.dense_shape:
                state[name] = value.flatten(0, 1)[layer.index]
                turned += 1
    return turned
