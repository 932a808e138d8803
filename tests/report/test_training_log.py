"""Curves from nnU-Net's logs, and from a checkpoint that is never unpickled freely."""

import math
import pickle

import numpy as np
import pytest
import torch
from report.folders import Model, log_text

from nnunet_ext.report.model_folder import read_model_folder
from nnunet_ext.report.training_log import Epoch, parse_log, read_checkpoint_logging, read_logs, smoothed_dice


def test_a_log_has_its_numbers_epoch_by_epoch():
    first, second = parse_log(log_text(2).splitlines())
    assert (first.number, second.number) == (0, 1)
    assert (second.learning_rate, second.train_loss, second.val_loss) == (0.008, 0.8, -0.05)
    assert second.seconds == 2.5
    assert second.dice[0] == 0.3 and math.isnan(second.dice[1])
    assert second.mean_dice == 0.3


def test_the_lists_of_older_numpy_are_read_too():
    text = log_text(1).replace("np.float32(0.2000)", "0.2").replace("np.float32(nan)", "nan")
    assert parse_log(text.splitlines())[0].dice[0] == 0.2


def test_an_epoch_that_was_cut_off_is_left_out():
    lines = log_text(2).splitlines()
    assert [epoch.number for epoch in parse_log(lines[:-3])] == [0]


def test_a_continued_training_replaces_the_epochs_that_it_repeats(tmp_path):
    (tmp_path / "training_log_2026_9_30_08_00_00.txt").write_text(log_text(5))
    (tmp_path / "training_log_2026_10_1_08_00_00.txt").write_text(log_text(2, first=3, loss=5.0))
    epochs = read_logs(tmp_path)
    assert [epoch.number for epoch in epochs] == [0, 1, 2, 3, 4]
    assert [epoch.train_loss for epoch in epochs[2:4]] == [0.7, 4.7]


def test_a_training_that_began_again_leaves_nothing_of_the_old_one(tmp_path):
    (tmp_path / "training_log_2026_9_30_08_00_00.txt").write_text(log_text(5))
    (tmp_path / "training_log_2026_10_1_08_00_00.txt").write_text(log_text(2))
    assert [epoch.number for epoch in read_logs(tmp_path)] == [0, 1]


def test_a_log_of_a_validation_alone_changes_nothing(tmp_path):
    (tmp_path / "training_log_2026_9_30_08_00_00.txt").write_text(log_text(2))
    (tmp_path / "training_log_2026_10_1_08_00_00.txt").write_text(log_text(0))
    assert len(read_logs(tmp_path)) == 2


def test_the_moving_average_is_nnunets():
    assert smoothed_dice([Epoch(0, dice=[0.2]), Epoch(1, dice=[0.4]), Epoch(2, dice=[0.0])]) == pytest.approx(
        [0.2, 0.22, 0.198]
    )


def checkpoint_logging():
    """As nnU-Net's logger keeps it: numpy scalars in lists."""
    return {
        "mean_fg_dice": [np.float32(0.2), np.float32(0.3)],
        "ema_fg_dice": [np.float32(0.2), np.float32(0.21)],
        "dice_per_class_or_region": [[np.float32(0.2), np.float64(math.nan)], [np.float32(0.3), np.float32(0.3)]],
        "train_losses": [np.float32(0.9), np.float32(0.8)],
        "val_losses": [np.float64(0.0), np.float64(-0.05)],
        "lrs": [0.009, 0.008],
        "epoch_start_timestamps": [100.0, 110.0],
        "epoch_end_timestamps": [102.5, 112.5],
    }


def test_without_logs_the_curves_come_from_the_checkpoint(tmp_path):
    model = Model(tmp_path)
    folder = model.fold(0)
    next(folder.glob("training_log_*")).unlink()
    weights = {"weight": torch.zeros(2, dtype=torch.float16)}
    torch.save({"network_weights": weights, "logging": checkpoint_logging()}, folder / "checkpoint_final.pth")
    read = read_model_folder(model.path)
    assert read.notes == []
    for epoch, logged in zip(read.folds[0].epochs, parse_log(log_text(2).splitlines()), strict=True):
        assert epoch.number == logged.number
        assert (epoch.learning_rate, epoch.seconds) == (logged.learning_rate, logged.seconds)
        assert [epoch.train_loss, epoch.val_loss] == pytest.approx([logged.train_loss, logged.val_loss])
        assert epoch.mean_dice == pytest.approx(logged.mean_dice)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_with_code_in_it_is_refused_and_nothing_is_run(tmp_path):
    model = Model(tmp_path)
    folder = model.fold(0)
    next(folder.glob("training_log_*")).unlink()
    path = folder / "checkpoint_final.pth"
    content = {"network_weights": {}, "logging": checkpoint_logging()}
    torch.save({**content, "extra": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(ValueError, match="holds more than weights and numbers"):
        read_checkpoint_logging(path)
    assert not (tmp_path / "sprung").exists()
    note = read_model_folder(model.path).notes[0]
    assert note.startswith("fold_0 has no training log, and its checkpoint does not give the curves: The checkpoint")
    assert str(tmp_path) not in note
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung"))).close()
    assert (tmp_path / "sprung").exists()  # the trap works where it is unpickled freely
