"""What holds for every planner: plans that the trainer takes, preprocessed data that are shared only where equal."""

import json
import subprocess
import sys
from importlib import import_module

import pytest
from end_to_end.stock import Workspace, stock_plans, write_image
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.discovery.registry import PLANNERS
from nnunet_ext.methods import METHODS
from nnunet_ext.planning.derive import derive_plans

SPACING = [2.0, 1.0, 1.0]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A raw data set of one tiny image, with a fingerprint that tells of larger ones."""
    import numpy as np

    workspace = Workspace(tmp_path)
    for name, value in workspace.folders.items():
        monkeypatch.setenv(name, value)
    raw = workspace.raw / workspace.dataset
    write_image(raw / "imagesTr" / "case_000_0000.nii.gz", np.zeros((4, 8, 8), np.float32), (1.0, 1.0, 2.0))
    write_image(raw / "labelsTr" / "case_000.nii.gz", np.zeros((4, 8, 8), np.uint8), (1.0, 1.0, 2.0))
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    fingerprint(workspace, [40, 96, 96])
    return workspace


def fingerprint(workspace, shape):
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    content = {
        "spacings": [SPACING],
        "shapes_after_crop": [shape],
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "median_relative_size_after_cropping": 1.0,
    }
    folder = workspace.preprocessed / workspace.dataset
    folder.mkdir(exist_ok=True)
    (folder / "dataset_fingerprint.json").write_text(json.dumps(content))


def planner(name, workspace, **arguments):
    return getattr(import_module(PLANNERS[name]), name)(workspace.number, **arguments)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_planner_plan_command_and_trainer_build_one_network(method, configuration, workspace):
    """For one patch and strides: planned by the planner, derived from stock plans, and trained on stock plans."""
    if configuration == "2d" and not method.network_class().supports_2d:
        pytest.skip("a 3D method")
    planned = planner(method.planner, workspace).plan_experiment()["configurations"][configuration]
    expected = planned["architecture"]["arch_kwargs"]
    assert expected == json.loads(json.dumps(method.arch_kwargs_at(expected["strides"], planned["patch_size"])))
    stock = stock_plans("nnUNetPlans", expected["strides"])
    values = stock["configurations"]["3d_fullres"]
    stock["configurations"] = {configuration: {**values, "patch_size": list(planned["patch_size"])}}
    labels = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    settings = {"pretrained": False} if method.name == "med_tuning" else {}
    derived = derive_plans(stock, labels, method, name="Own", settings=settings)
    assert derived["configurations"][configuration]["architecture"]["arch_kwargs"] == expected
    manager = PlansManager(stock).get_configuration(configuration)
    assert method.trainer_class().planned_arch_kwargs(manager) == expected


each_planner = pytest.mark.parametrize("name", PLANNERS)


@each_planner
@pytest.mark.parametrize(
    ("arguments", "shares"),
    [
        ({}, True),
        ({"preprocessor_name": "AnotherPreprocessor"}, False),
        ({"suppress_transpose": True}, False),
        ({"overwrite_target_spacing": (2.0, 1.5, 1.5)}, False),
        ({"gpu_memory_target_in_gb": 24}, True),
    ],
)
def test_data_are_shared_only_where_they_are_preprocessed_the_same(name, arguments, shares, workspace):
    made = planner(name, workspace, plans_name="Mine", **arguments)
    for configuration in ("2d", "3d_fullres"):
        expected = f"{'nnUNetPlans' if shares else 'Mine'}_{configuration}"
        assert made.generate_data_identifier(configuration) == expected
    assert made.generate_data_identifier("3d_lowres") == "Mine_3d_lowres"


def test_the_planner_says_what_is_there_and_what_is_left(workspace, capsys):
    plans = planner("E2ENetPlanner", workspace)
    plans.plan_experiment()
    said = capsys.readouterr().out
    assert "3d_fullres: preprocessed data are not there yet (nnUNetPlans_3d_fullres, which nnU-Net's own" in said
    assert "nnUNetv2_preprocess -d 7 -plans_name E2ENetPlans -c 3d_fullres" in said
    data = workspace.preprocessed / workspace.dataset / "nnUNetPlans_3d_fullres"
    data.mkdir()
    plans.plan_experiment()
    assert "3d_fullres: preprocessed data are not there yet" in capsys.readouterr().out, "an empty folder"
    (data / "case_000.pkl").touch()
    plans.plan_experiment()
    said = capsys.readouterr().out
    assert "3d_fullres: preprocessed data are there (nnUNetPlans_3d_fullres" in said
    assert "2d: preprocessed data are not there yet" in said


@pytest.mark.parametrize("name", ["E2ENetPlanner", "MedTuningPlanner"])  # this is the base class's
def test_planning_beside_nnunets_leaves_all_that_is_there(name, workspace):
    """The recipe for those who have nnUNetPlans and trained models: no file is deleted, changed or made twice."""
    ExperimentPlanner(workspace.number).plan_experiment()
    data = workspace.preprocessed / workspace.dataset / "nnUNetPlans_3d_fullres"
    model = workspace.results / workspace.dataset / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    for folder, file in ((data, "case_000.pkl"), (data, "case_000.b2nd"), (model, "checkpoint_final.pth")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("days of work")
    files = {path: path.read_bytes() for path in workspace.root.rglob("*") if path.is_file()}
    plans = planner(name, workspace).plan_experiment()
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == data.name
    assert {path: path.read_bytes() for path in files} == files
    new = {path.name for path in workspace.root.rglob("*") if path.is_file()} - {path.name for path in files}
    assert new == {f"{plans['plans_name']}.json"}


def test_images_that_are_too_small_end_planning_with_a_sentence(workspace):
    fingerprint(workspace, [6, 8, 8])
    command = [sys.executable, "-c", f"""
from nnunet_ext.plans.e2enet import E2ENetPlanner
E2ENetPlanner({workspace.number}).plan_experiment()
"""]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "nnunet_ext: E2ENet needs at least 3 levels" in result.stderr
