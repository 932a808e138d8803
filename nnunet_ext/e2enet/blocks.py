"""What E2ENet is built of: a convolution over shifted channels, and the node that fuses three flows."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_ext.e2enet.depth_shift import ChannelSplit, channel_shifts, shifted_concat
from nnunet_ext.e2enet.masked import MaskedConv3d, MaskedConvTranspose3d

NEGATIVE_SLOPE = 0.01


class ConvBlock(nn.Module):
    """Concatenation and depth shift -> convolution with bias -> InstanceNorm -> LeakyReLU.

    `density` is the share of active kernels of the convolution; None for a dense one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        shift_size: int,
        split: ChannelSplit,
        density: float | None = None,
    ) -> None:
        super().__init__()
        restricted = 1 in kernel_size
        self.shift_axis = list(kernel_size).index(1) if restricted else 0
        self.shifts = channel_shifts(in_channels, shift_size, split) if restricted else []
        sizes: Any = (in_channels, out_channels, tuple(kernel_size), tuple(stride), tuple(k // 2 for k in kernel_size))
        self.conv = nn.Conv3d(*sizes) if density is None else MaskedConv3d(*sizes, density=density)
        self.norm = nn.InstanceNorm3d(out_channels, affine=True)
        self.act = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, *sources: Tensor) -> Tensor:
        """`sources`: tensors `[B, C_i, D, H, W]` -> `[B, C_out, D', H', W']`."""
        return self.act(self.norm(self.conv(shifted_concat(list(sources), self.shifts, self.shift_axis))))


class FusionNode(nn.Module):
    """One node x^{j,l}: fuses the forward, up and down flow into `width` channels.

    `densities` are the shares of active kernels of the up-convolution and of the others; None where all are dense.
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
        densities: tuple[float, float] | None,
    ) -> None:
        super().__init__()
        up, convs = densities or (None, None)
        sizes: Any = (width_below, width, tuple(up_stride), tuple(up_stride))
        if up is None:
            self.up: nn.Module = nn.ConvTranspose3d(*sizes, bias=False)  # type: ignore[misc]
        else:
            self.up = MaskedConvTranspose3d(*sizes, bias=False, density=up)
        self.down = None if down_stride is None else nn.MaxPool3d(tuple(down_stride), tuple(down_stride))
        # Columns of the first convolution: forward, up, down.
        self.directions = [width, width, width_above or 0]
        widths = [sum(self.directions)] + [width] * (2 if last else 1)
        self.convs = nn.ModuleList(
            ConvBlock(c_in, c_out, kernel_size, (1, 1, 1), shift_size, split, convs)
            for c_in, c_out in zip(widths, widths[1:], strict=False)
        )

    def forward(self, forward: Tensor, below: Tensor, above: Tensor | None) -> Tensor:
        """`forward`: this level of the stage before; `below`: one level coarser; `above`: one level finer."""
        sources = [forward, self.up(below)]
        if self.down is not None:
            sources.append(self.down(above))
        x = self.convs[0](*sources)
        return self.convs[1](x) if len(self.convs) == 2 else x
