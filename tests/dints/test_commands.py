"""`nnunet_ext plan`, `info` and `demo` with DiNTS."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from dints.small import random_code
from end_to_end.stock import stock_plans

from nnunet_ext.cli.main import main
from nnunet_ext.demo.schedule import demo_settings
from nnunet_ext.dints.architecture_code import CVPR_CODE, ArchitectureCode
from nnunet_ext.dints.code_file import CodeFile, origin_text
from nnunet_ext.dints.network import DiNTSNet, search_arch_kwargs_at
from nnunet_ext.dints.options import DiNTSOptions, DiNTSSearchOptions
from nnunet_ext.dints.presets import PRESETS, SEARCH_PRESETS
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import get_method
from nnunet_ext.planning.derive import derive_plans
from nnunet_ext.planning.fit import fitted_patch
from nnunet_ext.planning.options import TrainingOptions

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
CODE = random_code(3, layers=4)
META = {
    "dataset": "Dataset004_Hippocampus", "fold": 2, "sigma": 0.5, "memory_ratio_of_code": 0.498, "iterations": 21_000,
    "seed": 3, "versions": {"torch": "2.9"}, "edge_probabilities": [[0.5] * 7] * 4,
}  # fmt: skip
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
    CodeFile(CODE, use_downsample=False, meta=META).write(tmp_path / "architecture.json")
    run("plan", 7, "--method", "dints", "--code", tmp_path / "architecture.json", "--name", "New")
    said = capsys.readouterr().out
    assert "From nnUNetPlans:" in said and "-tr DiNTSTrainer -p New" in said
    for configuration in written(folder).values():
        arch_kwargs = configuration["architecture"]["arch_kwargs"]
        assert {**arch_kwargs, **CODE.settings()} == arch_kwargs
        assert arch_kwargs["use_downsample"] is False
        assert configuration["nnunet_ext"]["code_origin"]["sigma"] == 0.5
    arch_kwargs = written(folder)["3d_fullres"]["architecture"]["arch_kwargs"]
    assert DiNTSNet(1, 2, **{**arch_kwargs, "base_features": 2}).code == CODE


def test_a_file_of_the_reference_comes_into_the_plans(folder, tmp_path):
    path = tmp_path / "arch_code.pth"
    torch.save({"code_a": np.array(CVPR_CODE.active), "code_c": np.array(CVPR_CODE.operations)}, path)
    run("plan", 7, "--method", "dints", "--code", path, "--name", "New", "--configuration", "3d_fullres")
    configuration = written(folder)["3d_fullres"]
    kwargs = configuration["architecture"]["arch_kwargs"]
    assert kwargs["arch_code_a"] == [list(row) for row in CVPR_CODE.active]
    assert kwargs["arch_code_c"] == [list(row) for row in CVPR_CODE.with_axes_reversed().operations]
    assert configuration["nnunet_ext"]["code_origin"]["source"] == "reference implementation, arch_code.pth"


def test_the_origin_is_told_of_its_own_code_only():
    origin = CodeFile(CODE, meta=META).origin()
    said = origin_text(CODE, origin)
    for part in ("Dataset004_Hippocampus, fold 2", "sigma 0.5", "the code has 0.498", "seed 3", "torch 2.9"):
        assert part in said
    assert "do not say where" in origin_text(random_code(3, layers=4, seed=9), origin)
    assert "authors of DiNTS published" in origin_text(CVPR_CODE, origin)
    assert "authors of DiNTS published" in origin_text(CVPR_CODE.for_dimensions(2), None)


def own_plans(folder, tmp_path):
    """The method's own plans with CODE, for a patch smaller than the images."""
    CodeFile(CODE).write(tmp_path / "own.json")
    run("plan", 7, "--method", "dints", "--name", "DiNTSPlans", "--set", "base_features=4", "--set",
        "patch_size=[32,64,64]", "--configuration", "3d_fullres", "--code", tmp_path / "own.json")  # fmt: skip
    plans = json.loads((folder / "DiNTSPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["median_image_size_in_voxels"] = [64, 128, 96]
    (folder / "DiNTSPlans.json").write_text(json.dumps(plans))


def kept(configuration):
    kwargs = configuration["architecture"]["arch_kwargs"]
    with torch.device("meta"):
        return DiNTSNet(1, 3, **kwargs).compute_conv_feature_map_size(configuration["patch_size"])


@pytest.mark.slow
def test_the_patch_is_planned_for_the_code(folder, tmp_path, capsys):
    """A lean code gets a larger patch, a heavy one a smaller, and neither keeps more than what was planned."""
    own_plans(folder, tmp_path)
    planned = written(folder, "DiNTSPlans")["3d_fullres"]
    words = ["plan", 7, "--method", "dints", "--configuration", "3d_fullres", "--code", tmp_path / "code.json"]
    for name, layers, sides in (("Lean", 1, int.__ge__), ("Heavy", 10, int.__le__)):
        CodeFile(ArchitectureCode.of([[1] * 7] * layers, [[1] * 7] * layers)).write(tmp_path / "code.json")
        run(*words, "--name", name)
        said = capsys.readouterr().out
        made = written(folder, name)["3d_fullres"]
        assert made["patch_size"] != planned["patch_size"]
        assert all(map(sides, made["patch_size"], planned["patch_size"]))
        assert kept(made) <= kept(planned)
        assert f"a training step keeps {4 * kept(made) / 1e6:,.0f} MB" in said
        assert f"planned were {4 * kept(planned) / 1e6:,.0f} MB of feature maps (fp32) for 32x64x64" in said
    run(*words, "--name", "Fixed", "--set", "patch_size=[32,64,64]")
    assert written(folder, "Fixed")["3d_fullres"]["patch_size"] == [32, 64, 64]
    assert "a training step keeps" in capsys.readouterr().out


def test_the_same_code_keeps_the_planned_patch(folder, tmp_path):
    own_plans(folder, tmp_path)
    CodeFile(CODE, meta=META).write(tmp_path / "code.json")
    run("plan", 7, "--method", "dints", "--code", tmp_path / "code.json", "--name", "Same")
    assert written(folder, "Same")["3d_fullres"]["patch_size"] == [32, 64, 64]


def test_a_patch_grows_where_it_covers_least_and_never_beyond_the_image():
    def kept(patch):
        return int(np.prod(patch))

    assert fitted_patch(kept, [32, 32, 32], [40, 200, 100], [16, 16, 16], 32 * 32 * 32) == [32, 32, 32]
    assert fitted_patch(kept, [32, 32, 32], [40, 200, 100], [16, 16, 16], 32 * 64 * 32) == [32, 64, 32]
    assert fitted_patch(kept, [32, 32, 32], [40, 40, 40], [16, 16, 16], 10**9) == [48, 48, 48]
    assert fitted_patch(kept, [64, 64, 64], [64, 128, 128], [16, 16, 16], 48 * 64 * 64) == [48, 64, 64]
    assert fitted_patch(kept, [64, 64, 64], [64, 64, 64], [16, 16, 16], 1) == [32, 32, 32]


def test_a_search_has_plans_and_options_of_its_own(folder, capsys):
    run("plan", 7, "--preset", "dints_search/sigma-02", "--name", "Search", "--set", "num_layers=4", "--set",
        "patch_size=[16,32,32]", "--configuration", "3d_fullres")  # fmt: skip
    assert "-tr DiNTSSearchTrainer -p Search" in capsys.readouterr().out
    made = written(folder, "Search")["3d_fullres"]
    assert made["nnunet_ext"]["sigma"] == 0.2 and made["patch_size"] == [16, 32, 32]
    assert made["architecture"]["arch_kwargs"]["num_layers"] == 4
    training = set(asdict(DiNTSOptions()))
    search = set(made["nnunet_ext"])
    shared = {f for f in asdict(TrainingOptions())}
    assert training & search - shared == {"warmup_iterations", "halve_every"}, "which mean the same in both"
    run("plan", 7, "--method", "dints_search", "--name", "Bad", "--set", "weight_epochs=84", expect=1)
    run("plan", 7, "--method", "dints_search", "--name", "Bad", "--set", "num_depths=9", expect=1)
    run("plan", 7, "--method", "dints", "--name", "Bad", "--set", "sigma=0.5", expect=1)
    error = capsys.readouterr().err
    assert "weight_epochs" in error and "2 to 5 scales" in error and "Unknown setting of DiNTS: sigma" in error
    assert not (folder / "Bad.json").exists()


def test_training_options_of_older_plans_are_read():
    """In which the options of the search stood beside them."""
    old = {"num_epochs": 7, "sigma": 0.5, "search_layers": 12, "search_lr": 0.025}
    assert DiNTSOptions.from_plans(old) == DiNTSOptions(num_epochs=7)
    with pytest.raises(ConfigurationError, match="Unknown training option .*momentun"):
        DiNTSOptions.from_plans({"momentun": 0.9})


def test_the_methods_own_plans_are_the_default_start(folder, capsys):
    run("plan", 7, "--method", "dints", "--name", "DiNTSPlans", "--set", "batch_size=5")
    run("plan", 7, "--method", "dints", "--name", "New")
    assert "From DiNTSPlans:" in capsys.readouterr().out
    assert written(folder)["3d_fullres"]["batch_size"] == 5
    run("plan", 7, "--method", "dints", "--name", "Other", "--from", "nnUNetPlans")
    assert written(folder, "Other")["3d_fullres"]["batch_size"] == 2


def test_without_plans_to_start_from_the_planner_is_named(folder, capsys):
    (folder / "nnUNetPlans.json").rename(folder / "Others.json")
    run("plan", 7, "--method", "dints", "--name", "New", expect=1)
    said = capsys.readouterr().err
    assert "neither DiNTSPlans nor nnUNetPlans" in said and "nnUNetv2_plan_experiment -d 7 -pl DiNTSPlanner" in said
    run("plan", 7, "--method", "dints", "--name", "New", "--from", "Others")


def test_bad_codes_write_nothing(folder, tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"format": "dints-arch-code", "version": 9}')
    run("plan", 7, "--method", "dints", "--code", tmp_path / "bad.json", "--name", "New", expect=1)
    run("plan", 7, "--method", "e2enet", "--code", tmp_path / "bad.json", "--name", "New", expect=1)
    error = capsys.readouterr().err
    assert "version is 9" in error and "E2ENet has no architecture code" in error
    assert not (folder / "New.json").exists()


ALL_PRESETS = [("dints", name) for name in PRESETS] + [("dints_search", name) for name in SEARCH_PRESETS]


@pytest.mark.parametrize(("method", "preset"), ALL_PRESETS)
def test_presets_make_plans_of_which_a_network_is_built(method, preset):
    settings = {"dints": PRESETS, "dints_search": SEARCH_PRESETS}[method][preset]
    source = stock_plans("nnUNetPlans", STRIDES)
    made = derive_plans(source, DATASET_JSON, get_method(method), name="New", settings=settings)
    configuration = made["configurations"]["3d_fullres"]
    places = {**configuration["nnunet_ext"], **configuration["architecture"]["arch_kwargs"]}
    assert {key: places[key] for key in settings} == settings


def test_the_defaults_are_the_papers_search_and_nnunets_training():
    search, kwargs = DiNTSSearchOptions(), search_arch_kwargs_at(STRIDES)
    assert (search.iterations, search.joint_start) == (21_000, 11_000)
    assert (search.sigma, kwargs["num_layers"], kwargs["num_depths"], kwargs["base_features"]) == (0.8, 12, 4, 16)
    assert (search.architecture_lr, search.topology_weight, search.initial_lr) == (0.008, 0.001, 0.025)
    assert search.decode_within_budget
    options = DiNTSOptions()
    assert (options.num_epochs, options.initial_lr, options.momentum, options.nesterov) == (1000, 0.01, 0.99, True)


def test_info_tells_of_the_network_that_the_plans_mean(folder, tmp_path, capsys):
    """The published code's, the supernet's, and that of a code that a search found."""
    CodeFile(CODE).write(tmp_path / "architecture.json")
    for words, title, parameters in (
        (["--method", "dints"], "DiNTS", "148,813,635"),
        (["--method", "dints_search"], "DiNTS search", "150,612,467"),
        (["--method", "dints", "--code", tmp_path / "architecture.json"], "DiNTS", None),
    ):
        run("plan", 7, *words, "--name", "New", "--configuration", "3d_fullres", "--overwrite")
        capsys.readouterr()
        run("info", folder / "New.json", "--configuration", "3d_fullres")
        if parameters is None:
            kwargs = written(folder)["3d_fullres"]["architecture"]["arch_kwargs"]
            parameters = f"{sum(p.numel() for p in DiNTSNet(1, 3, **kwargs).parameters()):,}"
        text = capsys.readouterr().out
        assert f"3d_fullres: {title}\n" in text and f"parameters {parameters}" in text


def test_the_demo_trains_a_narrow_network_shortly():
    method = get_method("dints")
    source = derive_plans(stock_plans("nnUNetPlans", STRIDES), DATASET_JSON, method, name="Own")
    settings = demo_settings(method, "cpu", source["configurations"]["3d_fullres"])
    made = derive_plans(source, DATASET_JSON, method, name="Demo", settings=settings, configurations=["3d_fullres"])
    demo = made["configurations"]["3d_fullres"]
    assert demo["architecture"]["arch_kwargs"]["base_features"] == 6
    assert demo["nnunet_ext"]["num_epochs"] * demo["nnunet_ext"]["num_iterations_per_epoch"] < 500
