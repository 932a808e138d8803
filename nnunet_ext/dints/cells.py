"""Cells: what stands on an edge. A change of resolution, then one operation or a weighted sum of several (3.1, 3.2).

Convolutions have no bias and are followed by InstanceNorm; ReLU comes before. A weight of the sum is multiplied into
the affine parameters of the InstanceNorm in front of it, so that the weighted sum keeps no feature map of its own for
the backward pass. Where a convolution alone reads what interpolation, InstanceNorm or ReLU made, that is computed again
in the backward pass (`lean.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.dints.lean import lean_convolution
from nnunet_ext.dints.search_space import OPERATIONS, Kernels

Weight = Tensor | float
# Scale and shift of a norm: `[C]`, or `[B, C]` where they are there for every sample (`affine.py`).
Affine = tuple[Tensor, Tensor]

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_CONVOLVE: dict[int, Any] = {2: F.conv2d, 3: F.conv3d}
_NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}


def convolution(c_in: int, c_out: int, kernel: Sequence[int], stride: Sequence[int] | int = 1) -> nn.Module:
    """A convolution without bias, padded to keep the size (stride 1)."""
    step = stride if isinstance(stride, int) else tuple(stride)
    return _CONV[len(kernel)](c_in, c_out, tuple(kernel), step, tuple(k // 2 for k in kernel), bias=False)


def instance_norm(channels: int, dimensions: int) -> nn.Module:
    """InstanceNorm with affine parameters and without running statistics."""
    return _NORM[dimensions](channels, affine=True)


def normed(norm: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`norm(x)`, with its affine parameters given as tensors."""
    if scale.ndim == 1:
        return F.instance_norm(x, weight=scale, bias=shift, eps=norm.eps)
    # As torch's instance norm, which first repeats the parameters: a batch norm of one sample with B C channels.
    rows = x.reshape(1, -1, *x.shape[2:])
    return F.batch_norm(rows, None, None, scale.flatten(), shift.flatten(), True, 0.0, norm.eps).view_as(x)


def affine(norm: Any, weight: Weight = 1.0) -> Affine:
    """A norm's parameters times `weight`, for `normed`."""
    return (norm.weight, norm.bias) if _is_one(weight) else (norm.weight * weight, norm.bias * weight)


def _is_one(weight: Weight) -> bool:
    return isinstance(weight, float) and weight == 1


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation of `x [B, C, *]` to `[B, C, *size]`, corners aligned."""
    if list(x.shape[2:]) == list(size):
        return x
    return F.interpolate(x, size=list(size), mode=_LINEAR[x.ndim - 2], align_corners=True)


def enlarge(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Linear interpolation of `x [B, C, *]` by the integer factors `stride`."""
    return resize(x, [s * f for s, f in zip(x.shape[2:], stride, strict=True)])


