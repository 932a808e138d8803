"""Labels and probabilities from rows of logits, as nnU-Net makes them from all logits at once.

nnU-Net interpolates each class linearly to the image's grid in float64, rounds to the logits' float16, and takes the
class with the largest value. An interpolated value lies between the values around it, and rounding keeps the order. So
where in some box one class's smallest logit is above another's largest one, the other cannot win, whatever the weights
are; most boxes are left with one class, and nothing has to be interpolated there. In the others float32 decides, and
what is too close for it is computed again as nnU-Net does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.resampling.grids import Grids
from nnunet_ext.resampling.matrices import is_identity

TILE = 64  # voxels of the result along each side of a tile
ROWS = 16  # rows of the result that are made together
TOGETHER = 8  # classes that are interpolated at once: what they take fits a cache
HALF_STEP = 2.0**-10  # largest distance of two neighbouring float16, as a share of the value
SUBNORMAL = 2.0**-23  # above the distance of float16 near zero
SINGLE = 2.0**-20  # error of an interpolation in float32, as a share of the largest value that goes in


@dataclass(frozen=True)
class Piece:
    """A stretch `[start, stop)` of the result along one axis and what it is interpolated of.

    `first`, `second` and their weights (float64) are those of each voxel, counted from `source[0]`; `single` and
    `double` are the same as one matrix `[stop - start, source voxels]` in float32 and float64.
    """

    start: int
    stop: int
    source: tuple[int, int]
    first: np.ndarray
    second: np.ndarray
    weights: tuple[np.ndarray, np.ndarray]
    single: Tensor
    double: Tensor


def is_linear(matrix: np.ndarray) -> bool:
    """Whether each row is a mean of two neighbours, or one voxel."""
    used = np.abs(matrix) > 0
    first, last = used.argmax(1), matrix.shape[1] - 1 - used[:, ::-1].argmax(1)
    return bool((last - first <= 1).all() and (matrix >= 0).all())


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
        block = torch.from_numpy(matrix[here, low:high].copy())
        places = (first[here] - low, second[here] - low)
        found.append(Piece(here.start, here.stop, (low, high), *places, (one[here], two[here]), block.float(), block))
    return found


class _Rows:
    """Takes logits row by row along the first axis; what is made of a row is written as soon as it is certain.

    Only the rows that are still needed are kept.
    """

    def __init__(self, grids: Grids, order: int, order_z: int) -> None:
        matrices = axis_matrices(grids, order, order_z)
        if matrices is None:
            raise ValueError(f"Rows of logits are interpolated with the orders 0 and 1, found {order} and {order_z}.")
        self.rows, self.columns = pieces(matrices[0], ROWS), [pieces(matrix, TILE) for matrix in matrices[1:]]
        self.shape = grids.shape
        self.start = self.done = 0  # the first row that is kept; how many pieces are written
        self.kept: Tensor | None = None

    def add(self, logits: Tensor) -> None:
        """The next rows `[C, k, H, W]`, float16 or float32, on the CPU; they are not changed."""
        assert logits.shape[2:] == self.shape[1:], f"{tuple(logits.shape)} are no rows of {self.shape}"
        if self.kept is None:
            self.kept = logits[:, :0]
        first = self.start + self.kept.shape[1]
        stop = first + logits.shape[1]
        while self.done < len(self.rows) and self.rows[self.done].source[1] <= stop:
            rows = self.rows[self.done]
            box = self._between(*rows.source, logits, first)
            for one, two in product(*self.columns):
                self._write(box[:, :, slice(*one.source), slice(*two.source)], (rows, one, two))
            self.done += 1
        needed = stop if self.complete else min(max(self.rows[self.done].source[0], self.start), stop)
        self.kept, self.start = self._between(needed, stop, logits, first).clone(), needed

    def _between(self, low: int, high: int, logits: Tensor, first: int) -> Tensor:
        """The rows from `low` to `high`, of those that were kept and of the new ones, which begin with row `first`."""
        assert self.kept is not None
        if low >= first:
            return logits[:, low - first : high - first]
        kept = self.kept[:, low - self.start : high - self.start]
        return kept if high <= first else torch.cat([kept, logits[:, : high - first]], 1)

    @property
    def complete(self) -> bool:
        """Whether everything is written."""
        return self.done == len(self.rows)

    def _write(self, box: Tensor, place: tuple[Piece, Piece, Piece]) -> None:
        """Makes one tile of the result of the logits `box [C, k, h, w]` that it is interpolated of."""
        raise NotImplementedError


class LabelRows(_Rows):
    """Writes the labels of rows of logits.

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
        super().__init__(grids, order, order_z)
        self.labels, self.regions, self.exact = labels, regions, exact

    def _write(self, box: Tensor, place: tuple[Piece, Piece, Piece]) -> None:
        out = self.labels[_region(place)]
        if self.regions is None:
            self._largest(box, place, out)
        else:
            self._above_half(box, place, out)

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
        out[...] = near.astype(out.dtype).take(winner)

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
            logits = _interpolated(box[[number]].float(), [piece.single for piece in place])[0].numpy()
            inside = logits > 0
            if self.exact:
                at = np.nonzero(np.abs(logits) <= doubt)
                for part in _parts(at, 1):
                    values = torch.from_numpy(_as_nnunet(box[[number]], place, part)[0])
                    inside[part] = (torch.sigmoid(values.float()) > 0.5).numpy()
            out[inside] = label


