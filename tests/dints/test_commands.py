"""`nnunet_ext plan`, `info` and `demo` with DiNTS."""

import json

import numpy as np
import pytest
import torch
from dints.small import random_code
from end_to_end.stock import stock_plans

from nnunet_ext.cli.main import main
from nnunet_ext.demo.schedule import demo_settings
from nnunet_ext.dints.architecture_code import CVPR_CODE
from nnunet_ext.dints.code_file import CodeFile
from nnunet_ext.dints.network import DiNTSNet
from nnunet_ext.dints.options import DiNTSOptions
from nnunet_ext.dints.presets import PRESETS
from nnunet_ext.methods import get_method
from nnunet_ext.planning.derive import derive_plans

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
CODE = random_code(3, layers=4)
DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / "Dataset007_Tiny"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(stock_plans("nnUNetPlans", STRIDES)))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    return folder


def written(folder, name="New"):
    return json.loads((folder / f"{name}.json").read_text())["configurations"]


def run(*words, expect=0):
    assert main([str(word) for word in words]) == expect


def test_a_searched_code_comes_into_the_plans_of_all_configurations(folder, tmp_path, capsys):
    CodeFile(CODE, use_downsample=False).write(tmp_path / "architecture.json")
    run("plan", 7, "--method", "dints", "--code", tmp_path / "architecture.json", "--name", "New")
    assert "From nnUNetPlans:" in capsys.readouterr().out
    for configuration in written(folder).values():
        arch_kwargs = configuration["architecture"]["arch_kwargs"]
        assert {**arch_kwargs, **CODE.settings()} == arch_kwargs
        assert arch_kwargs["use_downsample"] is False
        assert configuration["nnunet_ext"]["sigma"] == 0.8
    arch_kwargs = written(folder)["3d_fullres"]["architecture"]["arch_kwargs"]
    assert DiNTSNet(1, 2, **{**arch_kwargs, "base_features": 2}).code == CODE


def test_a_file_of_the_reference_comes_into_the_plans(folder, tmp_path):
    path = tmp_path / "arch_code.pth"
    torch.save({"code_a": np.array(CVPR_CODE.active), "code_c": np.array(CVPR_CODE.operations)}, path)
    run("plan", 7, "--method", "dints", "--code", path, "--name", "New", "--configuration", "3d_fullres")
    arch_kwargs = written(folder)["3d_fullres"]["architecture"]["arch_kwargs"]
    assert arch_kwargs["arch_code_a"] == [list(row) for row in CVPR_CODE.active]


def test_the_methods_own_plans_are_the_default_start(folder, capsys):
    run("plan", 7, "--method", "dints", "--name", "DiNTSPlans", "--set", "batch_size=5")
    run("plan", 7, "--method", "dints", "--name", "New")
    assert "From DiNTSPlans:" in capsys.readouterr().out
    assert written(folder)["3d_fullres"]["batch_size"] == 5
    run("plan", 7, "--method", "dints", "--name", "Other", "--from", "nnUNetPlans")
    assert written(folder, "Other")["3d_fullres"]["batch_size"] == 2


def test_bad_codes_write_nothing(folder, tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"format": "dints-arch-code", "version": 9}')
    run("plan", 7, "--method", "dints", "--code", tmp_path / "bad.json", "--name", "New", expect=1)
    run("plan", 7, "--method", "e2enet", "--code", tmp_path / "bad.json", "--name", "New", expect=1)
    error = capsys.readouterr().err
    assert "version is 9" in error and "E2ENet has no architecture code" in error
    assert not (folder / "New.json").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_make_plans_of_which_a_network_is_built(preset):
    method = get_method("dints")
    made = derive_plans(stock_plans("nnUNetPlans", STRIDES), DATASET_JSON, method, name="New", settings=PRESETS[preset])
    configuration = made["configurations"]["3d_fullres"]
    places = {**configuration["nnunet_ext"], **configuration["architecture"]["arch_kwargs"]}
    assert {key: places[key] for key in PRESETS[preset]} == PRESETS[preset]


def test_the_defaults_are_the_papers_search_and_nnunets_training():
    options = DiNTSOptions()
    assert (options.search_iterations, options.search_joint_start) == (21_000, 11_000)
    assert (options.sigma, options.search_layers, options.search_depths) == (0.8, 12, 4)
    assert (options.search_architecture_lr, options.search_topology_weight) == (0.008, 0.001)
    assert (options.num_epochs, options.initial_lr, options.momentum, options.nesterov) == (1000, 0.01, 0.99, True)


def test_info_tells_of_the_network_and_of_the_supernet(folder, capsys):
    run("plan", 7, "--method", "dints", "--name", "New", "--configuration", "3d_fullres")
    capsys.readouterr()
    run("info", folder / "New.json", "--configuration", "3d_fullres")
    text = capsys.readouterr().out
    assert "3d_fullres: DiNTS" in text
    assert "parameters 148,813,635" in text
    assert "search's supernet: parameters 150,612,467" in text


def test_the_demo_trains_a_narrow_network_shortly():
    method = get_method("dints")
    source = derive_plans(stock_plans("nnUNetPlans", STRIDES), DATASET_JSON, method, name="Own")
    settings = demo_settings(method, "cpu", source["configurations"]["3d_fullres"])
    made = derive_plans(source, DATASET_JSON, method, name="Demo", settings=settings, configurations=["3d_fullres"])
    demo = made["configurations"]["3d_fullres"]
    assert demo["architecture"]["arch_kwargs"]["base_features"] == 6
    assert demo["nnunet_ext"]["num_epochs"] * demo["nnunet_ext"]["num_iterations_per_epoch"] < 500
