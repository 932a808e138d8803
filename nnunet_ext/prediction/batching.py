"""Prediction that gives 2D networks many tiles at once, where nnU-Net's predictor gives one at a time."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

BATCH = 16  # tiles of a 2d configuration that the network gets together


class BatchedTiles:
    """Goes before `nnUNetPredictor` among the bases of a class: a 2d network gets `batch` tiles at once, in order.

    Tiles are weighted and added as nnU-Net does it, so that predictions are equal up to the rounding of the network.
    """

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
    def _internal_predict_sliding_window_return_logits(
        self, data: Tensor, slicers: Sequence[Any], do_on_device: bool = True
    ) -> Tensor:
        from nnunetv2.inference.sliding_window_prediction import compute_gaussian

        if len(self.configuration_manager.patch_size) != 2:
            return super()._internal_predict_sliding_window_return_logits(  # type: ignore[misc]
                data, slicers, do_on_device
            )
        device = self.device if do_on_device else torch.device("cpu")
        data = data.to(device)
        logits = torch.zeros(
            (self.label_manager.num_segmentation_heads, *data.shape[1:]), dtype=torch.half, device=device
        )
        weights = torch.zeros(data.shape[1:], dtype=torch.half, device=device)
        gaussian: Any = 1
        if self.use_gaussian:
            patch = tuple(self.configuration_manager.patch_size)
            gaussian = compute_gaussian(patch, sigma_scale=1.0 / 8, value_scaling_factor=10, device=device)
        with tqdm(total=len(slicers), disable=not self.allow_tqdm) as progress:
            for tiles in self.batches(slicers):
                x = torch.stack([data[tile] for tile in tiles]).to(self.device)
                for tile, prediction in zip(tiles, self._internal_maybe_mirror_and_predict(x), strict=True):
                    logits[tile] += prediction.to(device) * gaussian
                    weights[tile[1:]] += gaussian
                progress.update(len(tiles))
        logits /= weights
        if torch.isinf(logits).any():
            raise RuntimeError("The prediction has infinite values: the network's logits are too large for float16.")
        return logits


@functools.cache
def batched_predictor() -> Any:
    """nnU-Net's predictor with batches of tiles: a class, made of nnU-Net's own at the first call."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    class Predictor(BatchedTiles, nnUNetPredictor):
        pass

    return Predictor
