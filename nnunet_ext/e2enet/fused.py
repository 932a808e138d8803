"""InstanceNorm, LeakyReLU and the shifted concatenation in one pass over memory, by Triton, where nothing is compiled.

Eagerly, torch normalises the output z of a convolution (reads it, writes y), applies LeakyReLU (reads, writes y), and
copies y to its place in what the next convolution reads. In prediction a block gives z with its statistics instead,
`Pending`, and whoever reads it writes LeakyReLU(scale (z - mean) + bias) where it belongs, in one pass. A training step
(`rebuilding.py`) writes activations so, makes them again so in the backward pass, and has two kernels for the gradient
of norm and activation. Under torch.compile inductor does the same. An option that is off, because it is not measured
on a card yet: `nnUNet_ext_fused=1`.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.e2enet.depth_shift import copy_shifted, segments, shifted_concat
from nnunet_ext.errors import ConfigurationError

VARIABLE = "nnUNet_ext_fused"
_BLOCK = 1024  # voxels a program


class Pending:
    """The activation `LeakyReLU(InstanceNorm(z))` of `z [B, C, D, H, W]`, of which the statistics are known alone."""

    def __init__(self, z: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, slope: float) -> None:
        """It is LeakyReLU(scale (z - mean) + bias), with `mean`, `scale` and `bias` `[B C]` in float32."""
        self.z, self.mean, self.scale, self.bias, self.slope = z.contiguous(), mean, scale, bias, slope
        self.shape = z.shape

    @classmethod
    def of(cls, z: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> tuple["Pending", Tensor]:
        """Of a convolution's output and the norm that follows; and the reciprocal deviations `[B C]`."""
        mean, rstd = _statistics(z, eps)
        weight, bias = (parameter.repeat(len(z)).float() for parameter in (weight, bias))
        return cls(z, mean, rstd * weight, bias, slope), rstd

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
        _kernels().normalise[_grid(len(out) * count, volume)](
            self.z, self.mean, self.scale, self.bias, out, self.z.shape[1], out.shape[1], first, start, count,
            volume, inner, depth, shift, self.slope, BLOCK=_BLOCK,
        )  # fmt: skip

    def gradients(self, grad: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of z `[B, C, D, H, W]`, of the norm's weight and of its bias by sample and channel `[B C]`.

        `grad` is that of the activation. With g that of scale (z - mean) + bias, the one of z is
        scale (g - sum(g) / V - rstd^2 (z - mean) sum(g (z - mean)) / V), V voxels.
        """
        grad, rows, volume = grad.contiguous(), len(self.mean), self.z[0, 0].numel()
        grid = _grid(rows, volume)
        sums = self.mean.new_empty(2, *grid)
        given = (self.z, grad, self.mean, self.scale, self.bias)
        _kernels().sums_of_gradient[grid](*given, sums, rows, volume, self.slope, BLOCK=_BLOCK)
        of_bias, of_centred = sums.sum(2)
        of_z = torch.empty_like(self.z)
        each, slant = of_bias / volume, of_centred * rstd.square() / volume
        _kernels().gradient[grid](*given, each, slant, of_z, volume, self.slope, BLOCK=_BLOCK)
        return of_z, of_centred * rstd, of_bias


def _statistics(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal deviation of each sample's channels `[B C]`, in float32."""
    rows = z.reshape(1, -1, *z.shape[2:])
    if z.is_cuda:
        mean, rstd = torch.batch_norm_stats(rows, eps)  # in float32, whatever z is
        return mean, rstd
    variance, mean = torch.var_mean(rows.float(), (0, 2, 3, 4), correction=0)
    return mean, (variance + eps).rsqrt()


def written(x: Any) -> Tensor:
    """A tensor as it is, a `Pending` as its activation."""
    return x.written if isinstance(x, Pending) else x


def fuses(x: Any) -> bool:
    """Whether blocks that read `x` are to give a `Pending`: in prediction.

    Raises:
        ConfigurationError: it is asked for, and there is no Triton.
    """
    return not torch.is_grad_enabled() and by_triton(x)


def by_triton(x: Any) -> bool:
    """Whether it is asked for, and `x` lies where Triton computes.

    Raises:
        ConfigurationError: it is asked for, and there is no Triton.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if os.environ.get(VARIABLE, "0") in ("", "0"):
        return False
    x = x.z if isinstance(x, Pending) else x
    interpreted = x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not (x.is_cuda or interpreted) or x.dtype == torch.float64:
        return False
    _kernels()
    return True


def concatenate(sources: Sequence[Any], shifts: list[tuple[int, int]], axis: int) -> Tensor:
    """`depth_shift.shifted_concat` of tensors and of what is pending, `[B, C_i, D, H, W]`, without gradients."""
    if not any(isinstance(source, Pending) for source in sources):
        return shifted_concat(list(sources), shifts, axis)
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


def _grid(rows: int, volume: int) -> tuple[int, int]:
    return rows, -(-volume // _BLOCK)


@functools.cache
def _kernels() -> Any:
    try:
        from nnunet_ext.e2enet import fused_kernels
    except ImportError as error:
        raise ConfigurationError(
            f"{VARIABLE}=1 needs Triton, which torch's CUDA packages for Linux bring along. Unset it to go on without."
        ) from error
    return fused_kernels