class Up(nn.Module):
    """To the next finer scale: interpolation -> ReLU -> 1x1 convolution -> InstanceNorm."""

    def __init__(self, c_in: int, c_out: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.conv = convolution(c_in, c_out, [1] * len(stride))
        self.norm = instance_norm(c_out, len(stride))

    def forward(self, x: Tensor) -> Tensor:
        """`x [B, C_in, *size]` -> `[B, C_out, *(size * stride)]`, before the InstanceNorm."""
        return lean_convolution(self.conv, lambda x: F.relu(enlarge(x, self.stride)), x)


class Down(nn.Module):
    """To the next coarser scale: two 1x1 convolutions with stride, one a voxel aside, side by side -> InstanceNorm."""

    def __init__(self, c_in: int, c_out: int, stride: Sequence[int]) -> None:
        super().__init__()
        ones = [1] * len(stride)
        # One voxel aside along the axes on which the stride skips voxels, last axis first as F.pad has it.
        self.aside = [side for s in reversed(tuple(stride)) for side in (-1 if s > 1 else 0, 0)]
        self.conv_1 = convolution(c_in, c_out // 2, ones, stride)
        self.conv_2 = convolution(c_in, c_out - c_out // 2, ones, stride)
        self.norm = instance_norm(c_out, len(stride))

    def forward(self, rectified: Tensor) -> Tensor:
        """`rectified [B, C_in, *size]`, after ReLU, sizes divisible by the stride -> `[B, C_out, *(size / stride)]`.

        The result is that before the InstanceNorm.
        """
        moved = lean_convolution(self.conv_2, lambda x: F.pad(x, self.aside), rectified)
        return torch.cat([self.conv_1(rectified), moved], 1)


class Operation(nn.Module):
    """One or two convolutions in a row -> InstanceNorm; on an input after ReLU."""

    def __init__(self, channels: int, kernels: Kernels) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(convolution(channels, channels, kernel) for kernel in kernels))
        self.norm = instance_norm(channels, len(kernels[0]))

    def forward(self, rectified: Tensor, own: Affine) -> Tensor:
        """The operation, with scale and shift of its norm; `[B, C, *size]` in and out."""
        return normed(self.norm, self.convs(rectified), *own)

    def normed_first(self, norm: Any, x: Tensor, before: Affine, own: Affine) -> Tensor:
        """The same of an input that needs `norm` and a ReLU before, of which nothing is kept but `x`."""
        x = lean_convolution(self.convs[0], lambda *inputs: F.relu(normed(norm, *inputs)), x, *before)
        return normed(self.norm, self.convs[1:](x), *own)


class Cell(nn.Module):
    """An edge: the change of resolution, then the weighted sum of its operations.

    Args:
        kind: same, up or down.
        stride: of the change of resolution.
        operations: names in `search_space.OPERATIONS`.
    """

    def __init__(self, kind: str, c_in: int, c_out: int, stride: Sequence[int], operations: Sequence[str]) -> None:
        super().__init__()
        kernels = OPERATIONS[len(stride)]
        self.kind, self.names = kind, tuple(operations)
        self.resample = {"up": Up, "down": Down}[kind](c_in, c_out, stride) if kind != "same" else None
        self.operations = nn.ModuleDict({n: Operation(c_out, kernels[n]) for n in operations if kernels[n]})

    @property
    def reads_rectified(self) -> bool:
        """Whether `forward` needs the ReLU of its input."""
        return self.kind == "down" or (self.kind == "same" and len(self.operations) > 0)

    def norms(self) -> Iterator[tuple[Any, int | None]]:
        """The norms, each with the number of its operation, None for that of the change of resolution."""
        if self.resample is not None:
            yield self.resample.norm, None
        for number, name in enumerate(self.names):
            if name in self.operations:
                yield self.operations[name].norm, number

    def forward(
        self,
        x: Tensor,
        rectified: Tensor | None,
        weights: Sequence[Weight] | Tensor,
        of_norm: Callable[[Any, Weight], Affine] = affine,
    ) -> Tensor:
        """The edge's output `[B, C_out, *]`.

        Args:
            x: `[B, C_in, *]`.
            rectified: its ReLU, which the edges that leave a node share; None where `reads_rectified` is False.
            weights: one per operation.
            of_norm: gives scale and shift of a norm for the weight of its operation.
        """
        if self.resample is not None:
            x, rectified = self.resample(rectified if self.kind == "down" else x), None
            before = of_norm(self.resample.norm, 1.0)
            if len(self.names) == 1 and self.operations:
                operation = cast(Operation, self.operations[self.names[0]])
                return operation.normed_first(self.resample.norm, x, before, of_norm(operation.norm, weights[0]))
            x = normed(self.resample.norm, x, *before)
        result: Tensor | None = None
        for name, weight in zip(self.names, weights, strict=True):
            if name not in self.operations:  # skip
                term = x if _is_one(weight) else x * weight
            else:
                if rectified is None:
                    rectified = F.relu(x)
                operation = cast(Operation, self.operations[name])
                term = operation(rectified, of_norm(operation.norm, weight))
            result = term if result is None else result + term
        assert result is not None, "a cell without operation"
        return result


class Stem(nn.Module):
    """What feeds a node of the first layer: the image at its level -> convolution -> InstanceNorm.

    With `use_downsample` (`c_node` given) a ReLU and a convolution with stride follow, which reach the node's level.
    """

    def __init__(self, c_image: int, c_level: int, c_node: int | None, stride: Sequence[int]) -> None:
        super().__init__()
        kernel = [3] * len(stride)
        self.conv_1 = convolution(c_image, c_level, kernel)
        self.norm_1 = instance_norm(c_level, len(stride))
        self.conv_2 = None if c_node is None else convolution(c_level, c_node, kernel, stride)
        self.norm_2 = None if c_node is None else instance_norm(c_node, len(stride))

    def forward(self, image: Tensor) -> Tensor:
        """`image [B, C_image, *size]` -> `[B, C, *size]`, or `[B, C, *(size / stride)]`."""
        if self.conv_2 is None or self.norm_2 is None:
            return self.norm_1(self.conv_1(image))

        if not torch.is_grad_enabled():
            return self.norm_2(self.conv_2(F.relu(self.norm_1(self.conv_1(image)))))

        def before(image: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            x = _CONVOLVE[image.ndim - 2](image, weight, padding=1)
            return F.relu(normed(self.norm_1, x, scale, shift))

        weight = cast(Tensor, self.conv_1.weight)
        return self.norm_2(lean_convolution(self.conv_2, before, image, weight, *affine(self.norm_1)))


class HeadStep(nn.Module):
    """One step of the way back to the image's resolution: ReLU -> convolution; then InstanceNorm -> interpolation."""

    def __init__(self, c_in: int, c_out: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.conv = convolution(c_in, c_out, [3] * len(stride))
        self.norm = instance_norm(c_out, len(stride))

    def forward(self, x: Tensor) -> Tensor:
        """`x [B, C_in, *size]` -> `[B, C_out, *size]`, the first half of the step."""
        return self.conv(F.relu(x))

    def enlarged(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The second half, with the norm's parameters; `x [B, C_out, *size]` -> `[B, C_out, *(size * stride)]`."""
        return enlarge(normed(self.norm, x, scale, shift), self.stride)
