"""Plans files: what `nnunet_ext plan` changes, what it keeps, and what it refuses."""

import json
import math
from copy import deepcopy
from dataclasses import asdict

import pytest
import torch
from end_to_end.stock import stock_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.cli.main import main
from nnunet_ext.e2enet.network import arch_kwargs_at
from nnunet_ext.e2enet.options import E2ENetOptions
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS, get_method
from nnunet_ext.planning.derive import derive_plans, parse_settings
from nnunet_ext.planning.patches import smaller_patch, total_strides, voxels_by_level
from nnunet_ext.planning.plans_files import preprocessed_folder, write_plans

E2ENET = METHODS["e2enet"]
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}


def unet(strides):
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {"strides": strides, "features_per_stage": [32] * len(strides)},
        "_kw_requires_import": ["conv_op"],
    }


def configuration(name, patch, strides):
    return {
        "data_identifier": f"nnUNetPlans_{name}",
        "batch_size": 2,
        "patch_size": patch,
        "spacing": [1.0] * len(patch),
        "architecture": unet(strides),
    }


@pytest.fixture
def stock():
    return {
        "plans_name": "nnUNetPlans",
        "configurations": {
            "2d": configuration("2d", [64, 64], [[1, 1], [2, 2], [2, 2]]),
            "3d_lowres": {**configuration("3d_lowres", [32, 32, 32], STRIDES), "next_stage": "3d_cascade_fullres"},
            "3d_fullres": configuration("3d_fullres", [32, 48, 48], STRIDES),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


def derive(plans, settings=None, **kwargs):
    return derive_plans(plans, DATASET_JSON, E2ENET, name="E2ENetPlans_Test", settings=settings, **kwargs)


def network_of(plans, name="3d_fullres"):
    manager = PlansManager(deepcopy(plans))
    with torch.device("meta"):
        return E2ENET.trainer_class().build_network_architecture(manager, manager.get_configuration(name), 1, 3)


def test_3d_configurations_get_the_methods_network_and_default_options(stock):
    plans = derive(stock)
    assert plans["plans_name"] == "E2ENetPlans_Test"
    for name in ("3d_lowres", "3d_fullres"):
        assert plans["configurations"][name]["architecture"] == {
            "network_class_name": "nnunet_ext.e2enet.network.E2ENet",
            "arch_kwargs": arch_kwargs_at(STRIDES),
            "_kw_requires_import": [],
        }
        assert plans["configurations"][name]["nnunet_ext"] == asdict(E2ENetOptions())


def test_all_else_stays_as_it_was(stock):
    before = deepcopy(stock)
    plans = derive(stock, {"sparsity": 0.9})
    assert stock == before
    for name in ("2d", "3d_cascade_fullres"):
        assert plans["configurations"][name] == before["configurations"][name]
    for values in (plans["configurations"]["3d_fullres"], before["configurations"]["3d_fullres"]):
        values.pop("architecture")
        values.pop("nnunet_ext", None)
    assert plans["configurations"]["3d_fullres"] == before["configurations"]["3d_fullres"]


def test_the_cascade_inherits_network_and_options(stock):
    plans = derive(stock, {"sparsity": 0.9, "num_epochs": 7})
    resolved = PlansManager(plans).get_configuration("3d_cascade_fullres")
    assert resolved.network_arch_class_name == "nnunet_ext.e2enet.network.E2ENet"
    assert resolved.network_arch_init_kwargs["sparsity"] == 0.9
    assert resolved.configuration["nnunet_ext"]["num_epochs"] == 7


def test_a_configuration_with_a_network_of_its_own_inherits_none(stock):
    """It gets the rest from another, and is changed only when it is named."""
    own = stock["configurations"]["2d"]["architecture"]
    stock["configurations"]["3d_own"] = {"inherits_from": "3d_fullres", "architecture": own}
    stock["configurations"]["3d_heir"] = {"inherits_from": "3d_cascade_fullres"}
    plans = derive(stock, {"sparsity": 0.9}, configurations=["3d_fullres"])
    assert plans["configurations"]["3d_own"] == {"inherits_from": "3d_fullres", "architecture": own}
    assert PlansManager(plans).get_configuration("3d_heir").network_arch_init_kwargs["sparsity"] == 0.9


def test_settings_go_where_they_belong(stock):
    plans = derive(
        stock, {"sparsity": 0.9, "num_epochs": 100, "initial_lr": 1, "patch_size": [40, 56, 40], "batch_size": 3}
    )
    values = plans["configurations"]["3d_fullres"]
    assert values["architecture"]["arch_kwargs"]["sparsity"] == 0.9
    assert values["nnunet_ext"]["num_epochs"] == 100
    assert values["nnunet_ext"]["initial_lr"] == 1.0 and isinstance(values["nnunet_ext"]["initial_lr"], float)
    assert (values["patch_size"], values["batch_size"]) == ([40, 56, 40], 3)
    assert network_of(plans).sparsity == 0.9


def test_a_width_rule_replaces_explicit_widths(stock):
    plans = derive(stock, {"base_features": 8, "max_features": 20})
    assert "features_per_stage" not in plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert network_of(plans).features_per_stage == [8, 16, 20, 20]


def test_a_maximum_alone_keeps_the_width_of_the_first_level(stock):
    narrow = derive(stock, {"features_per_stage": [10, 20, 40, 80]})
    assert network_of(derive(narrow, {"max_features": 30})).features_per_stage == [10, 20, 30, 30]


def test_explicit_widths_replace_a_width_rule(stock):
    by_rule = derive(stock, {"base_features": 8, "max_features": 20})
    plans = derive(by_rule, {"features_per_stage": [4, 5, 6, 7]})
    arch_kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert not {"base_features", "max_features"} & set(arch_kwargs)
    assert network_of(plans).features_per_stage == [4, 5, 6, 7]


def test_width_rule_and_explicit_widths_together_are_refused(stock):
    with pytest.raises(ConfigurationError, match="features_per_stage and base_features exclude each other"):
        derive(stock, {"base_features": 8, "features_per_stage": [4, 5, 6, 7]})


def test_plans_that_are_ours_keep_their_earlier_options(stock):
    first = derive(stock, {"sparsity": 0.9, "num_epochs": 100, "kernel_size": [3, 3, 3]})
    second = derive(first, {"num_epochs": 50})["configurations"]["3d_fullres"]
    assert second["architecture"] == first["configurations"]["3d_fullres"]["architecture"]
    assert second["nnunet_ext"] == {**first["configurations"]["3d_fullres"]["nnunet_ext"], "num_epochs": 50}


def test_only_the_named_configuration_is_changed(stock):
    plans = derive(stock, {"batch_size": 4}, configurations=["3d_fullres"])
    assert plans["configurations"]["3d_lowres"] == stock["configurations"]["3d_lowres"]
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 4


@pytest.mark.parametrize(
    "names, message",
    [
        (["3d_cascade_fullres"], "inherits from '3d_fullres'"),
        (["2d"], "does not support configuration '2d'"),
        (["3d"], "Unknown configuration: 3d. Known: 2d, 3d_cascade_fullres, 3d_fullres, 3d_lowres"),
    ],
)
def test_unsuitable_configurations_are_refused(stock, names, message):
    with pytest.raises(ConfigurationError, match=message):
        derive(stock, configurations=names)


def test_plans_without_a_3d_configuration_are_refused(stock):
    stock["configurations"] = {"2d": stock["configurations"]["2d"]}
    with pytest.raises(ConfigurationError, match="No configuration of these plans suits E2ENet. They have: 2d"):
        derive(stock)


def test_unknown_settings_are_refused_with_the_known_ones(stock):
    with pytest.raises(ConfigurationError) as error:
        derive(stock, {"sparsty": 0.9})
    assert "sparsty" in str(error.value)
    for known in ("sparsity", "num_epochs", "update_every", "patch_size", "batch_size", "base_features"):
        assert known in str(error.value)
    assert "deep_supervision" not in str(error.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sparsity": 1.5}, "sparsity must lie strictly between 0 and 1"),
        ({"kernel_size": 3}, "3d_lowres.*cannot be built"),
        ({"num_epochs": 0}, "'num_epochs' must be at least 1"),
        ({"num_epochs": "many"}, "'num_epochs' must be int"),
        ({"patch_size": [32, 32]}, "list of 3 positive integers"),
        ({"patch_size": "32"}, "list of 3 positive integers"),
        ({"patch_size": [4, 8, 8]}, "too small for strides"),
        ({"batch_size": True}, "batch_size must be a positive integer"),
        ({"strides": [[1, 1, 1], [2, 2, 2]]}, "needs at least 3 levels"),
    ],
)
def test_bad_values_are_refused(stock, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        derive(stock, settings)


def test_a_source_without_strides_is_refused(stock):
    del stock["configurations"]["3d_lowres"]["architecture"]["arch_kwargs"]["strides"]
    with pytest.raises(ConfigurationError, match="names no strides"):
        derive(stock)


@pytest.mark.parametrize("name", ["", "a/b", "A__B", "E2ENetPlans.json", "../x", "A_"])
def test_names_that_nnunet_could_not_read_back_are_refused(stock, name):
    with pytest.raises(ConfigurationError, match="is no plans name"):
        derive_plans(stock, DATASET_JSON, E2ENET, name=name)


def test_unknown_methods_are_refused():
    with pytest.raises(ConfigurationError, match="Unknown method 'e3'. Known: .*e2enet"):
        get_method("e3")


def test_settings_are_json_or_text():
    texts = ["a=0.9", "b=[3,3,3]", "c=null", "d=balanced", "e=true", 'f="1"', "g=x=y"]
    assert parse_settings(texts) == {
        "a": 0.9,
        "b": [3, 3, 3],
        "c": None,
        "d": "balanced",
        "e": True,
        "f": "1",
        "g": "x=y",
    }


@pytest.mark.parametrize("texts", [["sparsity"], ["=3"], ["a=1", "a=2"]])
def test_malformed_settings_are_refused(texts):
    with pytest.raises(ConfigurationError, match="--set"):
        parse_settings(texts)


def test_a_different_file_is_only_replaced_when_asked(tmp_path):
    plans = {"plans_name": "P", "configurations": {"a": (1, 2)}}
    assert write_plans(tmp_path, plans) == "written"
    assert write_plans(tmp_path, plans) == "unchanged"
    other = {"plans_name": "P", "configurations": {}}
    before = (tmp_path / "P.json").read_bytes()
    with pytest.raises(ConfigurationError, match="--overwrite"):
        write_plans(tmp_path, other)
    assert (tmp_path / "P.json").read_bytes() == before
    assert write_plans(tmp_path, other, overwrite=True) == "replaced"
    assert json.loads((tmp_path / "P.json").read_text()) == other
    assert [p.name for p in tmp_path.iterdir()] == ["P.json"]


def test_data_sets_are_found_by_name_and_number(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    for name in ("Dataset007_Pancreas", "Dataset070_Other", "Dataset008_A", "Dataset008_B"):
        (tmp_path / name).mkdir()
    assert preprocessed_folder("7").name == "Dataset007_Pancreas"
    assert preprocessed_folder("007").name == "Dataset007_Pancreas"
    assert preprocessed_folder("Pancreas").name == "Dataset007_Pancreas"
    assert preprocessed_folder("Dataset008_B").name == "Dataset008_B"
    with pytest.raises(ConfigurationError, match="'8' means several folders .*: Dataset008_A, Dataset008_B. Give its"):
        preprocessed_folder("8")
    for missing in ("9", "Dataset007", "*", "Dataset0*", "\N{SUPERSCRIPT TWO}", "pancreas", "-7", ""):
        with pytest.raises(ConfigurationError, match="is none of .*which has: Dataset007_Pancreas, Dataset008_A"):
            preprocessed_folder(missing)


def test_names_with_brackets_are_names(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "Dataset005_A[1]").mkdir()
    (tmp_path / "Dataset006_A1").mkdir()
    assert preprocessed_folder("Dataset005_A[1]").name == preprocessed_folder("A[1]").name == "Dataset005_A[1]"


def test_no_data_set_is_found_without_the_folder_of_data_sets(monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with pytest.raises(ConfigurationError, match="nnUNet_preprocessed is not set"):
        preprocessed_folder("7")


@pytest.mark.parametrize("name", ["dataset", "splits_final", "dataset_fingerprint"])
def test_nnunets_own_files_are_never_plans(folder, name, capsys):
    (folder / f"{name}.json").write_text('{"its": "own"}')
    words = ["plan", "7", "--method", "e2enet", "--name", name, "--overwrite"]
    assert main(words) == 1
    assert f"{name}.json is nnU-Net's own file" in capsys.readouterr().err
    assert json.loads((folder / f"{name}.json").read_text()) == {"its": "own"}


def test_a_file_that_is_no_plans_file_is_not_replaced(folder, capsys):
    (folder / "notes.json").write_text('["mine"]')
    assert main(["plan", "7", "--method", "e2enet", "--name", "notes", "--overwrite"]) == 1
    assert "notes.json exists and is no plans file" in capsys.readouterr().err
    assert (folder / "notes.json").read_text() == '["mine"]'
    (folder / "notes.json").write_text('{"mine": 1}')
    assert main(["plan", "7", "--method", "e2enet", "--name", "notes", "--overwrite"]) == 1
    assert (folder / "notes.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "s90"], "--preset s90 needs its method: --preset e2enet/s90"),
        (["--preset", "e2enet"], "names a method. Its presets: nnunet_ext presets e2enet"),
        (["--preset", "nothing"], "No method has a preset 'nothing'"),
        (["--method", "e2enet", "--preset", "nothing"], "Unknown preset of E2ENet: nothing. Known: "),
        (["--method", "e2enet", "--preset", "dints/sigma-02"], "found dints, e2enet"),
    ],
)
def test_presets_that_cannot_be_meant_are_explained(folder, words, message, capsys):
    assert main(["plan", "7", "--name", "P", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_bare_preset_is_that_of_the_method(folder):
    assert main(["plan", "7", "--name", "P", "--method", "e2enet", "--preset", "s90"]) == 0
    plans = json.loads((folder / "P.json").read_text())
    assert plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["sparsity"] == 0.9


@pytest.fixture
def folder(tmp_path, monkeypatch, stock):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / "Dataset007_Pancreas"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(stock))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    return folder


def test_the_command_writes_plans_and_says_how_to_train(folder, capsys):
    command = ["plan", "7", "--method", "e2enet", "--name", "E2ENetPlans_S90", "--set", "sparsity=0.9"]
    assert main([*command, "--set", "num_epochs=100"]) == 0
    plans = json.loads((folder / "E2ENetPlans_S90.json").read_text())
    assert plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["sparsity"] == 0.9
    assert plans["configurations"]["3d_fullres"]["nnunet_ext"]["num_epochs"] == 100
    output = capsys.readouterr().out
    assert "nnUNetv2_train Dataset007_Pancreas 3d_fullres 0 -tr E2ENetTrainer -p E2ENetPlans_S90" in output
    assert "E2ENetPlanner" in output, "patch and batch were sized for another network"

    assert main([*command, "--set", "num_epochs=100"]) == 0
    assert "holds these plans already" in capsys.readouterr().out
    assert main([*command, "--set", "num_epochs=50"]) == 1
    assert json.loads((folder / "E2ENetPlans_S90.json").read_text()) == plans
    assert main([*command, "--set", "num_epochs=50", "--overwrite"]) == 0


def test_the_command_takes_the_method_of_the_plans_it_starts_from(folder, capsys):
    assert main(["plan", "7", "--from", "nnUNetPlans", "--name", "New"]) == 1
    assert "found neither" in capsys.readouterr().err
    assert main(["plan", "7", "--method", "e2enet", "--name", "First", "--set", "sparsity=0.9"]) == 0
    assert main(["plan", "7", "--from", "First", "--name", "Second", "--set", "num_epochs=9"]) == 0
    second = json.loads((folder / "Second.json").read_text())["configurations"]["3d_fullres"]
    assert second["architecture"]["arch_kwargs"]["sparsity"] == 0.9 and second["nnunet_ext"]["num_epochs"] == 9


OURS, NNUNETS = "resample_separable", "resample_data_or_seg_to_shape"
FUNCTIONS = ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")


@pytest.fixture
def with_functions(stock):
    for values in stock["configurations"].values():
        if "architecture" in values:
            values.update({**dict.fromkeys(FUNCTIONS, NNUNETS), "resampling_fn_data_kwargs": {"order": 3}})
    return stock


def test_resampling_is_chosen_beside_a_method(with_functions):
    derived = derive(with_functions, {"resampling": "separable", "batch_size": 3})["configurations"]
    assert [derived["3d_fullres"][key] for key in FUNCTIONS] == [OURS] * 3
    assert (
        derived["3d_fullres"]["resampling_fn_data_kwargs"] == {"order": 3} and derived["3d_fullres"]["batch_size"] == 3
    )
    assert derived["2d"] == with_functions["configurations"]["2d"]
    back = derive(derive(with_functions, {"resampling": "separable"}), {"resampling": "nnunet"})["configurations"]
    assert [back["3d_fullres"][key] for key in FUNCTIONS] == [NNUNETS] * 3


@pytest.mark.parametrize(("change", "value", "message"), [
    ({}, "fast", "must be nnunet or separable, found 'fast'"),
    ({"resampling_fn_seg": "resample_torch_fornnunet"}, "separable", "these are resampling_fn_seg=resample_torch_forn"),
])  # fmt: skip
def test_resampling_that_cannot_be_chosen(with_functions, change, value, message):
    with_functions["configurations"]["3d_fullres"].update(change)
    with pytest.raises(ConfigurationError, match=message):
        derive(with_functions, {"resampling": value})


def test_stock_plans_get_another_resampling(with_functions, folder, capsys):
    (folder / "nnUNetPlans.json").write_text(json.dumps(with_functions))
    assert main(["plan", "7", "--from", "nnUNetPlans", "--name", "Fast", "--set", "resampling=separable"]) == 0
    assert "-p Fast" in capsys.readouterr().out
    plans = json.loads((folder / "Fast.json").read_text())
    for name, values in plans["configurations"].items():
        before = with_functions["configurations"][name]
        expected = before if "inherits_from" in before else {**before, **dict.fromkeys(FUNCTIONS, OURS)}
        assert values == expected
    assert plans["plans_name"] == "Fast"
    words = ["plan", "7", "--name", "One", "--set", "resampling=separable", "--configuration"]
    assert main([*words, "2d"]) == 0
    one = json.loads((folder / "One.json").read_text())["configurations"]
    assert one["2d"]["resampling_fn_data"] == OURS and one["3d_fullres"]["resampling_fn_data"] == NNUNETS
    assert main([*words, "4d"]) == 1
    assert "Unknown configuration: 4d" in capsys.readouterr().err


def test_stock_plans_get_another_batch(with_functions, folder, capsys):
    (folder / "nnUNetPlans.json").write_text(json.dumps(with_functions))
    words = ["plan", "7", "--from", "nnUNetPlans", "--name", "Two", "--configuration", "3d_fullres", "--set"]
    assert main([*words, "batch_size=7"]) == 0
    assert " -p Two" in capsys.readouterr().out
    expected = {**with_functions["configurations"]["3d_fullres"], "batch_size": 7}
    plans = json.loads((folder / "Two.json").read_text())["configurations"]
    assert plans["3d_fullres"] == expected and plans["2d"] == with_functions["configurations"]["2d"]
    assert main([*words, "batch_size=0", "--overwrite"]) == 1
    assert "batch_size must be a positive integer, found 0" in capsys.readouterr().err


def test_stock_plans_get_another_patch_that_their_network_takes(with_functions, folder, capsys):
    steps = [math.prod(axis) for axis in zip(*STRIDES, strict=True)]
    (folder / "nnUNetPlans.json").write_text(json.dumps(with_functions))
    words = ["plan", "7", "--from", "nnUNetPlans", "--name", "Patch", "--configuration", "3d_fullres", "--set"]
    patch = [2 * step for step in steps]
    assert main([*words, f"patch_size={patch}"]) == 0
    plans = json.loads((folder / "Patch.json").read_text())["configurations"]
    assert plans["3d_fullres"] == {**with_functions["configurations"]["3d_fullres"], "patch_size": patch}
    assert plans["2d"] == with_functions["configurations"]["2d"]
    wrong = {
        str([patch[0], patch[1], patch[2] + 1]): f"must be multiples of {steps}, its strides multiplied",
        str(steps): "leaves a single voxel at the lowest level of 3d_fullres",
        str(patch[:2]): "patch_size must be a list of 3 positive integers",
    }
    for value, message in wrong.items():
        assert main([*words, f"patch_size={value}", "--overwrite"]) == 1
        assert message in capsys.readouterr().err
    del with_functions["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"]
    (folder / "nnUNetPlans.json").write_text(json.dumps(with_functions))
    assert main([*words, f"patch_size={patch}", "--overwrite"]) == 1
    assert "names no strides that say which patches it takes" in capsys.readouterr().err
    for name, method in (("3d_fullres", "med_tuning"), ("2d", "med_danet")):  # plans of two methods
        architecture = {"network_class_name": METHODS[method].network_path}
        with_functions["configurations"][name]["architecture"] = architecture
    (folder / "nnUNetPlans.json").write_text(json.dumps(with_functions))
    assert main([*words, f"patch_size={patch}", "--overwrite"]) == 1
    assert "is Med-Tuning's and may depend on the patch. Give --method med_tuning" in capsys.readouterr().err
    assert json.loads((folder / "Patch.json").read_text())["configurations"] == plans


def test_the_command_lists_the_plans_that_are_there(folder, capsys):
    assert main(["plan", "7", "--method", "e2enet", "--from", "Plans", "--name", "New"]) == 1
    error = capsys.readouterr().err
    assert "Plans in this folder: nnUNetPlans" in error
    assert not (folder / "New.json").exists()


# what belongs to one patch


SMALL = stock_plans("nnUNetPlans", STRIDES)


def derived(plans, method, **settings):
    return derive_plans(
        plans, DATASET_JSON, METHODS[method], name="A", settings=settings, configurations=["3d_fullres"]
    )


def arch_kwargs_of(plans):
    return plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]


@pytest.mark.parametrize(
    ("method", "settings", "key", "before", "after"),
    [
        ("med_danet", {}, "position_size", [16, 16], [32, 48]),
        ("med_tuning", {"pretrained": False}, "patch_size", [8, 16, 16], [8, 32, 48]),
    ],
)
def test_what_belongs_to_the_patch_follows_it(method, settings, key, before, after):
    plans = derived(SMALL, method, **settings)
    assert arch_kwargs_of(plans)[key] == before
    assert arch_kwargs_of(derived(plans, method, patch_size=[8, 32, 48], **settings))[key] == after


def test_positions_that_the_user_chose_stay():
    plans = derived(SMALL, "med_danet", position_size=[64, 64])
    later = derived(plans, "med_danet", patch_size=[8, 32, 48])
    at_once = derived(SMALL, "med_danet", patch_size=[8, 32, 48], position_size=[64, 64])
    for made in (plans, later, at_once):
        assert arch_kwargs_of(made)["position_size"] == [64, 64]


def test_voxels_by_level():
    assert voxels_by_level((8, 16, 16), [[1, 1, 1], [1, 2, 2], [2, 2, 2]]) == [2048, 512, 64]


def test_strides_of_all_levels_have_the_same_axes():
    assert total_strides([[1, 1, 1], [1, 2, 2], [2, 2, 2]]) == [[1, 1, 1], [1, 2, 2], [2, 4, 4]]
    with pytest.raises(ValueError, match="zip"):
        total_strides([[1, 1], [2, 2, 2]])


def test_a_smaller_patch_is_shortened_by_one_step_at_a_time():
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    assert smaller_patch([8, 30, 24], strides, 8 * 30 * 24) == [8, 30, 24]
    assert smaller_patch([8, 30, 24], strides, 8 * 30 * 24 - 1) == [8, 28, 24]
    assert smaller_patch([8, 30, 24], strides, 8 * 24 * 24) == [8, 24, 24]
    assert smaller_patch([8, 30, 24], strides, 1) == [4, 8, 8]
