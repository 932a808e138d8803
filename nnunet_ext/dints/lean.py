"""Convolutions whose input is computed again in the backward pass instead of kept.

What comes before a convolution here is cheap (interpolation, ReLU, InstanceNorm, a convolution of the image's few
channels), and its result is large. The convolution itself is not repeated. Gradients are the same to the last bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunet_ext.layers.convolutions import convolution_gradients
from nnunet_ext.layers.precision import same_autocast


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
        ctx.conv, ctx.before, ctx.autocast = conv, before, same_autocast(weight.device)
        ctx.save_for_backward(weight, *inputs)
        return conv(before(*inputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(saved, needed, strict=True)]
        with torch.enable_grad(), ctx.autocast():
            again = ctx.before(*inputs)
        wanted_of_conv = [again.requires_grad, *ctx.needs_input_grad[2:4]]
        of_input, of_weight, of_bias = convolution_gradients(ctx.conv, gradient, again.detach(), weight, wanted_of_conv)
        of_inputs: list[Tensor | None] = [None] * len(inputs)
        if of_input is not None:
            wanted = [tensor for tensor in inputs if tensor.requires_grad]
            found = iter(torch.autograd.grad(again, wanted, of_input.to(again.dtype)))
            of_inputs = [next(found) if tensor.requires_grad else None for tensor in inputs]
        if of_weight is not None:
            of_weight = of_weight.to(weight.dtype)
        if of_bias is not None:
            of_bias = of_bias.to(weight.dtype)
        return None, None, of_weight, of_bias, *of_inputs
