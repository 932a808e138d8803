"""Prediction in which InstanceNorm, LeakyReLU and the shifted concatenation are one pass over memory, by Triton.

Eagerly, torch normalises the output z of a convolution (reads it, writes y), applies LeakyReLU (reads, writes y), and
copies y to its place in what the next convolution reads. Here a block gives z with its statistics, `Pending`, and
whoever reads it writes LeakyReLU(scale (z - mean) + bias) where it belongs, in one pass. Under torch.compile inductor
does the same; training steps are as ever. An option that is off, because it is not measured on a card yet:
`nnUNet_ext_fused=1`.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.e2enet.depth_shift import copy_shifted, segments
from nnunet_ext.errors import ConfigurationError

VARIABLE = "nnUNet_ext_fused"
_BLOCK = 1024  # voxels a program


class Pending:
    """The activation `LeakyReLU(InstanceNorm(z))` of `z [B, C, D, H, W]`, of which the statistics are known alone."""

    def __init__(self, z: Tensor, norm: nn.InstanceNorm3d, slope: float) -> None:
        self.z, self.slope = z.contiguous(), slope
        rows = self.z.view(1, -1, *z.shape[2:])
        if z.is_cuda:
            self.mean, rstd = torch.batch_norm_stats(rows, norm.eps)  # in float32, whatever z is
        else:
            variance, self.mean = torch.var_mean(rows.float(), (0, 2, 3, 4), correction=0)
            rstd = (variance + norm.eps).rsqrt()
        self.scale = rstd * norm.weight.repeat(len(z)).float()
        self.bias = norm.bias.repeat(len(z)).float()

    @functools.cached_property
    def written(self) -> Tensor:
        """The activation itself, for what reads it elsewhere."""
        out = torch.empty_like(self.z)
        self.write(out, 0, self.z.shape[1], 0, 0, 0)
        return out

    def write(self, out: Tensor, first: int, end: int, start: int, shift: int, axis: int) -> None:
        """Channels `first` to `end` to those from `start` of `out [B, K, D, H, W]`, shifted along the spatial axis."""
        count, depth = end - first, out.shape[axis + 2]
        volume, inner = out[0, 0].numel(), out[0, 0].stride(axis)
        grid = (len(out) * count, -(-volume // _BLOCK))
        _kernel()[grid](
            self.z, self.mean, self.scale, self.bias, out, self.z.shape[1], out.shape[1], first, start, count,
            volume, inner, depth, shift, self.slope, BLOCK=_BLOCK,
        )  # fmt: skip


def written(x: Any) -> Tensor:
    """A tensor as it is, a `Pending` as its activation."""
    return x.written if isinstance(x, Pending) else x


def fuses(x: Any) -> bool:
    """Whether blocks that read `x` are to give a `Pending`.

    Raises:
        ConfigurationError: it is asked for, and there is no Triton.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled():
        return False
    if os.environ.get(VARIABLE, "0") in ("", "0"):
        return False
    x = x.z if isinstance(x, Pending) else x
    interpreted = x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not (x.is_cuda or interpreted) or x.dtype == torch.float64:
        return False
    _kernel()
    return True


def concatenate(sources: Sequence[Any], shifts: list[tuple[int, int]], axis: int) -> Tensor:
    """`depth_shift.shifted_concat` of tensors and of what is pending, `[B, C_i, D, H, W]`."""
    tensors = [source.z if isinstance(source, Pending) else source for source in sources]
    channels = [tensor.shape[1] for tensor in tensors]
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    out = tensors[0].new_empty(len(tensors[0]), sum(channels), *tensors[0].shape[2:], dtype=dtype)
    for n, first, end, start, shift in segments(channels, shifts or [(sum(channels), 0)]):
        source = sources[n]
        if isinstance(source, Pending):
            source.write(out, first, end, start, shift, axis)
        else:
            copy_shifted(out[:, start : start + end - first], source[:, first:end], shift, axis + 2)
    return out


@functools.cache
def _kernel() -> Any:
    try:
        from nnunet_ext.e2enet.fused_kernel import normalise
    except ImportError as error:
        raise ConfigurationError(
            f"{VARIABLE}=1 needs Triton, which torch's CUDA packages for Linux bring along. Unset it to go on without."
        ) from error
    return normalise
