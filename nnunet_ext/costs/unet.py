"""What nnU-Net's own network costs: a baseline for methods that replace it."""

from collections.abc import Sequence

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_ext.costs.complexity import count_flops
from nnunet_ext.planning.patches import padded_size, total_strides


def unet_macs(strides: Sequence[Sequence[int]], channels: int, classes: int, size: Sequence[int]) -> int:
    """True multiply-adds of nnU-Net's 2D U-Net for one slice of `size` pixels, at the in-plane strides of the plan.

    Widths and numbers of convolutions are those that nnU-Net plans by default.
    """
    levels = len(strides)
    network = PlainConvUNet(
        channels,
        levels,
        [min(32 * 2**level, 512) for level in range(levels)],
        nn.Conv2d,
        3,
        [tuple(stride[-2:]) for stride in strides],
        2,
        classes,
        2,
        norm_op=nn.InstanceNorm2d,
        nonlin=nn.LeakyReLU,
    )
    # A patch that its strides do not divide is counted as the next larger one, which it could take.
    whole = padded_size(size, total_strides(strides)[-1][-2:])
    return round(count_flops(network, channels, whole) / 2)
