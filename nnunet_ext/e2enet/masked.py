"""Convolutions with a mask over their kernels: the sparse feature-map connections of E2ENet (section 2.2).

A kernel is everything that joins one input to one output channel: the spatial taps at one index of the weight's first
two dimensions. Inactive kernels are zero in the weight itself, so that the forward pass is a plain convolution.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


def active_kernels(kernels: int, density: float) -> int:
    """round(kernels * density), at least 1, without the binary noise of 1 - sparsity (0.19999999999999996)."""
    return max(1, round(kernels * round(density, 9)))


class Connections(NamedTuple):
    """The active kernels of a convolution in compressed rows, one row for each output channel.

    Row `o` is `starts[o]:starts[o + 1]` of the input channels `inputs` (int64 `[active]`, ascending in a row) and of
    `kernels` (`[active, *kernel]`); `starts` is int64 `[C_out + 1]`.
    """

    starts: Tensor
    inputs: Tensor
    kernels: Tensor


class KernelMask(nn.Module):
    """Mixin for convolutions: a persistent bool buffer `kernel_mask` of `weight.shape[:2]`, True = active."""

    weight: Tensor
    kernel_mask: Tensor
    _drawn: int

    def init_mask(self) -> None:
        """Adds the buffer, all kernels active."""
        self.register_buffer("kernel_mask", torch.ones(self.weight.shape[:2], dtype=torch.bool))
        self._drawn = self.kernel_mask.numel()

    def count_active(self) -> int:
        """Active kernels; on the meta device, where masks have no values, as many as were drawn."""
        return self._drawn if self.kernel_mask.is_meta else int(self.kernel_mask.sum())

    def randomize_mask(self, density: float) -> None:
        """Keeps round(density * kernels) kernels, at least one, drawn without replacement; zeroes the others."""
        count = self._drawn = active_kernels(self.kernel_mask.numel(), density)
        mask = torch.zeros(self.kernel_mask.numel(), dtype=torch.bool)
        mask[torch.randperm(mask.numel())[:count]] = True
        self.kernel_mask.copy_(mask.view_as(self.kernel_mask))
        self.apply_mask()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Accepts weight and mask, and the compact form that the first versions stored (`active_kernels`
        `[active, *kernel]` and `kernel_bits`, 8 kernels a byte). Damage and another sparsity are errors.
        """
        problem = None
        if prefix + "active_kernels" in state_dict and prefix + "kernel_bits" in state_dict:
            kernels = state_dict.pop(prefix + "active_kernels")
            mask = unpack_bits(state_dict.pop(prefix + "kernel_bits"), self.kernel_mask.shape)
            if mask is None or int(mask.sum()) != len(kernels) or kernels.shape[1:] != self.weight.shape[2:]:
                problem = "mask and kernels do not fit; the checkpoint is damaged or of another network"
            else:
                state_dict[prefix + "kernel_mask"] = mask
                state_dict[prefix + "weight"] = kernels.new_zeros(self.weight.shape)
                state_dict[prefix + "weight"][mask] = kernels
        mask = state_dict.get(prefix + "kernel_mask")
        if problem is None and mask is not None and mask.shape == self.kernel_mask.shape:
            stored = int(mask.sum())
            if stored != self._drawn:
                problem = f"{stored} active kernels are stored, this network has {self._drawn}: its sparsity is another"
        if problem:
            error_msgs.append(f"{prefix}weight: {problem}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @torch.no_grad()
    def active_connections(self) -> Connections:
        """The kernels that are not zero by output channel, for code that computes nothing for the others."""
        weight = self.weight if isinstance(self, nn.Conv3d) else self.weight.transpose(0, 1)
        mask = (weight != 0).flatten(2).any(2)  # as the forward pass, which knows the weight alone
        outputs, inputs = mask.nonzero(as_tuple=True)
        counts = torch.bincount(outputs, minlength=len(mask))
        return Connections(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), inputs, weight[outputs, inputs])

    @torch.no_grad()
    def apply_mask(self) -> None:
        """Sets the weights of inactive kernels to zero."""
        self.weight.mul_(expand(self.kernel_mask, self.weight))


class MaskedConv3d(KernelMask, nn.Conv3d):
    """`nn.Conv3d` with a kernel mask `[C_out, C_in]`."""

    def __init__(self, *args: int, **kwargs: object) -> None:
        nn.Conv3d.__init__(self, *args, **kwargs)  # type: ignore[arg-type]
        self.init_mask()


class MaskedConvTranspose3d(KernelMask, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` with a kernel mask `[C_in, C_out]`."""

    def __init__(self, *args: int, **kwargs: object) -> None:
        nn.ConvTranspose3d.__init__(self, *args, **kwargs)  # type: ignore[arg-type]
        self.init_mask()


def expand(mask: Tensor, weight: Tensor) -> Tensor:
    """A mask `[a, b]` shaped to multiply a weight `[a, b, *kernel]`."""
    return mask.view(*mask.shape, *(1,) * (weight.ndim - 2))


def unpack_bits(bits: Tensor, shape: torch.Size) -> Tensor | None:
    """The bool tensor of `shape` from bytes, the first element in the lowest bit; None where their number is wrong."""
    if bits.dtype != torch.uint8 or bits.numel() != -(-shape.numel() // 8):
        return None
    flat = np.unpackbits(bits.cpu().numpy(), count=shape.numel(), bitorder="little")
    return torch.from_numpy(flat).to(bits.device, torch.bool).view(shape)


def masked_modules(network: nn.Module) -> Iterator[tuple[str, KernelMask]]:
    """`(name, module)` of every masked convolution, in the order of the network's construction."""
    for name, module in network.named_modules():
        if isinstance(module, KernelMask):
            yield name, module
