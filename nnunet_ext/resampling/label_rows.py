"""A label map from rows of logits, as nnU-Net makes it from all logits at once.

nnU-Net interpolates each class linearly to the image's grid in float64, rounds to the logits' float16, and takes the
class with the largest value. An interpolated value lies between the values around it, and rounding keeps the order. So
where in some box one class's smallest logit is above another's largest one, the other cannot win, whatever the weights
are; most boxes are left with one class, and nothing has to be interpolated there. In the others float32 decides, and
what is too close for it is computed again as nnU-Net does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.resampling.grids import Grids

TILE = 64  # voxels of the result along each side of a tile
ROWS = 16  # rows of the result that are made together
TOGETHER = 8  # classes that are interpolated at once: what they take fits a cache
HALF_STEP = 2.0**-10  # largest distance of two neighbouring float16, as a share of the value
SUBNORMAL = 2.0**-23  # above the distance of float16 near zero
SINGLE = 2.0**-20  # error of an interpolation in float32, as a share of the largest value that goes in


@dataclass(frozen=True)
class Piece:
    """A stretch `[start, stop)` of the result along one axis and what it is interpolated of.

    `first`, `second` and their weights (float64) are those of each voxel, counted from `source[0]`; `matrix` is the
    same as one float32 matrix `[stop - start, source voxels]`.
    """

    start: int
    stop: int
    source: tuple[int, int]
    first: np.ndarray
    second: np.ndarray
    weights: tuple[np.ndarray, np.ndarray]
    matrix: Tensor


def is_linear(matrix: np.ndarray) -> bool:
    """Whether each row is a mean of two neighbours, or one voxel."""
    used = np.abs(matrix) > 0
    first, last = used.argmax(1), matrix.shape[1] - 1 - used[:, ::-1].argmax(1)
    return bool((last - first <= 1).all() and (matrix >= 0).all() and np.allclose(matrix.sum(1), 1, atol=1e-9))


def pieces(matrix: np.ndarray, size: int) -> list[Piece]:
    """An axis with the matrix `[m, n]` in pieces of at most `size` voxels of the result."""
    used = matrix > 0
    first, second = used.argmax(1), matrix.shape[1] - 1 - used[:, ::-1].argmax(1)
    rows = np.arange(len(matrix))
    one, two = matrix[rows, first], np.where(second > first, matrix[rows, second], 0.0)
    found = []
    for start in range(0, len(matrix), size):
        here = slice(start, min(start + size, len(matrix)))
        low, high = int(first[here].min()), int(second[here].max()) + 1
        block = torch.from_numpy(matrix[here, low:high].astype(np.float32))
        places = (first[here] - low, second[here] - low)
        found.append(Piece(here.start, here.stop, (low, high), *places, (one[here], two[here]), block))
    return found


class LabelRows:
    """Takes logits row by row along the first axis, and writes the labels of each row as soon as they are certain.

    Only the rows that are still needed are kept.

    Args:
        grids: from the logits' grid to that of the label map.
        order: of the interpolation, 0 or 1.
        order_z: of the axis that is taken by itself, 0 or 1.
        labels: `[D', H', W']`, is written to; a view of a larger array will do.
        regions: None where the class with the largest logit wins; else the label of each class, of which a later one
            wins wherever its probability is above one half, and voxels of no class keep what they are.
        exact: False leaves out the rounding to float16, which costs time and precision, so that labels are those of the
            logits themselves.

    Raises:
        ValueError: the orders are none of these.
    """

    def __init__(
        self,
        grids: Grids,
        order: int,
        order_z: int,
        labels: np.ndarray,
        regions: Sequence[int] | None = None,
        exact: bool = True,
    ) -> None:
        matrices = axis_matrices(grids, order, order_z)
        if matrices is None:
            raise ValueError(f"Rows of logits are interpolated with the orders 0 and 1, found {order} and {order_z}.")
        self.rows, self.columns = pieces(matrices[0], ROWS), [pieces(matrix, TILE) for matrix in matrices[1:]]
        self.labels, self.regions, self.exact = labels, regions, exact
        self.shape = grids.shape
        self.start = self.done = 0  # the first row that is kept; how many pieces are written
        self.kept: Tensor | None = None

    def add(self, logits: Tensor) -> None:
        """The next rows `[C, k, H, W]`, float16 or float32, on the CPU; they are not changed."""
        assert logits.shape[2:] == self.shape[1:], f"{tuple(logits.shape)} are no rows of {self.shape}"
        kept = logits if self.kept is None else torch.cat([self.kept, logits], 1)
        stop = self.start + kept.shape[1]
        while self.done < len(self.rows) and self.rows[self.done].source[1] <= stop:
            piece = self.rows[self.done]
            low, high = (at - self.start for at in piece.source)
            self._write(piece, kept[:, low:high])
            self.done += 1
        if self.done == len(self.rows):
            self.kept, self.start = None, stop
            return
        needed = min(piece.source[0] for piece in self.rows[self.done :])
        self.kept = kept[:, max(needed - self.start, 0) :].clone()
        self.start = max(needed, self.start)

    @property
    def complete(self) -> bool:
        """Whether every row of the label map is written."""
        return self.done == len(self.rows)

    def _write(self, rows: Piece, logits: Tensor) -> None:
        for one, two in product(*self.columns):
            box = logits[:, :, slice(*one.source), slice(*two.source)]
            out = self.labels[rows.start : rows.stop, one.start : one.stop, two.start : two.stop]
            (self._largest if self.regions is None else self._above_half)(box, (rows, one, two), out)
    def _largest(self, box: Tensor, place: tuple[Piece, Piece, Piece], out: np.ndarray) -> None:
        """Writes the class with the largest logit; of equal ones the first."""
        low, high = _ranges(box)
        near = np.flatnonzero(high >= low.max())
        if len(near) == 1:
            out[...] = near[0]
            return
        best, second, winner = _best_two(box, near, place, out.shape)
        if self.exact:
            scale = max(abs(low[near]).max(), abs(high[near]).max())
            close = best - second <= HALF_STEP * np.abs(best) + SUBNORMAL + SINGLE * scale
            at = np.nonzero(close)
            for part in _parts(at, len(near)):
                winner[part] = _as_nnunet(box[near], place, part).argmax(0)
        out[...] = near[winner]

    def _above_half(self, box: Tensor, place: tuple[Piece, Piece, Piece], out: np.ndarray) -> None:
        """Writes each class's label where its probability is above one half."""
        assert self.regions is not None
        low, high = _ranges(box)
        for number, label in enumerate(self.regions):
            if high[number] <= 0:
                continue
            doubt = SUBNORMAL + SINGLE * max(abs(low[number]), abs(high[number]))
            if low[number] > doubt:
                out[...] = label
                continue
            logits = _interpolated(box[[number]], place)[0]
            inside = logits > 0
            if self.exact:
                at = np.nonzero(np.abs(logits) <= doubt)
                for part in _parts(at, 1):
                    values = torch.from_numpy(_as_nnunet(box[[number]], place, part)[0])
                    inside[part] = (torch.sigmoid(values.float()) > 0.5).numpy()
            out[inside] = label


