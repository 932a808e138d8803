"""Convolutions whose input is computed again in the backward pass instead of kept.

What comes before a convolution here is cheap (interpolation, ReLU, InstanceNorm, a convolution of the image's few
channels), and its result is large. The convolution itself is not repeated. Gradients are the same to the last bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def lean_convolution(conv: Any, before: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`conv(before(*inputs))` of which a training step keeps `inputs` only.

    Args:
        conv: `nn.Conv2d` or `nn.Conv3d`, padded with zeros.
        before: a function of tensors alone: modules' parameters must be among `inputs`, or get no gradient.

    Under torch.compile it is left to the compiler what is kept.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return conv(before(*inputs))
    return _LeanConvolution.apply(conv, before, conv.weight, conv.bias, *inputs)


class _LeanConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, conv: nn.Conv3d, before: Callable[..., Tensor], weight: Tensor, bias: Tensor | None, *inputs: Tensor
    ) -> Tensor:
        ctx.conv, ctx.before, ctx.has_bias = conv, before, bias is not None
        kind = weight.device.type
        ctx.cast = None
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            ctx.cast = kind, torch.get_autocast_dtype(kind)
        ctx.save_for_backward(weight, *inputs)
        return conv(before(*inputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(saved, needed, strict=True)]
        kind, dtype = ctx.cast or (weight.device.type, None)
        with torch.enable_grad(), torch.autocast(kind, dtype=dtype, enabled=ctx.cast is not None):
            again = ctx.before(*inputs)
        conv = ctx.conv
        # As autocast gave them to the convolution, whose result has the type of the gradient.
        of_input, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, again.detach().to(gradient.dtype), weight.to(gradient.dtype),
            [weight.shape[0]] if ctx.has_bias else None, conv.stride, conv.padding, conv.dilation, False,
            [0] * len(conv.stride), conv.groups,
            [again.requires_grad, ctx.needs_input_grad[2], ctx.has_bias and ctx.needs_input_grad[3]],
        )  # fmt: skip
        of_inputs: list[Tensor | None] = [None] * len(inputs)
        if again.requires_grad:
            wanted = [tensor for tensor in inputs if tensor.requires_grad]
            found = iter(torch.autograd.grad(again, wanted, of_input.to(again.dtype)))
            of_inputs = [next(found) if tensor.requires_grad else None for tensor in inputs]
        if of_weight is not None:
            of_weight = of_weight.to(weight.dtype)
        if of_bias is not None:
            of_bias = of_bias.to(weight.dtype)
        return None, None, of_weight, of_bias, *of_inputs
