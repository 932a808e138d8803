"""What the page says of a model, and the commands that it gives, for models of every kind."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
from report.folders import COMPLEXITY, E2ENET, STRIDES, Model, e2enet_model, write_json

from nnunet_ext.report.commands import predict_command, train_commands
from nnunet_ext.report.facts import _short, facts
from nnunet_ext.report.model_folder import read_model_folder
from nnunet_ext.report.parts import duration, number
from nnunet_ext.report.sections import _fold_row
from nnunet_ext.report.training_log import _epochs_of_logging, smoothed_dice


def rows(made):
    return dict(facts(read_model_folder(made.path)))


def test_network_options_are_said_and_long_ones_cut(tmp_path):
    made = e2enet_model(tmp_path)
    assert rows(made)["Network options"] == "sparsity = 0.6"
    plans = deepcopy(made.plans)
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    kwargs.update(shift_size=2, density_overrides={str(k): 0.5 for k in range(40)})
    write_json(made.path / "plans.json", plans)
    options = rows(made)["Network options"]
    assert options.startswith("sparsity = 0.6, shift_size = 2, density_overrides = {") and options.endswith("...")
    assert len(options) < 140


def test_nnunets_own_networks_have_no_options_of_ours(tmp_path):
    made = Model(tmp_path)
    made.fold("0")
    assert "Network options" not in rows(made)


def test_the_releases_that_trained_are_said_once_each(tmp_path):
    made = e2enet_model(tmp_path, folds=(0, 1, 2))
    assert "Releases" not in rows(made)  # of a training before they were stored
    for fold, release in ((0, "0.1.0"), (1, "0.1.0"), (2, "0.2.0")):
        versions = {"nnunet-ext": release, "nnunetv2": "2.8.1", "torch": "2.9.0"}
        write_json(made.path / f"fold_{fold}" / "complexity.json", {**COMPLEXITY, "versions": versions})
    assert rows(made)["Releases"] == (
        "nnunet-ext 0.1.0, nnunetv2 2.8.1, torch 2.9.0; nnunet-ext 0.2.0, nnunetv2 2.8.1, torch 2.9.0"
    )


def test_an_imported_model_has_the_cost_of_its_plans(tmp_path):
    """nnU-Net's export leaves complexity.json behind."""
    made = e2enet_model(tmp_path)
    (made.path / "fold_0" / "complexity.json").unlink()
    found = rows(made)
    assert "Parameters and cost" not in found
    assert found["Parameters"].endswith("trainable") and "active" in found["Parameters"]
    assert "GMACs" in found["Cost of a patch, true convention"]


def test_a_strangers_plans_cost_nothing(tmp_path):
    made = Model(tmp_path, "E2ENetTrainer", architecture={**E2ENET, "arch_kwargs": {"strides": STRIDES, "no_such": 1}})
    made.fold("0")
    assert rows(made)["Parameters and cost"] == "not recorded by this trainer"


def cascade(tmp_path):
    made = Model(tmp_path)
    made.plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    write_json(made.path / "plans.json", made.plans)
    made.fold("0")
    return made


def test_a_cascade_names_its_previous_stage_and_its_command_needs_it(tmp_path):
    made = cascade(tmp_path)
    assert rows(made)["Previous stage"] == "3d_lowres"
    command = predict_command(read_model_folder(made.path))
    assert command.endswith(" -prev_stage_predictions PREDICTIONS_OF_3d_lowres")


def test_where_only_the_best_checkpoints_are_the_command_takes_them(tmp_path):
    made = Model(tmp_path)
    for name in ("0", "3", "all"):
        folder = made.fold(name, finished=False)
        (folder / "checkpoint_latest.pth").rename(folder / "checkpoint_best.pth")
    command = predict_command(read_model_folder(made.path))
    assert "-f 0 3 -chk checkpoint_best.pth" in command
    made.fold("1")
    command = predict_command(read_model_folder(made.path))
    assert "-f 1 " in command and "-chk" not in command


def test_the_device_is_said_where_it_is_not_nnunets_default(tmp_path):
    made = Model(tmp_path)
    folder = made.fold("0")
    debug = json.loads((folder / "debug.json").read_text())
    for device, expected in (("cpu", " -device cpu"), ("mps", " -device mps"), ("cuda:0", ""), ("cuda", "")):
        write_json(folder / "debug.json", {**debug, "device": device})
        model = read_model_folder(made.path)
        assert predict_command(model).partition(" -f 0")[2] == expected
        assert ("-device" in train_commands(model)[0]) == bool(expected)


def test_the_network_of_the_log_goes_before_that_of_the_plans(tmp_path):
    """Our trainer on stock plans: what the plans say of widths is not of the network that was trained."""
    made = Model(tmp_path, "E2ENetTrainer")
    made.fold("0")
    model = read_model_folder(made.path)
    assert model.planned_network and "(as the plans say)" in dict(facts(model))["Network"]
    assert "Channels per level" in dict(facts(model))
    write_json(made.path / "fold_0" / "complexity.json", COMPLEXITY)
    other = read_model_folder(made.path)
    assert dict(facts(other))["Network"] == "nnunet_ext.e2enet.network.E2ENet"
    assert "Channels per level" not in dict(facts(other))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.94, "59.9 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (3600, "1 h 0 min"), (12.34, "12.3 s")],
)
def test_durations_in_two_units(seconds, text):
    assert duration(seconds) == text


def test_the_best_pseudo_dice_leaves_out_what_is_not_a_number(tmp_path):
    made = Model(tmp_path)
    made.fold("0", epochs=3)
    fold = read_model_folder(made.path).folds[0]
    row = _fold_row(fold)
    known = smoothed_dice(fold.epochs)
    assert any(f"{max(known):.3f}"[:5] in cell for cell in row)
    assert fold.epochs[-1].mean_dice != fold.epochs[-2].mean_dice
    assert row[4] == number(fold.epochs[-1].mean_dice)
    unknown = replace(fold, epochs=[replace(epoch, dice=[float("nan")]) for epoch in fold.epochs])
    assert not any("nan" in cell for cell in _fold_row(unknown))


def test_columns_of_different_length_give_the_epochs_that_are_whole():
    """A checkpoint that was saved within an epoch has its rate already."""
    logging = {
        "lrs": [0.1, 0.2],
        "train_losses": [0.5],
        "val_losses": [0.6],
        "dice_per_class_or_region": [[0.7]],
        "epoch_start_timestamps": [10.0, 20.0],
        "epoch_end_timestamps": [15.0],
    }
    (epoch,) = _epochs_of_logging(logging)
    assert (epoch.number, epoch.train_loss, epoch.val_loss, epoch.seconds) == (0, 0.5, 0.6, 5.0)


def test_channels_are_listed_and_values_cut_where_they_are_too_long(tmp_path):
    made = Model(tmp_path)
    made.fold("0")
    assert rows(made)["Channels"] == "CT"
    write_json(made.path / "dataset.json", {**made.dataset_json, "channel_names": {"0": "T1", "1": "T2"}})
    assert rows(made)["Channels"] == "T1, T2"
    write_json(made.path / "dataset.json", {**made.dataset_json, "channel_names": {}})
    assert rows(made)["Channels"] == "not recorded"
    assert _short("x" * 60) == "x" * 60
    assert _short("x" * 61) == "x" * 57 + "..."