def axis_matrices(grids: Grids, order: int, order_z: int) -> list[np.ndarray] | None:
    """The matrix of each axis; None where one of them is more than a mean of neighbours."""
    matrices = grids.in_plane(order)
    if grids.thick is not None:
        matrices[grids.thick] = grids.through_plane(order_z)
    return matrices if all(map(is_linear, matrices)) else None


def _ranges(box: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest logit of each class in `box [C, k, h, w]`, float32."""
    flat = box.flatten(1)
    return flat.amin(1).float().numpy(), flat.amax(1).float().numpy()


def _interpolated(box: Tensor, place: tuple[Piece, Piece, Piece]) -> np.ndarray:
    """`box [C, k, h, w]` on the grid of the result, `[C, k', h', w']`, float32."""
    rows, one, two = (piece.matrix for piece in place)
    x = torch.matmul(one, torch.matmul(box.float(), two.T))
    return torch.matmul(rows, x.flatten(2)).view(len(x), len(rows), *x.shape[2:]).numpy()


def _best_two(
    box: Tensor, near: np.ndarray, place: tuple[Piece, Piece, Piece], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest and second largest of the classes `near` at each voxel, and the place of the largest among them."""
    best, second = (np.full(shape, -np.inf, np.float32) for _ in range(2))
    winner = np.zeros(shape, np.intp)
    more, less = np.empty(shape, bool), np.empty(shape, np.float32)
    for start in range(0, len(near), TOGETHER):
        for number, x in enumerate(_interpolated(box[near[start : start + TOGETHER]], place), start):
            np.greater(x, best, out=more)
            np.minimum(x, best, out=less)
            np.maximum(second, less, out=second)
            np.maximum(best, x, out=best)
            np.copyto(winner, number, where=more)
    return best, second, winner


def _parts(at: tuple[np.ndarray, ...], classes: int) -> list[tuple[np.ndarray, ...]]:
    """The voxels in portions whose logits take some megabytes."""
    size = max(1, 2**18 // classes)
    return [tuple(axis[start : start + size] for axis in at) for start in range(0, len(at[0]), size)]


def _as_nnunet(box: Tensor, place: tuple[Piece, Piece, Piece], at: tuple[np.ndarray, ...]) -> np.ndarray:
    """The logits `[C, K]` of K voxels of the result, interpolated in float64 and rounded to float16."""
    data = box.numpy()
    result = np.zeros((len(data), len(at[0])))
    for corner in product((0, 1), repeat=3):
        index = [(piece.first, piece.second)[side][i] for piece, side, i in zip(place, corner, at, strict=True)]
        a, b, c = (piece.weights[side][i] for piece, side, i in zip(place, corner, at, strict=True))
        result += a * b * c * data[:, index[0], index[1], index[2]]
    return result.astype(np.float16)
