"""Restricted depth shift (E2ENet, section 2.3): groups of channels see their neighbouring slices, at no parameter.

With shift size m the channels are cut into 2m+1 contiguous groups, and group k is moved by k-m slices along the axis
on which the convolution kernel is 1. What lies outside of the volume is zero. A kernel-(1,3,3) convolution over the
shifted channels then reads 2m+1 slices.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

ChannelSplit = Literal["balanced", "reference"]


def group_sizes(channels: int, groups: int, split: ChannelSplit = "balanced") -> list[int]:
    """Channels in each group.

    "balanced": sizes differ by one at most, larger ones first (`torch.tensor_split`).
    "reference": the authors' rule, groups of ceil(channels/groups) (`torch.chunk`), which may give fewer groups.
    """
    if split == "reference":
        size = -(-channels // groups)
        return [min(size, channels - start) for start in range(0, channels, size)]
    return [channels // groups + (k < channels % groups) for k in range(groups)]


def channel_shifts(channels: int, shift_size: int, split: ChannelSplit = "balanced") -> list[tuple[int, int]]:
    """`[(number of channels, shift in voxels), ...]` in channel order.

    Empty where nothing is shifted: `shift_size` 0, and, with the balanced split, fewer channels than groups (a
    one-channel image would be displaced as a whole).
    """
    groups = 2 * shift_size + 1
    if shift_size == 0 or (split == "balanced" and channels < groups):
        return []
    return [(size, k - shift_size) for k, size in enumerate(group_sizes(channels, groups, split))]


def depth_shift(x: Tensor, shift_size: int = 1, axis: int = 0, split: ChannelSplit = "balanced") -> Tensor:
    """Shifts channel groups of `x [B, C, D, H, W]` along the spatial `axis` (0 = D). Returns the same shape.

    For three channels and shift size 1: out[0, d] = x[0, d+1], out[1, d] = x[1, d], out[2, d] = x[2, d-1].
    """
    return shifted_concat([x], channel_shifts(x.shape[1], shift_size, split), axis)


def shifted_concat(sources: list[Tensor], shifts: list[tuple[int, int]], axis: int = 0) -> Tensor:
    """`depth_shift` of `torch.cat(sources, 1)`, written in one pass. `sources`: tensors `[B, C_i, D, H, W]`."""
    if not shifts:
        return sources[0] if len(sources) == 1 else torch.cat(sources, 1)
    if torch.compiler.is_compiling():  # which cannot trace the function without gradients, and fuses this
        runs = segments([s.shape[1] for s in sources], shifts)
        parts = [_shifted(sources[n][:, first:end], shift, axis + 2) for n, first, end, _, shift in runs]
        return torch.cat(parts, 1)
    return _ShiftedConcat.apply(shifts, axis, *sources)


def split_shifted(grad: Tensor, channels: list[int], shifts: list[tuple[int, int]], axis: int = 0) -> list[Tensor]:
    """The gradients of the sources of `shifted_concat`, which have so many channels, from that of its result."""
    if not shifts:
        return list(grad.split(channels, 1))
    grads = [grad.new_empty(len(grad), count, *grad.shape[2:]) for count in channels]
    for source, first, end, start, shift in segments(channels, shifts):
        copy_shifted(grads[source][:, first:end], grad[:, start : start + end - first], -shift, axis + 2)
    return grads


def gather_shifted(
    sources: list[Tensor], channels: Tensor, shifts: list[tuple[int, int]], axis: int, out: Tensor
) -> None:
    """Writes `channels` of `shifted_concat(sources, shifts, axis)` to `out [B, n, D, H, W]`, straight from the sources.

    `channels`: int64 `[n]`, ascending. They come to the host, unless it is one source without shifts.
    """
    counts = [source.shape[1] for source in sources]
    for n, rows, picked, shift in _picked(counts, channels, shifts):
        to, start, kept = _overlap(out.shape[axis + 2], shift)
        target, source = out[:, rows], sources[n]
        inside, seen = target.narrow(axis + 2, to, kept), source.narrow(axis + 2, start, kept)
        if source.dtype == out.dtype:
            torch.index_select(seen, 1, picked, out=inside)
        else:
            inside.copy_(seen.index_select(1, picked))
        if shift:
            target.narrow(axis + 2, 0 if shift > 0 else kept, out.shape[axis + 2] - kept).zero_()


def add_shifted(grads: list[Tensor], channels: Tensor, shifts: list[tuple[int, int]], axis: int, grad: Tensor) -> None:
    """The way back of `gather_shifted`: adds the gradient of its result to those of the sources."""
    counts = [g.shape[1] for g in grads]
    for n, rows, picked, shift in _picked(counts, channels, shifts):
        to, start, kept = _overlap(grad.shape[axis + 2], shift)
        inside = grad[:, rows].narrow(axis + 2, to, kept)
        grads[n].narrow(axis + 2, start, kept).index_add_(1, picked, inside)


def _picked(
    channels: list[int], wanted: Tensor, shifts: list[tuple[int, int]]
) -> Iterator[tuple[int, slice, Tensor, int]]:
    """Runs of ascending channels with one source and one shift: (source, places in `wanted`, in the source, shift)."""
    if len(channels) == 1 and not shifts:
        yield 0, slice(None), wanted, 0
        return
    ascending, first = wanted.tolist(), 0
    for source, start_in_source, end, start, shift in segments(channels, shifts or [(sum(channels), 0)]):
        last = bisect_left(ascending, start + end - start_in_source, first)
        if last > first:
            yield source, slice(first, last), wanted[first:last] - (start - start_in_source), shift
        first = last


def _overlap(depth: int, shift: int) -> tuple[int, int, int]:
    """Of out[d] = x[d - shift]: first d in `out`, first in `x`, and how many lie inside of both."""
    kept = max(0, depth - abs(shift))
    return (depth - kept, 0, kept) if shift > 0 else (0, depth - kept, kept)


def segments(channels: list[int], shifts: list[tuple[int, int]]) -> tuple[tuple[int, int, int, int, int], ...]:
    """Runs of channels with one source and one shift: (source, first, end, first in the output, shift)."""
    runs = []
    group, left, start = 0, shifts[0][0], 0
    for source, count in enumerate(channels):
        first = 0
        while first < count:
            size = min(left, count - first)
            runs.append((source, first, first + size, start, shifts[group][1]))
            first, start, left = first + size, start + size, left - size
            if left == 0 and group + 1 < len(shifts):
                group, left = group + 1, shifts[group + 1][0]
    return tuple(runs)


def _shifted(x: Tensor, shift: int, dim: int) -> Tensor:
    """y[d] = x[d - shift], zero where d - shift lies outside."""
    kept = max(0, x.shape[dim] - abs(shift))
    outside = list(x.shape)
    outside[dim] -= kept
    zeros, start = x.new_zeros(outside), 0 if shift > 0 else x.shape[dim] - kept
    inside = x.narrow(dim, start, kept)
    return torch.cat([zeros, inside] if shift > 0 else [inside, zeros], dim) if shift else x


def copy_shifted(out: Tensor, x: Tensor, shift: int, dim: int) -> None:
    """out[d] = x[d - shift], zero where d - shift lies outside."""
    depth = x.shape[dim]
    to, start, kept = _overlap(depth, shift)
    out.narrow(dim, to, kept).copy_(x.narrow(dim, start, kept))
    out.narrow(dim, 0 if shift > 0 else kept, depth - kept).zero_()


class _ShiftedConcat(torch.autograd.Function):
    """Concatenates and shifts without intermediate copies; the backward pass is the same with opposite shifts."""

    @staticmethod
    def forward(ctx: Any, shifts: list[tuple[int, int]], axis: int, *sources: Tensor) -> Tensor:
        ctx.shifts, ctx.axis = shifts, axis
        ctx.channels = [s.shape[1] for s in sources]
        ctx.dtypes = [s.dtype for s in sources]
        dtype = sources[0].dtype
        for source in sources[1:]:
            dtype = torch.promote_types(dtype, source.dtype)
        shape = list(sources[0].shape)
        shape[1] = sum(ctx.channels)
        out = sources[0].new_empty(shape, dtype=dtype)
        for n, first, end, start, shift in segments(ctx.channels, shifts):
            copy_shifted(out[:, start : start + end - first], sources[n][:, first:end], shift, axis + 2)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grads = split_shifted(grad, ctx.channels, ctx.shifts, ctx.axis)
        return (None, None, *(g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)))
