"""`nnunet_ext plan` and `info` with Med-Tuning, and its planner's arithmetic."""

import json

import pytest
import timm
import torch
from end_to_end.stock import stock_plans
from med_tuning.training import BACKBONE, SETTINGS

from nnunet_ext.cli.main import main
from nnunet_ext.med_tuning.presets import PRESETS
from nnunet_ext.methods import get_method
from nnunet_ext.planning.derive import derive_plans
from nnunet_ext.planning.options import dotted_path
from nnunet_ext.plans.med_tuning import MedTuningPlanner

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
SMALL = ["--set", f"backbone={BACKBONE}", "--set", f"backbone_settings={json.dumps(SETTINGS)}"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "Dataset007_Tiny"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(stock_plans("nnUNetPlans", STRIDES)))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    return folder


def run(*words, expect=0):
    assert main([str(word) for word in words]) == expect


def test_plans_know_their_patch_and_their_weights(folder, tmp_path, capsys):
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model(BACKBONE, pretrained=False, **SETTINGS).state_dict(), file)
    words = ["plan", 7, "--method", "med_tuning", *SMALL, "--set", f"weights_file={file}"]
    run(*words, "--name", "New", "--configuration", "3d_fullres", "--set", "patch_size=[8,24,40]")
    assert "-tr MedTuningTrainer -p New" in capsys.readouterr().out
    made = json.loads((folder / "New.json").read_text())["configurations"]["3d_fullres"]
    assert made["patch_size"] == made["architecture"]["arch_kwargs"]["patch_size"] == [8, 24, 40]
    assert made["nnunet_ext"]["weights_file"] == str(file)
    run(*words, "--name", "Both")
    made = json.loads((folder / "Both.json").read_text())["configurations"]
    assert made["2d"]["architecture"]["arch_kwargs"]["patch_size"] == made["2d"]["patch_size"] == [16, 16]


def test_a_weights_file_of_this_folder_is_found_from_another(folder, tmp_path, monkeypatch):
    torch.save(timm.create_model(BACKBONE, pretrained=False, **SETTINGS).state_dict(), tmp_path / "near.pth")
    monkeypatch.chdir(tmp_path)
    run("plan", 7, "--method", "med_tuning", *SMALL, "--set", "weights_file=near.pth", "--name", "Near")
    made = json.loads((folder / "Near.json").read_text())["configurations"]["3d_fullres"]
    assert made["nnunet_ext"]["weights_file"] == str(tmp_path / "near.pth")


def test_plans_are_not_written_where_training_would_not_start(folder, tmp_path, capsys):
    words = ["plan", 7, "--method", "med_tuning", "--name", "New"]
    run(*words, expect=1)
    assert "--set weights_file=FILE" in capsys.readouterr().err
    run(*words, *SMALL, "--set", f"weights_file={tmp_path / 'nowhere.pth'}", expect=1)
    assert "nowhere.pth does not exist" in capsys.readouterr().err
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    run(*words, *SMALL, "--set", f"weights_file={tmp_path / 'other.pth'}", expect=1)
    assert "0 of 53 tensors match" in capsys.readouterr().err
    run(*words, *SMALL, "--set", "tuning=prefix", "--set", "pretrained=false", expect=1)
    assert "Unknown tuning 'prefix'" in capsys.readouterr().err
    assert not (folder / "New.json").exists()
    run(*words, *SMALL, "--set", "pretrained=false")
    run(*words, *SMALL, "--set", "tuning=scratch", "--overwrite")


def test_info_tells_of_the_parts_and_the_trainable_share(folder, capsys):
    run("plan", 7, "--method", "med_tuning", *SMALL, "--set", "pretrained=false", "--name", "New")
    capsys.readouterr()
    run("info", folder / "New.json", "--configuration", "3d_fullres")
    out = capsys.readouterr().out
    for text in ("3d_fullres: Med-Tuning", "backbone: ", "adapters: ", "decoder: ", " trainable\n", "trainable share "):
        assert text in out
    run("info", folder / "New.json", "--json")
    report = json.loads(capsys.readouterr().out)["configurations"]["3d_fullres"]
    assert sum(part["total"] for part in report["parts"].values()) == report["parameters"]["total"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_make_plans_of_which_a_network_is_built(preset):
    method = get_method("med_tuning")
    settings = {**PRESETS[preset], "pretrained": False}
    made = derive_plans(stock_plans("nnUNetPlans", STRIDES), DATASET_JSON, method, name="New", settings=settings)
    configuration = made["configurations"]["3d_fullres"]
    places = {**configuration, **configuration["nnunet_ext"], **configuration["architecture"]["arch_kwargs"]}
    assert {key: places[key] for key in settings} == settings


def test_the_planner_counts_the_network_of_each_patch():
    def elements(patch):
        return MedTuningPlanner.static_estimate_VRAM_usage(
            patch, 1, 3, dotted_path(MedTuningPlanner.network_class), {"strides": STRIDES}, ()
        )

    small, deep = elements([8, 64, 64]), elements([16, 64, 64])
    assert 1.9 < deep / small < 2.1
