"""`nnunet_ext transfer`: what it says, writes and refuses."""

import json

import pytest
import torch
from end_to_end.stock import handmade_plans

from nnunet_ext.cli.main import main
from nnunet_ext.e2enet.network import E2ENet

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
KWARGS = {"strides": STRIDES, "features_per_stage": [4, 5, 6], "sparsity": 0.5}


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A checkpoint of one channel and two classes, and plans of a data set with two channels and three classes."""
    folder = tmp_path / "preprocessed" / "Dataset007_Tiny"
    folder.mkdir(parents=True)
    architecture = {
        "network_class_name": "nnunet_ext.e2enet.network.E2ENet",
        "arch_kwargs": KWARGS,
        "_kw_requires_import": [],
    }
    plans = handmade_plans(architecture, strides=STRIDES)
    (folder / "TinyPlans.json").write_text(json.dumps({**plans, "plans_name": "TinyPlans"}))
    dataset_json = {"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "x": 1, "y": 2}}
    (folder / "dataset.json").write_text(json.dumps({**dataset_json, "file_ending": ".nii.gz"}))
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    source = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    content = {
        "network_weights": E2ENet(1, 2, **KWARGS).state_dict(),
        "trainer_name": "E2ENetTrainer",
        "init_args": {"plans": plans, "dataset_json": source, "configuration": "3d_fullres"},
    }
    torch.save(content, tmp_path / "source.pth")
    return ["transfer", str(tmp_path / "source.pth"), "7", "--plans", "TinyPlans", "-o", str(tmp_path / "fitted.pth")]


def test_what_was_taken_and_what_not_is_said(words, capsys, tmp_path):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    fitted = torch.load(tmp_path / "fitted.pth", weights_only=True)
    source = torch.load(tmp_path / "source.pth", weights_only=True)["network_weights"]
    assert fitted["trainer_name"] == "E2ENetTrainer" and fitted["source"] == str(tmp_path / "source.pth")
    new = [line.split(":")[0].strip() for line in lines[2:-1]]
    assert lines[1] == "With new random values:"
    assert [name for name in new if name.startswith("backbone")] == ["backbone.0.0.conv.weight"]
    for name, tensor in fitted["network_weights"].items():
        if name not in new and torch.is_floating_point(tensor):
            assert torch.equal(tensor, source[name]), name
    assert "nnUNetv2_train Dataset007_Tiny 3d_fullres 0 -tr E2ENetTrainer -p TinyPlans" in lines[-1]
    assert f"-pretrained_weights {tmp_path / 'fitted.pth'}" in lines[-1]


def test_a_result_is_not_replaced_unasked(words, capsys, tmp_path):
    (tmp_path / "fitted.pth").write_text("mine")
    assert main(words) == 1
    assert (tmp_path / "fitted.pth").read_text() == "mine" and "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_a_checkpoint_of_which_nothing_fits_is_refused(words, capsys, tmp_path):
    folder = tmp_path / "preprocessed" / "Dataset007_Tiny"
    plans = json.loads((folder / "TinyPlans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["arch_kwargs"] = {**KWARGS, "features_per_stage": [7, 8, 9], "sparsity": None}
    (folder / "TinyPlans.json").write_text(json.dumps(plans))
    assert main(words) == 1
    assert "Nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "fitted.pth").exists()


def test_buffers_alone_are_nothing(words, capsys, tmp_path, monkeypatch):
    """Running statistics and masks that fit make no network."""
    network = E2ENet(1, 2, **KWARGS)
    (buffer, *_) = dict(network.named_buffers())
    monkeypatch.setattr("nnunet_ext.weights.transfer.transfer", lambda source, target: ([buffer], {}))
    assert main(words) == 1
    assert "Nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "fitted.pth").exists()
