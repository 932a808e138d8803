"""What E2ENet is built of: a convolution over shifted channels, and the node that fuses three flows."""

# Annotations stay text: dynamo of torch 2.6 cannot make the `list[Tensor]` of a function within a forward pass.
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_ext.e2enet.depth_shift import ChannelSplit, channel_shifts, shifted_concat
from nnunet_ext.e2enet.fused import Pending, concatenate, fuses, written
from nnunet_ext.e2enet.masked import MaskedConv3d, MaskedConvTranspose3d
from nnunet_ext.e2enet.rebuilding import can_rebuild, convolve, norm_and_activation, rebuilding_convolution, rebuilds
from nnunet_ext.e2enet.shared_inputs import SharedInputConv3d, SharedInputConvTranspose3d

NEGATIVE_SLOPE = 0.01


class Sparse(NamedTuple):
    """How a convolution is sparse: its share of active kernels, and how many outputs share their inputs (1: none)."""

    density: float
    connection_block: int = 1
    fan_in_multiple: int = 1

    def convolution(self, *sizes: Any) -> nn.Module:
        """`sizes`: as `nn.Conv3d` takes them."""
        if self.connection_block == 1:
            return MaskedConv3d(*sizes, density=self.density)
        return SharedInputConv3d(*sizes, **self._asdict())

    def up(self, in_channels: int, out_channels: int, stride: tuple[int, int, int]) -> nn.Module:
        """A transposed convolution without bias, whose kernel is its stride."""
        if self.connection_block == 1:
            return MaskedConvTranspose3d(in_channels, out_channels, stride, stride, bias=False, density=self.density)
        return SharedInputConvTranspose3d(in_channels, out_channels, stride, bias=False, **self._asdict())


class ConvBlock(nn.Module):
    """Concatenation and depth shift -> convolution with bias -> InstanceNorm -> LeakyReLU.

    `sparse`: how the convolution is; None for a dense one. `memory_efficient`: a training step keeps the
    convolution's output alone (see `rebuilding.py`).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        shift_size: int,
        split: ChannelSplit,
        sparse: Sparse | None = None,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        self.memory_efficient = memory_efficient
        restricted = 1 in kernel_size
        self.shift_axis = list(kernel_size).index(1) if restricted else 0
        self.shifts = channel_shifts(in_channels, shift_size, split) if restricted else []
        sizes: Any = (in_channels, out_channels, tuple(kernel_size), tuple(stride), tuple(k // 2 for k in kernel_size))
        self.conv = nn.Conv3d(*sizes) if sparse is None else sparse.convolution(*sizes)
        self.norm = nn.InstanceNorm3d(out_channels, affine=True)
        self.act = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, *sources: Any, through: Sequence[nn.Module | None] | None = None) -> Any:
        """`sources`: tensors -> `[B, C_out, D', H', W']`; each source comes through a module where one is given.

        What the convolution reads are tensors `[B, C_i, D, H, W]` of one size. With `nnUNet_ext_fused=1` blocks
        take and give `fused.Pending` instead of tensors in prediction.
        """
        through = through or [None] * len(sources)
        if self.memory_efficient and rebuilds() and can_rebuild(self.conv, self.norm, self.act):
            z = rebuilding_convolution(self.conv, sources, through, self.shifts, self.shift_axis)
            return norm_and_activation(z, self.norm, self.act.negative_slope)
        if fuses(sources[0]) and can_rebuild(self.conv, self.norm, self.act):
            z, norm = self._of_pending(sources, through), self.norm
            return Pending.of(z, norm.weight, norm.bias, norm.eps, self.act.negative_slope)[0]
        tensors = [written(source) for source in sources]

        def parts(*sources: Tensor) -> list[Tensor]:
            return [s if module is None else module(s) for s, module in zip(sources, through, strict=True)]

        def finish(z: Tensor) -> Tensor:
            return self.act(self.norm(z))

        if self.memory_efficient and torch.compiler.is_compiling() and torch.is_grad_enabled():
            # Marks for the partitioner, which would keep what the convolution reads and much else.
            def read(*sources: Tensor) -> Tensor:
                if isinstance(self.conv, SharedInputConv3d):
                    return self.conv.gather(parts(*sources), self.shifts)
                return shifted_concat(parts(*sources), self.shifts, self.shift_axis)

            x = checkpoint(read, *tensors, use_reentrant=False, preserve_rng_state=False)
            z = self.conv(x, gathered=True) if isinstance(self.conv, SharedInputConv3d) else self.conv(x)
            return checkpoint(finish, z, use_reentrant=False, preserve_rng_state=False)
        return finish(convolve(self.conv, parts(*tensors), self.shifts, self.shift_axis))

    def _of_pending(self, sources: Sequence[Any], through: Sequence[nn.Module | None]) -> Tensor:
        """The convolution of sources whose norm and activation are not computed yet (see `fused.py`)."""
        parts = [s if module is None else module(written(s)) for s, module in zip(sources, through, strict=True)]
        if isinstance(self.conv, SharedInputConv3d):
            return self.conv([written(part) for part in parts], self.shifts)
        return self.conv(concatenate(parts, self.shifts, self.shift_axis))


class FusionNode(nn.Module):
    """One node x^{j,l}: fuses the forward, up and down flow into `width` channels.

    `sparse`: how the up-convolution is and how the others are; None where all are dense.
    """

    def __init__(
        self,
        width: int,
        width_below: int,
        width_above: int | None,
        up_stride: Sequence[int],
        down_stride: Sequence[int] | None,
        last: bool,
        kernel_size: Sequence[int],
        shift_size: int,
        split: ChannelSplit,
        sparse: tuple[Sparse, Sparse] | None,
        memory_efficient: bool,
    ) -> None:
        super().__init__()
        up, convs = sparse or (None, None)
        sizes: Any = (width_below, width, tuple(up_stride))
        if up is None:
            self.up: nn.Module = nn.ConvTranspose3d(*sizes, sizes[2], bias=False)  # type: ignore[misc, call-arg]
        else:
            self.up = up.up(*sizes)
        self.down = None if down_stride is None else nn.MaxPool3d(tuple(down_stride), tuple(down_stride))
        # Columns of the first convolution: forward, up, down.
        self.directions = [width, width, width_above or 0]
        widths = [sum(self.directions)] + [width] * (2 if last else 1)
        self.convs = nn.ModuleList(
            ConvBlock(c_in, c_out, kernel_size, (1, 1, 1), shift_size, split, convs, memory_efficient)
            for c_in, c_out in zip(widths, widths[1:], strict=False)
        )

    def forward(self, forward: Tensor, below: Tensor, above: Tensor | None) -> Tensor:
        """`forward`: this level of the stage before; `below`: one level coarser; `above`: one level finer."""
        x = (
            self.convs[0](forward, below, through=[None, self.up])
            if self.down is None
            else self.convs[0](forward, below, above, through=[None, self.up, self.down])
        )
        return self.convs[1](x) if len(self.convs) == 2 else x
