"""The curves of a training: read from nnU-Net's `training_log_*.txt`, or else from the `logging` of a checkpoint."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# "2026-11-20 23:25:02.335938: train_loss 0.9894"; the fraction is left out where it is zero
_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?: +(.*)")
_NUMBER = re.compile(r"[-+]?(?:nan|inf|\d+\.?\d*(?:e[-+]?\d+)?|\.\d+)", re.IGNORECASE)
_SINGLE = {
    "Current learning rate:": "learning_rate",
    "train_loss": "train_loss",
    "val_loss": "val_loss",
    "Epoch time:": "seconds",
}


@dataclass
class Epoch:
    """One epoch as nnU-Net logs it, NaN where it says nothing.

    `dice` is nnU-Net's pseudo Dice, one number for each label or region, over the epoch's validation patches.
    """

    number: int
    learning_rate: float = math.nan
    train_loss: float = math.nan
    val_loss: float = math.nan
    dice: list[float] = field(default_factory=list)
    seconds: float = math.nan

    @property
    def mean_dice(self) -> float:
        """Mean over the labels or regions that have a number."""
        numbers = [value for value in self.dice if not math.isnan(value)]
        return sum(numbers) / len(numbers) if numbers else math.nan

    @property
    def is_whole(self) -> bool:
        """Whether the epoch came to its end: its time is the last line of it."""
        return not math.isnan(self.seconds)


def read_logs(folder: Path) -> list[Epoch]:
    """The epochs of a fold's logs, in order; where a training was continued or begun again, the later log counts."""
    epochs: dict[int, Epoch] = {}
    for path in sorted(folder.glob("training_log_*.txt"), key=_time_of_log):
        for epoch in parse_log(path.read_text(errors="replace").splitlines()):
            # A training that stands at epoch n has nothing left of what an earlier one did from n on.
            epochs = {number: old for number, old in epochs.items() if number < epoch.number}
            epochs[epoch.number] = epoch
    return [epochs[number] for number in sorted(epochs)]


def _time_of_log(path: Path) -> list[int]:
    """nnU-Net writes months and days without a leading zero, so names do not sort as text."""
    return [int(number) for number in re.findall(r"\d+", path.name)]


def parse_log(lines: Iterable[str]) -> list[Epoch]:
    """The whole epochs in the lines of one log."""
    epochs: list[Epoch] = []
    for line in lines:
        match = _LINE.match(line)
        words = match.group(1).split() if match else []
        if len(words) == 2 and words[0] == "Epoch" and words[1].isdigit():
            epochs.append(Epoch(int(words[1])))
        elif words and epochs:
            _take_line(epochs[-1], " ".join(words))
    return [epoch for epoch in epochs if epoch.is_whole]


def _take_line(epoch: Epoch, text: str) -> None:
    if text.startswith("Pseudo dice"):
        epoch.dice = _numbers(text.removeprefix("Pseudo dice"))
    for prefix, name in _SINGLE.items():
        numbers = _numbers(text.removeprefix(prefix)) if text.startswith(prefix) else []
        if numbers:
            setattr(epoch, name, numbers[0])


def _numbers(text: str) -> list[float]:
    """All numbers of `[np.float32(0.2454), nan]`, which older numpy writes as `[0.2454, nan]`."""
    return [float(number) for number in _NUMBER.findall(re.sub(r"np\.float\d+", "", text))]


def smoothed_dice(epochs: Sequence[Epoch]) -> list[float]:
    """nnU-Net's moving average of the mean pseudo Dice (0.9 old + 0.1 new); `checkpoint_best.pth` is its maximum."""
    smoothed: list[float] = []
    for epoch in epochs:
        smoothed.append(0.9 * smoothed[-1] + 0.1 * epoch.mean_dice if smoothed else epoch.mean_dice)
    return smoothed


def read_checkpoint_logging(path: Path) -> list[Epoch]:
    """The epochs that a checkpoint remembers, for folders without logs (an imported model).

    Raises:
        ValueError: the file is damaged, or holds more than data; code in it is never run.
    """
    from nnunet_ext.weights.checkpoints import read_checkpoint  # it needs torch, which logs do not

    try:
        return _epochs_of_logging(read_checkpoint(path)["logging"])
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"its logging is not nnU-Net's ({type(error).__name__}: {error})") from error


def _epochs_of_logging(logging: dict[str, list[Any]]) -> list[Epoch]:
    columns = [
        logging[key]
        for key in (
            "lrs", "train_losses", "val_losses", "dice_per_class_or_region",
            "epoch_start_timestamps", "epoch_end_timestamps",
        )
    ]  # fmt: skip
    return [
        Epoch(
            number, float(rate), float(train), float(val), [float(value) for value in dice], float(end) - float(start)
        )
        for number, (rate, train, val, dice, start, end) in enumerate(zip(*columns, strict=False))
    ]
