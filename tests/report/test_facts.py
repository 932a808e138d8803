"""What the page says of a model, and the commands that it gives, for models of every kind."""

import json
from copy import deepcopy

from report.folders import COMPLEXITY, E2ENET, STRIDES, Model, e2enet_model, write_json

from nnunet_ext.report.commands import predict_command, train_commands
from nnunet_ext.report.facts import facts
from nnunet_ext.report.model_folder import read_model_folder


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
