"""Validation with a predictor of our own, and one that keeps what Med-DANet's routing chose."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from torch import Tensor

from nnunet_ext.layers.unwrap import unwrap
from nnunet_ext.med_danet.accounting import case_votes, counts_of
from nnunet_ext.med_danet.network import MedDANet
from nnunet_ext.prediction.sliding_window import row_predictor

Predictor: Any = row_predictor()


class RecordingPredictor(Predictor):
    """Keeps of each case how often its slices got each choice, and the same for slices that only pad it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.votes: list[tuple[list[list[int]], list[int]]] = []

    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Any:
        """nnU-Net's; `[C, D, H, W]` -> logits `[K, D, H, W]`."""
        logits = super().predict_sliding_window_return_logits(input_image)
        depth = input_image.shape[1]
        before = (len(self._case) - depth) // 2  # as nnU-Net pads
        inside, outside = self._case[before : before + depth], self._case[:before] + self._case[before + depth :]
        self.votes.append((inside, counts_of(outside) if outside else [0] * len(inside[0])))
        return logits

    def _internal_predict_sliding_window_return_logits(
        self, data: Tensor, slicers: Any, do_on_device: bool = True
    ) -> Tensor:
        network = unwrap(self.network)
        assert isinstance(network, MedDANet)
        network.record = []  # also where nnU-Net tries again without room on the device
        try:
            logits = super()._internal_predict_sliding_window_return_logits(data, slicers, do_on_device)
            depths = [[_depths(tile[1]) for tile in tiles] for tiles in self.batches(slicers)]
            self._case = case_votes(network.record, depths, data.shape[1], len(network.bank) + 1)
        finally:
            network.record = None
        return logits


def _depths(where: int | slice) -> list[int]:
    return [where] if isinstance(where, int) else list(range(where.start, where.stop))


@contextmanager
def validating_with(predictor: type) -> Iterator[list[Any]]:
    """Within it, nnU-Net's trainer validates with `predictor`; yields the list of those that it made.

    nnU-Net's `perform_actual_validation` offers no other way than the name in its module.
    """
    stock, made = trainer_module.nnUNetPredictor, []

    def make(*args: Any, **kwargs: Any) -> Any:
        made.append(predictor(*args, **kwargs))
        return made[-1]

    trainer_module.nnUNetPredictor = make
    try:
        yield made
    finally:
        trainer_module.nnUNetPredictor = stock
