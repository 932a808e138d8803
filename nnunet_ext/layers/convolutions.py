"""The backward pass of a convolution, for functions that make its input again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def convolution_gradients(
    conv: Any, gradient: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of input, weight and bias, as autograd computes them.

    Args:
        conv: `nn.Conv2d` or `nn.Conv3d`, padded with zeros; says strides, padding, groups, and whether there is a bias.
        gradient: of the convolution's result, `[B, C_out, *size']`.
        x: the convolution's input `[B, C_in, *size]`.
        weight: `[C_out, C_in / groups, *kernel]`.
        wanted: of the three, those that are computed; the others are None.

    Input and weight are cast to the type of `gradient`, as autocast gave them to the convolution.
    """
    return torch.ops.aten.convolution_backward(
        gradient, x.to(gradient.dtype), weight.to(gradient.dtype), None if conv.bias is None else [conv.out_channels],
        conv.stride, conv.padding, conv.dilation, False, [0] * len(conv.stride), conv.groups, list(wanted),
    )  # fmt: skip
