"""Patches that are smaller than the planned one."""

import math
from collections.abc import Sequence


def smaller_patch(patch: Sequence[int], strides: Sequence[Sequence[int]], voxels: int) -> list[int]:
    """The patch `[d, h, w]` with at most `voxels` voxels where that can be had.

    The longest axis is shortened by one step of the network's total stride at a time, down to two steps.
    """
    patch = list(patch)
    steps = [math.prod(axis) for axis in zip(*strides, strict=True)]
    while math.prod(patch) > voxels:
        axes = [axis for axis in range(len(patch)) if patch[axis] > 2 * steps[axis]]
        if not axes:
            break
        longest = max(axes, key=lambda axis: patch[axis])
        patch[longest] = (math.ceil(patch[longest] / steps[longest]) - 1) * steps[longest]
    return patch
