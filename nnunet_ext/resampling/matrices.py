"""Spline interpolation between two grids along one axis, as a matrix.

`skimage.transform.resize` and `scipy.ndimage.map_coordinates` on a grid are linear in the values and work along each
axis by itself. What one of them does along an axis is therefore a matrix, and its columns are what the routine makes of
unit vectors: nothing of it is written here a second time.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from skimage.transform import resize
from torch import Tensor

SMALL = 1e-12  # weights below this share of the largest one are left out: a spline's reach a sample falls 0.27-fold
ROWS = 32  # of a matrix that are applied together
SLAB = 2**24  # bytes that go through the first axes together


@lru_cache(256)
def resize_matrix(n: int, m: int, order: int) -> np.ndarray:
    """`[m, n]`, float64: how nnU-Net resizes an axis of `n` voxels to `m`, by `resize(mode="edge")`."""
    return _frozen(
        np.eye(n) if n == m else resize(np.eye(n), (m, n), order, mode="edge", clip=False, anti_aliasing=False)
    )


@lru_cache(256)
def sample_matrix(n: int, m: int, order: int) -> np.ndarray:
    """`[m, n]`, float64: how nnU-Net resamples the axis of thick slices, by `map_coordinates(mode="nearest")`."""
    at = n / m * (np.arange(m) + 0.5) - 0.5
    return _frozen(np.stack([map_coordinates(unit, [at], order=order, mode="nearest") for unit in np.eye(n)], 1))


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix.setflags(write=False)
    return matrix


def is_identity(matrix: np.ndarray) -> bool:
    """Whether the matrix changes nothing."""
    return matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix)))


def reach(matrix: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """The columns `[first, last)` that the rows `[start, stop)` use."""
    used = np.flatnonzero(np.abs(matrix[start:stop]).max(0) > SMALL * np.abs(matrix).max())
    return int(used[0]), int(used[-1]) + 1


def apply_matrices(
    x: Tensor | np.ndarray, matrices: Sequence[np.ndarray], dtype: torch.dtype = torch.float64
) -> Tensor:
    """`x [*sizes]` with a matrix `[m, n]` for each axis -> `[*ms]`, computed in `dtype`, with torch's threads.

    Axes are taken in the order that keeps the volumes between them small, and all but the last slab by slab, so that no
    second volume of the size of `x` is needed.
    """
    x = torch.as_tensor(x)
    sizes = list(x.shape)
    *others, last = sorted(range(x.ndim), key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1])
    others = [axis for axis in others if not is_identity(matrices[axis])]
    for axis in others:
        sizes[axis] = len(matrices[axis])
    between = torch.empty(sizes, dtype=dtype, device=x.device)
    size = max(1, SLAB // dtype.itemsize * x.shape[last] // x.numel())
    for start in range(0, x.shape[last], size):
        slab = x.narrow(last, start, min(size, x.shape[last] - start)).to(dtype)
        for axis in others:
            slab = _along(slab, matrices[axis], axis)
        between.narrow(last, start, slab.shape[last]).copy_(slab)
    return between if is_identity(matrices[last]) else _along(between, matrices[last], last)


def _along(x: Tensor, matrix: np.ndarray, axis: int) -> Tensor:
    """One matrix along one axis: products of blocks of rows with the columns that they use."""
    before, n, after = x.shape[:axis].numel(), x.shape[axis], x.shape[axis + 1 :].numel()
    m = len(matrix)
    source = x.contiguous().view(before, n, after)
    result = x.new_empty(before, m, after)
    for start in range(0, m, ROWS):
        stop = min(start + ROWS, m)
        first, last = reach(matrix, start, stop)
        block = torch.from_numpy(matrix[start:stop, first:last].copy()).to(x)
        if after == 1:
            torch.matmul(source[:, first:last, 0], block.T, out=result[:, start:stop, 0])
        else:
            torch.matmul(block, source[:, first:last], out=result[:, start:stop])
    return result.view(*x.shape[:axis], m, *x.shape[axis + 1 :])
