"""Convolutions with a mask over their kernels: the sparse feature-map connections of E2ENet (section 2.2).

A kernel is everything that joins one input to one output channel: the spatial taps at one index of the weight's first
two dimensions. Inactive kernels are zero in the weight itself, so that the forward pass is a plain convolution.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class KernelMask(nn.Module):
    """Mixin for convolutions: a persistent buffer `kernel_mask` `[weight.shape[0], weight.shape[1]]`, True = active."""

    weight: nn.Parameter
    kernel_mask: Tensor

    def init_mask(self) -> None:
        """Adds the buffer, all kernels active."""
        self.register_buffer("kernel_mask", torch.ones(self.weight.shape[:2], dtype=torch.bool))

    def randomize_mask(self, density: float) -> None:
        """Keeps round(density * kernels) kernels, drawn without replacement; zeroes the others' weights."""
        count = active_kernels(self.kernel_mask.numel(), density)
        mask = torch.zeros(self.kernel_mask.numel(), dtype=torch.bool)
        mask[torch.randperm(mask.numel())[:count]] = True
        self.kernel_mask.copy_(mask.view_as(self.kernel_mask))
        self.apply_mask()

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


def active_kernels(kernels: int, density: float) -> int:
    """round(kernels * density), with the binary noise of 1 - sparsity (0.19999999999999996) taken off first."""
    return round(kernels * round(density, 9))


def expand(mask: Tensor, weight: Tensor) -> Tensor:
    """A mask `[a, b]` shaped to multiply a weight `[a, b, *kernel]`."""
    return mask.view(*mask.shape, *(1,) * (weight.ndim - 2))


def masked_modules(network: nn.Module) -> Iterator[tuple[str, KernelMask]]:
    """`(name, module)` of every masked convolution, in the order of the network's construction."""
    for name, module in network.named_modules():
        if isinstance(module, KernelMask):
            yield name, module
