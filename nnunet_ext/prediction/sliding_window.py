"""nnU-Net's sliding window with logits that come row by row, and with many tiles at once for 2D networks.

Tiles are weighted and added in nnU-Net's order and precision, so that the logits are equal to its own, bit for bit in
3D and up to the rounding of the network's batches in 2D. The tiles come along the first axis: what lies before the next
tile's first row is final, and is handed on and forgotten.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from nnunet_ext.prediction.memory import give_back

BATCH = 16  # tiles of a 2d configuration that the network gets together
GIVE_BACK = 8  # passes of the network, of which each would get its memory anew from the system
TOGETHER = 8  # rows that are handed on at once, and heads that are added at once


class LogitRows:
    """Goes before `nnUNetPredictor` among the bases of a class: `logit_rows`, and batches of tiles for 2d networks."""

    batch = BATCH
    configuration_manager: Any
    label_manager: Any
    device: torch.device
    use_gaussian: bool
    allow_tqdm: bool
    _internal_maybe_mirror_and_predict: Any

    def batches(self, slicers: Sequence[Any]) -> list[Sequence[Any]]:
        """The tiles of each pass, in order: single ones in 3D."""
        step = self.batch if len(self.configuration_manager.patch_size) == 2 else 1
        return [slicers[start : start + step] for start in range(0, len(slicers), step)]

    @torch.inference_mode()
    def logit_rows(self, data: Tensor, slicers: Sequence[Any], device: torch.device) -> Iterator[Tensor]:
        """The logits of `data [C, D, H, W]`, `[K, k, H, W]` in float16 on `device`: the next k rows at each step.

        Raises:
            RuntimeError: the network's logits are not finite in float16; or torch's, where memory is out.
        """
        from nnunetv2.inference.sliding_window_prediction import compute_gaussian

        data = data.to(device)
        gaussian: Any = 1
        if self.use_gaussian:
            patch = tuple(self.configuration_manager.patch_size)
            gaussian = compute_gaussian(patch, sigma_scale=1.0 / 8, value_scaling_factor=10, device=device)
        sums = _Sums(self.label_manager.num_segmentation_heads, data.shape[1:], device)
        batches, given_back = self.batches(slicers), 0
        with tqdm(total=len(slicers), disable=not self.allow_tqdm) as progress:
            for number, tiles in enumerate(batches):
                x = torch.stack([data[tile] for tile in tiles]).to(self.device)
                together = self._internal_maybe_mirror_and_predict(x).to(device)
                for tile, logits in zip(tiles, together, strict=True):
                    if self.use_gaussian:
                        logits *= gaussian
                    sums.add(tile, logits, gaussian)
                del together, logits  # the next tile's take their place
                progress.update(len(tiles))
                after = _first_row(batches[number + 1][0]) if number + 1 < len(batches) else data.shape[1]
                if after > sums.start:
                    yield from sums.take(after)
                    if number - given_back >= GIVE_BACK:
                        give_back()
                        given_back = number

    def _internal_predict_sliding_window_return_logits(
        self, data: Tensor, slicers: Sequence[Any], do_on_device: bool = True
    ) -> Tensor:
        if len(self.configuration_manager.patch_size) != 2:
            return super()._internal_predict_sliding_window_return_logits(  # type: ignore[misc]
                data, slicers, do_on_device
            )
        device = self.device if do_on_device else torch.device("cpu")
        return torch.cat(list(self.logit_rows(data, slicers, device)), 1)


class _Sums:
    """Weighted sums of logits for the rows that are not final yet, from row `start`; float16, as nnU-Net's."""

    def __init__(self, heads: int, shape: Sequence[int], device: torch.device) -> None:
        self.start = 0
        self.logits = torch.zeros((heads, 0, *shape[1:]), dtype=torch.half, device=device)
        self.weights = torch.zeros((0, *shape[1:]), dtype=torch.half, device=device)

    def add(self, tile: Sequence[Any], logits: Tensor, weights: Any) -> None:
        """Adds weighted logits where the tile lies."""
        inside = _first_row(tile) - self.start
        deep = isinstance(tile[1], slice)
        rows = slice(inside, inside + logits.shape[1] if deep else inside + 1)
        self._make_room(rows.stop)
        where = (rows if deep else inside, *tile[2:])
        for first in range(0, len(logits), TOGETHER):  # torch converts float16 and float32 as a whole before it adds
            heads = slice(first, first + TOGETHER)
            here = (heads, *where)
            self.logits[here] += logits[heads]
        self.weights[where] += weights

    def _make_room(self, rows: int) -> None:
        missing = rows - len(self.weights)
        if missing > 0:  # with the first tile, and then only where later ones are larger
            heads, kept, *size = self.logits.shape
            logits, weights = self.logits.new_zeros((heads, rows, *size)), self.weights.new_zeros((rows, *size))
            logits[:, :kept], weights[:kept] = self.logits, self.weights
            self.logits, self.weights = logits, weights

    def take(self, stop: int) -> Iterator[Tensor]:
        """The final logits of the rows from `start` to `stop`, some rows at a time; they are not kept any longer."""
        rows = stop - self.start
        for first in range(0, rows, TOGETHER):
            here = slice(first, min(first + TOGETHER, rows))
            part = self.logits[:, here] / self.weights[here]
            if torch.isinf(part).any():
                raise RuntimeError(
                    "The prediction has infinite values: the network's logits are too large for float16."
                )
            yield part
        for sums in (self.logits.transpose(0, 1), self.weights):
            for first in range(rows, len(sums), rows):  # by portions that do not overlap their new place
                portion = sums[first : first + rows]
                sums[first - rows : first - rows + len(portion)] = portion
            sums[len(sums) - rows :] = 0
        self.start = stop


def _first_row(tile: Sequence[Any]) -> int:
    return tile[1].start if isinstance(tile[1], slice) else tile[1]


@functools.cache
def row_predictor() -> Any:
    """nnU-Net's predictor with `LogitRows`: a class, made of nnU-Net's own at the first call."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    class Predictor(LogitRows, nnUNetPredictor):
        pass

    return Predictor