class ProbabilityRows(_Rows):
    """Writes the probabilities of rows of logits.

    Args:
        grids: from the logits' grid to that of the probabilities.
        order: of the interpolation, 0 or 1.
        order_z: of the axis that is taken by itself, 0 or 1.
        probabilities: `[C, D', H', W']` float32, is written to; a view of a larger array will do.
        nonlinearity: makes probabilities of logits `[C, *sizes]`, float32.

    Raises:
        ValueError: the orders are none of these.
    """

    def __init__(
        self,
        grids: Grids,
        order: int,
        order_z: int,
        probabilities: np.ndarray,
        nonlinearity: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(grids, order, order_z)
        self.probabilities, self.nonlinearity = probabilities, nonlinearity

    def _write(self, box: Tensor, place: tuple[Piece, Piece, Piece]) -> None:
        logits = _interpolated(box.double(), [piece.double for piece in place]).numpy()
        rounded = logits.astype(_numpy_type(box))  # by numpy: torch rounds to float32 in between
        where = (slice(None), *_region(place))
        self.probabilities[where] = self.nonlinearity(torch.from_numpy(rounded).float())


def _numpy_type(box: Tensor) -> Any:
    return box[:0].numpy().dtype


def _region(place: tuple[Piece, Piece, Piece]) -> tuple[slice, ...]:
    return tuple(slice(piece.start, piece.stop) for piece in place)


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


def _interpolated(box: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """`box [C, k, h, w]` on the grid of the result, `[C, k', h', w']`."""
    rows, one, two = matrices
    if not is_identity(rows.numpy()):  # first, while there is little
        box = torch.matmul(rows, box.flatten(2)).view(len(box), len(rows), *box.shape[2:])
    return torch.matmul(one, torch.matmul(box, two.T))


def _best_two(
    box: Tensor, near: np.ndarray, place: tuple[Piece, Piece, Piece], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest and second largest of the classes `near` at each voxel, and the place of the largest among them."""
    best, second = (np.full(shape, -np.inf, np.float32) for _ in range(2))
    winner, newer = (np.zeros(shape, np.uint8 if len(near) <= 256 else np.uint16) for _ in range(2))
    more, less = np.empty(shape, bool), np.empty(shape, np.float32)
    for start in range(0, len(near), TOGETHER):
        classes = box[near[start : start + TOGETHER]].float()
        for number, x in enumerate(_interpolated(classes, [piece.single for piece in place]).numpy(), start):
            np.greater(x, best, out=more)
            np.minimum(x, best, out=less)
            np.maximum(second, less, out=second)
            np.maximum(best, x, out=best)
            np.multiply(more.view(np.uint8), winner.dtype.type(number), out=newer)
            np.maximum(winner, newer, out=winner)  # numbers rise: many times faster than to copy where it is more
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
