"""How far the trainings of a study are, from what nnU-Net wrote; nothing is changed, and Snakemake is not needed."""

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.files import read_json
from nnunet_ext.report.training_log import Epoch, read_logs
from nnunet_ext.studies.layout import Layout
from nnunet_ext.studies.locks import is_held
from nnunet_ext.studies.study import Entry

_RECENT = 20  # of the last epochs, from which the time left is taken


@dataclass(frozen=True)
class TrainingStatus:
    """One training.

    Attributes:
        entry, fold: which.
        state: finished, validating, running, stopped or not started.
        epochs: that came to their end.
        planned: epochs in all; None where nobody knows yet.
        seconds_left: of the epochs that are left, by the median of the last; NaN where there is none to judge by.
        dice: nnU-Net's pseudo Dice of the last epoch, or the validation's where it is finished.
    """

    entry: str
    fold: int
    state: str
    epochs: int
    planned: int | None
    seconds_left: float
    dice: float


def training_status(layout: Layout, entry: Entry, fold: int) -> TrainingStatus:
    """Reads one fold's folder."""
    folder = layout.fold(entry, fold)
    epochs = read_logs(folder) if folder.is_dir() else []
    planned = _planned(layout, entry, folder)
    summary = layout.summary(entry, fold)
    trained = (folder / "checkpoint_final.pth").is_file()
    dice = epochs[-1].mean_dice if epochs else math.nan
    left = 0.0 if trained else math.nan
    if epochs and planned is not None and not trained:
        median = statistics.median(epoch.seconds for epoch in epochs[-_RECENT:])
        left = max(0, planned - epochs[-1].number - 1) * median
    if summary.is_file():
        state, dice, left = "finished", _validation_dice(summary, dice), 0.0
    elif _is_running(layout, entry, fold, epochs):
        state = "validating" if trained else "running"
    elif not folder.is_dir():
        state = "not started"
    else:
        state = "stopped"
    return TrainingStatus(entry.name, fold, state, epochs[-1].number + 1 if epochs else 0, planned, left, dice)


def _planned(layout: Layout, entry: Entry, folder: Path) -> int | None:
    try:
        return int(read_json(folder / "debug.json")["num_epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        return layout.schedule(entry, layout.configuration(entry))["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _validation_dice(summary: Path, otherwise: float) -> float:
    try:
        return float(read_json(summary)["foreground_mean"]["Dice"])
    except (OSError, ValueError, KeyError, TypeError):
        return otherwise


def _is_running(layout: Layout, entry: Entry, fold: int, epochs: list[Epoch]) -> bool:
    """By the lock of its process; on other machines of a cluster, whose locks are not seen, by the age of its log."""
    if is_held(layout.lock(entry, fold)):
        return True
    if layout.lock(entry, fold).is_file() and not layout.elsewhere.is_file():
        return False
    logs = list(layout.fold(entry, fold).glob("training_log_*.txt"))
    if not logs:
        return False
    age = time.time() - max(log.stat().st_mtime for log in logs)
    return age < 300 + 3 * max((epoch.seconds for epoch in epochs[-_RECENT:]), default=0)


def status_table(layout: Layout) -> str:
    """All trainings of a study as text, and how many are finished."""
    from nnunet_ext.report.parts import duration, number

    rows = [("method", "fold", "state", "epoch", "time left", "Dice")]
    found = [training_status(layout, entry, fold) for entry in layout.study.entries for fold in layout.study.folds]
    for status in found:
        of = f" of {status.planned}" if status.planned is not None else ""
        left = "" if status.state == "finished" else duration(status.seconds_left)
        epoch = f"{status.epochs}{of}"
        rows.append((status.entry, str(status.fold), status.state, epoch, left, number(status.dice)))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    finished = sum(status.state == "finished" for status in found)
    lines.append(f"{finished} of {len(found)} trainings are finished.")
    if layout.page.is_file():
        lines.append(f"Page: {layout.page}")
    return "\n".join(lines)
