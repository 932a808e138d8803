"""Sizes of patches: what strides make of them, and patches that are smaller than the planned one."""

import math
from collections.abc import Sequence


def total_strides(strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """By level and axis, the product of the strides down to it."""
    return [[math.prod(axis) for axis in zip(*strides[: level + 1], strict=True)] for level in range(len(strides))]


def padded_size(size: Sequence[int], steps: Sequence[int]) -> list[int]:
    """`size` rounded up to multiples of `steps`, axis by axis."""
    return [math.ceil(s / step) * step for s, step in zip(size, steps, strict=True)]


def voxels_by_level(size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Voxels of a padded `size` at each level."""
    return [math.prod(s // step for s, step in zip(size, steps, strict=True)) for steps in total_strides(strides)]


def smaller_patch(patch: Sequence[int], strides: Sequence[Sequence[int]], voxels: int) -> list[int]:
    """The patch `[d, h, w]` with at most `voxels` voxels where that can be had.

    The longest axis is shortened by one step of the network's total stride at a time, down to two steps.
    """
    patch = list(patch)
    steps = total_strides(strides)[-1]
    while math.prod(patch) > voxels:
        axes = [axis for axis in range(len(patch)) if patch[axis] > 2 * steps[axis]]
        if not axes:
            break
        longest = max(axes, key=lambda axis: patch[axis])
        patch[longest] = (math.ceil(patch[longest] / steps[longest]) - 1) * steps[longest]
    return patch
