"""Convolutions with blocks of connections by Triton: an implicit matrix product that reads its channels where they lie.

What torch does off the CPU is to concatenate, shift, gather and convolve in groups (`shared_inputs.py`), in as
many passes over memory. Here a program multiplies a tile of voxels by a group's kernels, tap by tap, and reads each
voxel of each channel straight out of its source, shifted on the way. Products are of the sources' type, sums are
float32. Without compile, and off, because it is not measured on a card yet: `nnUNet_ext_fused=1`, as `fused.py`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.e2enet.depth_shift import segments

Shifts = Sequence[tuple[int, int]]
SOURCES = 3  # that the kernels read at most
_VOXELS, _SLOTS = 64, 16  # of a tile
_CHUNK = 8192  # voxels whose gradient of values is summed by one program, at most


def applies(conv: Any, sources: Sequence[Tensor]) -> bool:
    """Whether the kernels compute `conv`, a `SharedInputConv3d`, of these sources: sizes stay the same."""
    same = all(p == k // 2 and k % 2 for k, p in zip(conv.kernel_size, conv.padding, strict=True))
    return same and len(sources) <= SOURCES


def convolve(conv: Any, sources: Sequence[Tensor], shifts: Shifts) -> Tensor:
    """`conv` of the shifted concatenation of the sources `[B, C_i, D, H, W]` -> `[B, C_out, D, H, W]`."""
    sources, values, bias = _cast(sources, conv.values, conv.bias)
    tile = _Tile(conv, sources, shifts)
    out = sources[0].new_empty(len(sources[0]), conv.out_channels, *tile.size)
    bias = sources[0].new_zeros(conv.out_channels) if bias is None else bias
    grid = (tile.blocks, tile.groups, len(out))
    _kernels().convolution[grid](
        *tile.read, values.contiguous(), bias, conv.inputs, tile.table, out, *tile.shape, *tile.counts, **tile.constants
    )
    return out


def gradients(
    conv: Any, gradient: Tensor, sources: Sequence[Tensor], shifts: Shifts, values: Tensor, wanted: Sequence[bool]
) -> tuple[list[Tensor] | None, Tensor | None, Tensor | None]:
    """As `SharedInputConv3d.gradients`."""
    gradient = gradient.contiguous()
    sources = [source.to(gradient.dtype).contiguous() for source in sources]
    tile = _Tile(conv, sources, shifts)
    of_sources = of_values = of_bias = None
    if wanted[0]:
        of_sources = [torch.zeros_like(source) for source in sources]
        grid = (tile.blocks, -(-tile.fan_in // _SLOTS), len(gradient))
        kernels = values.to(gradient.dtype).contiguous()
        # Group by group: two groups may read one channel.
        for group in range(tile.groups):
            _kernels().add_gradient_of_sources[grid](
                *_three(of_sources), kernels, conv.inputs, tile.table, gradient, *tile.shape, group, *tile.counts,
                **tile.constants,
            )  # fmt: skip
    if wanted[1]:
        chunk = min(_CHUNK, tile.blocks * _VOXELS)
        chunks = -(-tile.volume // chunk)
        parts = gradient.new_zeros(len(gradient) * chunks, *values.shape, dtype=torch.float32)
        grid = (len(parts), tile.groups * tile.taps, -(-tile.fan_in // _SLOTS))
        _kernels().gradient_of_values[grid](
            *tile.read, conv.inputs, tile.table, gradient, parts, *tile.shape, *tile.counts, chunks, chunk,
            **tile.constants,
        )  # fmt: skip
        of_values = parts.sum(0).to(values.dtype)
    if wanted[2] and conv.bias is not None:
        of_bias = gradient.sum((0, 2, 3, 4))
    return of_sources, of_values, of_bias


class _Tile:
    """What the kernels are told of a convolution and its sources."""

    def __init__(self, conv: Any, sources: Sequence[Tensor], shifts: Shifts) -> None:
        self.groups, block, self.fan_in = conv.values.shape[:3]
        self.size = tuple(sources[0].shape[2:])
        self.volume, self.taps = self.size[0] * self.size[1] * self.size[2], conv.values[0, 0, 0].numel()
        self.blocks = -(-self.volume // _VOXELS)
        self.read = _three(sources)
        self.table = _table(tuple(s.shape[1] for s in sources), tuple(shifts), sources[0].device)
        self.shape, self.counts = (conv.shift_axis, *self.size), (self.groups, block, self.fan_in)
        outputs = max(16, 1 << (block - 1).bit_length())  # tensor cores take 16 at least
        names, kernel = ("KD", "KH", "KW"), conv.kernel_size
        self.constants = dict(zip(names, kernel, strict=True), VOXELS=_VOXELS, OUTPUTS=outputs, SLOTS=_SLOTS)


def _three(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """The tensors and their numbers of channels; the first again in the place of those that are not there."""
    filled = [*tensors, *[tensors[0]] * (SOURCES - len(tensors))]
    return (*filled, *(tensor.shape[1] for tensor in filled))


@functools.lru_cache(maxsize=1024)
def _table(channels: tuple[int, ...], shifts: Shifts, device: torch.device) -> Tensor:
    """`[C_in, 3]`: of each concatenated channel its source, its channel there, and its shift."""
    rows = []
    for source, first, end, _, shift in segments(list(channels), list(shifts) or [(sum(channels), 0)]):
        rows += [[source, channel, shift] for channel in range(first, end)]
    return torch.tensor(rows, device=device)


def _cast(sources: Sequence[Tensor], values: Tensor, bias: Tensor | None) -> tuple[list[Tensor], Tensor, Any]:
    """All in the type in which torch would convolve."""
    kind = sources[0].device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = functools.reduce(torch.promote_types, (source.dtype for source in sources))
    return [s.to(dtype).contiguous() for s in sources], values.to(dtype), None if bias is None else bias.to(dtype)


def _kernels() -> Any:
    from nnunet_ext.e2enet import grouped_kernels

    return grouped_kernels
