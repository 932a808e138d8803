"""Which parts of Med-DANet learn when, and at which rate: functions of epoch and step alone (section 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.med_danet.options import MedDANetOptions


@dataclass(frozen=True)
class Phases:
    """First the bank, from which the leaving candidates go before the others, then the decision network.

    Args:
        candidates: how many there are.
        leaving: indices of those that leave at `options.leave_start`.
    """

    options: MedDANetOptions
    candidates: int
    leaving: Sequence[int]

    def decides(self, epoch: int) -> bool:
        """Whether the decision network learns in this epoch, and the bank does not."""
        return epoch >= self.options.decision_start

    def active(self, epoch: int) -> list[int]:
        """Indices of the candidates that learn in this epoch."""
        if self.decides(epoch):
            return []
        gone = self.leaving if epoch >= self.options.leave_start else ()
        return [index for index in range(self.candidates) if index not in gone]

    def rate(self, epoch: int, step: int) -> float:
        """The learning rate of a step (from 0) in an epoch: each phase has its own warm-up of one epoch and decay."""
        options, start = self.options, self.options.decision_start
        begin, end, peak = (0, start, options.initial_lr)
        if self.decides(epoch):
            begin, end, peak = start, options.num_epochs, options.decision_lr
        pace = options.num_iterations_per_epoch
        done = (epoch - begin) * pace + min(step, pace - 1)
        return warm_poly_rate(done, (end - begin) * pace, pace, peak)

    def text(self, titles: Sequence[str], largest: int) -> str:
        """What the training says of itself at its start."""
        leave, start, epochs = self.options.leave_start, self.options.decision_start, self.options.num_epochs
        listed = ", ".join(f"{number} {title}" for number, title in enumerate(titles, start=1))
        gone = ", ".join(str(index + 1) for index in self.leaving) or "none"
        then = (
            f"Epochs {start} to {epochs - 1} train the decision network; until its first is over, "
            if start < epochs
            else "No epoch is left for the decision network: "
        )
        return (
            f"Bank: {listed}. Epochs 0 to {start - 1} train it; candidates that leave at epoch {leave}: {gone}. {then}"
            f"{titles[largest]} predicts every slice."
        )


def continued(options: MedDANetOptions, border: Any) -> tuple[MedDANetOptions, str]:
    """Options of a training that goes on, though by them the bank would learn again; and what to say.

    The decision network had been trained from epoch `border` on. With more epochs that border stays, as nothing asks
    for another; `bank_epochs` asks for it.
    """
    if options.bank_epochs is not None:
        return options, (
            f"The bank trains on until epoch {options.decision_start}; then the decision network starts anew, because "
            f"the one that was trained belongs to another bank."
        )
    return replace(options, bank_epochs=border), (
        f"The bank was finished after {border} epochs: that stays, and the further epochs train the decision network. "
        f"bank_epochs=N in the plans trains the bank on until epoch N."
    )


def warm_poly_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up over `warmup` steps, times (1 - step / total)^0.9; the authors' schedule, by optimizer steps."""
    return peak * min(1.0, (step + 1) / max(1, warmup)) * (1 - step / total) ** 0.9


def thinned(data: Tensor, target: Tensor, slices: int, foreground: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """At most `slices` slices of a batch of 3D patches `[B, C, D, H, W]`, at the same random depths in every patch.

    Images in 2D, and batches that have no more, are returned as they are.

    Args:
        foreground: `[B, D]`, which slices hold some. Half of the places are theirs, as far as there are so many:
            nnU-Net has centred patches on foreground, of which a random choice would leave out what is small.
    """
    keep = max(1, slices // len(data))
    if data.ndim == 4 or data.shape[2] <= keep:
        return data, target
    order = torch.randperm(data.shape[2])
    if foreground is not None:
        holds = foreground.any(0).cpu()[order]
        first = order[holds][: (keep + 1) // 2]
        order = torch.cat([first, order[~torch.isin(order, first)]])
    chosen = order[:keep].sort().values.to(data.device)
    return data.index_select(2, chosen), target.index_select(2, chosen)


def unfinished_text(titles: Sequence[str], macs: Sequence[int], losses: Sequence[float | None]) -> str:
    """What the bank's last losses say before labels are made; a dearer candidate that has learned less is named."""
    known = [(cost, loss, title) for cost, loss, title in zip(macs, losses, titles, strict=True) if loss is not None]
    known.sort()
    text = "The bank's last losses: " + ", ".join(f"{title} {loss:.4f}" for _, loss, title in known) + "."
    best = None
    for _, loss, title in known:
        if best is None or loss <= best[0]:
            best = loss, title
        else:
            text += (
                f" {title} costs more than {best[1]} and has learned less: the bank is not finished, and the labels "
                f"will say so; more epochs for it (bank_epochs) may pay."
            )
    return text
