"""The demo's parts: the folder it works in, the data it reads, the commands it runs, and the whole of it (slow)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from contract.on_request import thorough
from end_to_end.stock import stock_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.cli.main import main
from nnunet_ext.demo import stages as stages_module
from nnunet_ext.demo.all_methods import CAUTION, DemoOfAll
from nnunet_ext.demo.raw_dataset import (
    as_predicted,
    check_raw_dataset,
    find_test_cases,
    labelled_test_cases,
    organs_of,
    training_files,
)
from nnunet_ext.demo.run import MARKER, OUTPUTS, plan_command, prepare_work_dir
from nnunet_ext.demo.schedule import demo_settings, short_stock, smaller_patch, stock_trainer
from nnunet_ext.demo.stages import StageFailed, Stages, child_environment, pseudo_dice, stock_command
from nnunet_ext.demo.summary import cost_text, json_scores, mean_dice, models_table, read_scores, scores_table
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS
from nnunet_ext.planning.derive import derive_plans, parse_settings

SHOWN = [method for method in METHODS.values() if method.demo_path]
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]

# the folder


def test_a_new_folder_is_made(tmp_path):
    work = prepare_work_dir(tmp_path / "a" / "b")
    assert work.is_absolute() and (work / MARKER).is_file()
    assert (work / "nnUNet_raw").is_dir()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "nnUNet_results").mkdir()
    (tmp_path / "nnUNet_results" / "model.pth").write_text("weeks of work")
    with pytest.raises(ConfigurationError, match="was not made by the demo"):
        prepare_work_dir(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model.pth", "nnUNet_results"]


def test_a_second_run_removes_its_own_outputs_only(tmp_path):
    work = prepare_work_dir(tmp_path / "work")
    for name in OUTPUTS:
        path = work / name
        if path.suffix:
            path.write_text("old")
        else:
            path.mkdir(exist_ok=True)
            (path / "old").write_text("old")
    (work / "notes.txt").write_text("mine")
    prepare_work_dir(work)
    left = sorted(str(path.relative_to(work)) for path in work.rglob("*"))
    assert left == sorted([MARKER, "nnUNet_preprocessed", "nnUNet_raw", "nnUNet_results", "notes.txt"])


def test_a_linked_data_set_is_not_deleted(tmp_path):
    source = tmp_path / "Dataset901_Mine"
    source.mkdir()
    (source / "image.nii.gz").write_text("precious")
    work = prepare_work_dir(tmp_path / "work")
    (work / "nnUNet_raw" / source.name).symlink_to(source, target_is_directory=True)
    prepare_work_dir(work)
    assert not (work / "nnUNet_raw" / source.name).exists()
    assert (source / "image.nii.gz").read_text() == "precious"


def test_a_data_set_inside_the_folder_is_refused(tmp_path):
    work = prepare_work_dir(tmp_path / "work")
    inside = work / "nnUNet_raw" / "Dataset998_Phantoms"
    inside.mkdir()
    with pytest.raises(ConfigurationError, match="Give another --work-dir"):
        prepare_work_dir(work, inside)
    assert inside.is_dir()


# raw data sets


def raw_dataset(folder, training=5, tests=("t1", "t2"), test_labels=("t1", "t2"), **dataset_json):
    dataset_json = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": training,
        "file_ending": ".nii.gz",
        **dataset_json,
    }
    names = [f"c{k}" for k in range(training)]
    for part, images, labels in (("Tr", names, names), ("Ts", tests, test_labels)):
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True)
        for name in images:
            for channel in range(2):
                (folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz").write_text(f"{name} {channel}")
        for name in labels:
            (folder / f"labels{part}" / f"{name}.nii.gz").write_text(f"labels of {name}")
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder, dataset_json


def test_raw_data_sets_are_checked(tmp_path):
    folder, _ = raw_dataset(tmp_path / "Dataset007_Liver")
    check_raw_dataset(folder)
    with pytest.raises(ConfigurationError, match="called DatasetXXX_Name, found 'Liver'"):
        check_raw_dataset(raw_dataset(tmp_path / "Liver")[0])
    with pytest.raises(ConfigurationError, match="has 4 training cases"):
        check_raw_dataset(raw_dataset(tmp_path / "Dataset008_Few", training=4)[0])
    (folder / "dataset.json").write_text("{")
    with pytest.raises(ConfigurationError, match="dataset.json cannot be used"):
        check_raw_dataset(folder)
    (folder / "dataset.json").unlink()
    with pytest.raises(ConfigurationError, match="it has no dataset.json"):
        check_raw_dataset(folder)


def test_labelled_test_cases_are_used_where_they_are(tmp_path):
    folder, _ = raw_dataset(tmp_path / "Dataset007_Liver")
    cases = find_test_cases(folder, tmp_path, tmp_path / "cases", fold=0)
    assert (cases.images, cases.labels) == (folder / "imagesTs", folder / "labelsTs")
    assert cases.names == ["t1", "t2"]
    assert not (tmp_path / "cases").exists()


@pytest.mark.parametrize("test_labels", [("t1",), ("t1", "t2", "t3")], ids=["label missing", "image missing"])
def test_only_complete_test_cases_are_scored(tmp_path, test_labels):
    tests = ("t1", "t2") if len(test_labels) == 1 else ("t1",)
    folder, _ = raw_dataset(tmp_path / "Dataset007_Liver", tests=tests, test_labels=test_labels)
    cases = find_test_cases(folder, tmp_path, tmp_path / "cases", fold=0)
    assert cases.names == ["t1"]
    assert sorted(path.name for path in cases.images.iterdir()) == ["t1_0000.nii.gz", "t1_0001.nii.gz"]
    assert (cases.images / "t1_0001.nii.gz").read_text() == "t1 1"
    assert (cases.labels / "t1.nii.gz").read_text() == "labels of t1"


def test_without_labelled_test_cases_the_folds_validation_cases_are_scored(tmp_path):
    folder, dataset_json = raw_dataset(tmp_path / "Dataset007_Liver", test_labels=())
    assert labelled_test_cases(folder, dataset_json) == {}
    splits = [{"train": ["c0", "c1", "c2"], "val": ["c4", "c3"]}, {"train": [], "val": ["c0"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    cases = find_test_cases(folder, tmp_path, tmp_path / "cases", fold=0)
    assert cases.names == ["c3", "c4"]
    assert "validation cases of fold 0" in cases.origin
    assert (cases.images / "c3_0000.nii.gz").read_text() == "c3 0"
    assert (cases.labels / "c4.nii.gz").read_text() == "labels of c4"


def test_files_may_be_named_in_dataset_json(tmp_path):
    named = {"x": {"images": ["imagesTr/c0_0000.nii.gz"], "label": "/elsewhere/x.nii.gz"}}
    folder, dataset_json = raw_dataset(tmp_path / "Dataset007_Liver", dataset=named)
    assert training_files(folder, dataset_json) == {
        "x": ([folder / "imagesTr" / "c0_0000.nii.gz"], Path("/elsewhere/x.nii.gz"))
    }


REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
    "regions_class_order": [1, 2, 3],
}


def test_organs_of_labels_and_regions():
    labels = {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}
    assert organs_of({"labels": labels}) == [("liver", 1, "1", (1,)), ("spleen", 2, "2", (2,))]
    assert organs_of(REGIONS) == [
        ("whole", 1, "(1, 2, 3)", (1, 2, 3)),
        ("core", 2, "(2, 3)", (2, 3)),
        ("enhancing", 3, "3", (3,)),
    ]
    assert [organ.key for organ in organs_of(REGIONS)] == [
        str(region) for region in LabelManager(REGIONS["labels"], REGIONS["regions_class_order"]).foreground_regions
    ]


def test_the_truth_of_regions_is_drawn_as_nnunet_writes_predictions():
    labels = {"labels": {"background": 0, "edema": [1, 2], "core": [2]}, "regions_class_order": [7, 8]}
    np.testing.assert_array_equal(as_predicted(np.array([0, 1, 2, 3]), organs_of(labels)), [0, 7, 8, 0])
    np.testing.assert_array_equal(as_predicted(np.array([0, 1, 2, 3, 4]), organs_of(REGIONS)), [0, 1, 2, 3, 0])


# the schedule


def planned(patch, strides=None):
    if strides is None:
        strides = ([1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 2])
    return {"patch_size": patch, "architecture": {"arch_kwargs": {"strides": list(strides)}}}


@pytest.mark.parametrize("patch", [[32, 64, 64], [28, 256, 256], [128, 128, 128], [40, 56, 40]])
def test_patches_shrink_to_the_limit_along_the_networks_strides(patch):
    smaller = smaller_patch(patch, planned(patch)["architecture"]["arch_kwargs"]["strides"], 24 * 32 * 32)
    assert smaller[0] * smaller[1] * smaller[2] <= 24 * 32 * 32
    for size, before, step in zip(smaller, patch, (4, 8, 8), strict=True):
        assert size == before or (size < before and size % step == 0 and size >= 2 * step)


def test_small_patches_stay():
    assert smaller_patch([20, 30, 30], [[1, 1, 1], [2, 2, 2]], 20 * 30 * 30) == [20, 30, 30]


def test_patches_end_at_two_steps_of_the_strides():
    assert smaller_patch([64, 64, 64], [[1, 1, 1], [2, 2, 2], [4, 4, 4]], 1) == [16, 16, 16]


def test_the_topology_moves_a_handful_of_times():
    for device in ("cpu", "cuda"):
        for epochs in (None, 1, 3):
            settings = demo_settings(METHODS["e2enet"], device, planned([32, 64, 64]), epochs=epochs)
            steps = settings["num_epochs"] * settings["num_iterations_per_epoch"]
            assert 5 <= steps // settings["update_every"] <= 25
            assert epochs is None or settings["num_epochs"] == epochs


def test_real_images_get_more_epochs_unless_told_and_a_wider_network():
    phantoms, real, told = (
        demo_settings(METHODS["e2enet"], "cpu", planned([32, 64, 64]), **kwargs)
        for kwargs in ({}, {"phantoms": False}, {"phantoms": False, "epochs": 3})
    )
    assert real["num_epochs"] > phantoms["num_epochs"]
    assert told["num_epochs"] == 3
    assert real["base_features"] > phantoms["base_features"]
    assert real.keys() == phantoms.keys()


def test_the_demo_of_all_mirrors_as_nnunets_trainers_do():
    alone, beside = (
        demo_settings(METHODS["e2enet"], "cpu", planned([32, 64, 64]), **kwargs) for kwargs in ({}, {"mirroring": True})
    )
    assert (alone["mirroring"], beside["mirroring"]) == (False, True)


def test_the_shown_plan_command_says_the_same_as_the_settings():
    settings = {"patch_size": [24, 32, 32], "initial_lr": 0.03, "sparsity": None, "channel_split": "balanced"}
    words = plan_command("998", METHODS["e2enet"], "P", settings).replace("'", "").split()
    assert parse_settings(words[k + 1] for k, word in enumerate(words) if word == "--set") == settings


def test_the_demo_knows_all_methods_that_predict():
    assert [method.name for method in SHOWN] == ["dints", "e2enet", "med_danet", "med_tuning"]
    assert SHOWN == [method for method in METHODS.values() if method.predicts]


def phantoms_plans(name="nnUNetPlans"):
    plans = stock_plans(name, STRIDES)
    plans["configurations"]["3d_fullres"]["patch_size"] = [32, 64, 64]
    return plans


LABELS = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}


def own_plans(method):
    """As the method's planner would write them, but for the patch."""
    settings = {"pretrained": False} if method.name == "med_tuning" else {}
    plans = derive_plans(phantoms_plans(), LABELS, method, name=method.plans_name, settings=settings)
    if settings:
        plans["configurations"]["3d_fullres"]["nnunet_ext"]["pretrained"] = True
    return plans


@pytest.mark.parametrize(("device", "phantoms", "epochs"), [("cpu", True, 1), ("cuda", False, None)])
@pytest.mark.parametrize("method", SHOWN[1:], ids=lambda method: method.name)  # DiNTS has a test of its own
def test_the_short_schedule_makes_plans_that_train_here(method, device, phantoms, epochs):
    """Valid plans, as `derive_plans` checks them, without a download."""
    plans = own_plans(method)
    planned = plans["configurations"]["3d_fullres"]
    settings = demo_settings(method, device, planned, phantoms=phantoms, epochs=epochs)
    short = derive_plans(plans, LABELS, method, name="Demo", settings=settings, configurations=["3d_fullres"])
    options = short["configurations"]["3d_fullres"]["nnunet_ext"]
    assert options["num_epochs"] * options["num_iterations_per_epoch"] < 5000
    assert not options.get("pretrained")


def test_nnunets_trainer_of_the_nearest_length_is_taken():
    assert stock_trainer(272) == ("nnUNetTrainer_1epoch", 1)
    assert stock_trainer(1500) == ("nnUNetTrainer_5epochs", 5)
    assert stock_trainer(34) == ("nnUNetTrainer_1epoch", 1)


def test_nnunets_network_is_narrow_on_a_cpu_and_as_planned_on_a_gpu():
    planned = phantoms_plans()["configurations"]["3d_fullres"]
    before = planned["architecture"]["arch_kwargs"]["features_per_stage"] = [32, 64, 128, 256, 320]
    short = short_stock(planned, "cpu")
    widths = short["architecture"]["arch_kwargs"]["features_per_stage"]
    assert widths == [8, 16, 32, 64, 80]
    assert short["patch_size"] == [32, 48, 48] and short["batch_size"] == 2
    gpu = short_stock(planned, "cuda")
    assert gpu["architecture"]["arch_kwargs"]["features_per_stage"] == before
    assert gpu["patch_size"] == [32, 64, 64]
    assert planned["architecture"]["arch_kwargs"]["features_per_stage"] == before


# all methods


COMPARED = {
    "folds": ["0"],
    "cases": {"a": {}, "b": {}},
    "models": [
        {
            "name": "one",
            "reached": {"mean over classes": {"dice": {"mean": 0.5}}, "liver": {"dice": {"mean": 0.9}}},
            "costs": {"parameters": 12345.0},
        },
        {"name": "two", "reached": {"mean": {"dice": {"mean": None}}}, "costs": {"parameters": None}},
    ],
}


def test_the_table_of_models_has_the_mean_over_classes_and_says_what_is_not_known():
    title, _, one, two = models_table(COMPARED, {"one": 61.2, "two": 5.0}).splitlines()
    assert title == "Mean Dice of the 2 validation cases of fold 0"
    assert one.split() == ["one", "0.500", "12,345", "61", "s"]
    assert two.split() == ["two", "nan", "?", "5", "s"]


def test_all_methods_are_trained_on_one_preprocessing_and_compared(tmp_path, monkeypatch, capsys):
    """With commands that only note what they would do, and write the files that the next ones read."""
    commands = []

    def run(stages, title, command, *, environment=None, epochs=None):
        commands.append(command)
        folder = tmp_path / "work" / "nnUNet_preprocessed" / "Dataset998_Phantoms"
        folder.mkdir(exist_ok=True)
        (folder / "dataset.json").write_text(json.dumps(LABELS))
        if command[0] == "nnUNetv2_plan_and_preprocess":
            (folder / "nnUNetPlans.json").write_text(json.dumps(phantoms_plans()))
        elif command[0] == "nnUNetv2_plan_experiment":
            method = next(method for method in shown if method.planner == command[-1])
            (folder / f"{method.plans_name}.json").write_text(json.dumps(own_plans(method)))
        elif command[0] == "nnunet_ext":
            names = [word.partition("=")[0] for word in command if "=" in word]
            models = [{**COMPARED["models"][0], "name": name} for name in names]
            (tmp_path / "work" / "compare.json").write_text(json.dumps({**COMPARED, "models": models}))
        with stages.stage(title):
            pass

    shown = SHOWN[1:3]
    monkeypatch.setattr("nnunet_ext.demo.all_methods.METHODS", {method.name: method for method in shown})
    monkeypatch.setattr(Stages, "run", run)
    monkeypatch.setattr("nnunet_ext.demo.phantoms.generate_dataset", lambda folder, training: folder.mkdir() or (
        folder / "dataset.json").write_text(json.dumps(LABELS)))  # fmt: skip
    monkeypatch.setattr("nnunet_ext.demo.run.training_files", lambda raw, dataset_json: [])
    demo = DemoOfAll("cpu", prepare_work_dir(tmp_path / "work"), None)
    demo.run(epochs=1)
    assert [command[0] for command in commands].count("nnUNetv2_plan_and_preprocess") == 1
    trained = {command[command.index("-tr") + 1]: command for command in commands if command[0] == "nnUNetv2_train"}
    assert trained.keys() == {"nnUNetTrainer_1epoch", *(method.trainer for method in shown)}
    for trainer, command in trained.items():
        plans = command[command.index("-p") + 1]
        folder = f"{trainer}__{plans}__3d_fullres"
        assert plans.endswith("_Demo") and command[-2:] == ["-device", "cpu"]
        written = tmp_path / "work" / "nnUNet_preprocessed" / "Dataset998_Phantoms" / f"{plans}.json"
        options = json.loads(written.read_text())["configurations"]["3d_fullres"].get("nnunet_ext")
        assert options is None or options["mirroring"], "nnU-Net's short trainers mirror"
        assert sum(word.endswith(folder) for word in commands[-1]) == 1  # compared
    note = commands[-1][commands[-1].index("--note") + 1]
    assert note == f"{CAUTION} nnU-Net's U-Net had 250 steps, the others 34 each."
    output = capsys.readouterr().out
    assert note in output and "compare.html" in output
    assert f"[{demo.stages.total}/{demo.stages.total}] Compare" in output


# scores


def test_scores_are_read_from_nnunets_summary(tmp_path):
    dataset_json = {"labels": {"background": 0, "liver": 1, "spleen": 2}, "file_ending": ".nii.gz"}
    summary = tmp_path / "summary.json"
    summary.write_text(
        """{"metric_per_case": [
        {"prediction_file": "/p/t1.nii.gz", "metrics": {"1": {"Dice": 0.5}, "2": {"Dice": NaN}}},
        {"prediction_file": "/p/t2.nii.gz", "metrics": {"1": {"Dice": 1.0}, "2": {"Dice": 0.25}}}]}"""
    )
    scores = read_scores(summary, dataset_json)
    assert scores["liver"] == {"t1": 0.5, "t2": 1.0}
    assert mean_dice(scores) == pytest.approx((0.75 + 0.25) / 2)
    assert json_scores(scores)["spleen"] == {"t1": None, "t2": 0.25}
    rows = [line.split() for line in scores_table(scores).splitlines()]
    assert rows[1:] == [
        ["liver", "0.750", "0.500", "1.000"],
        ["spleen", "0.250", "0.250", "0.250"],
        ["all", "0.500"],
    ]


def test_costs_name_their_convention():
    complexity = {
        "parameters": {"total": 1234567, "active": 345678},
        "patch_size": [8, 16, 16],
        "true": {"gflops": 1.234},
        "paper": {"gflops": 2.5},
    }
    text = cost_text(complexity)
    assert "1,234,567, of which 345,678 are active" in text
    assert "8x16x16: 1.23 GFLOPs (true convention), 2.50 GFLOPs (paper convention)" in text


# stages


def test_the_pseudo_dice_of_a_training_is_averaged():
    assert pseudo_dice("2026: Pseudo dice [np.float32(0.5), np.float32(0.25)]") == 0.375
    assert pseudo_dice("Pseudo dice [0.5, nan, 1e-05]") == 0.5
    assert pseudo_dice("Epoch time: 3.5 s") is None
    assert pseudo_dice("Pseudo dice [nan]") is None


@pytest.fixture
def stages(tmp_path, monkeypatch):
    """Stages whose commands are Python code: `["-c", code]`."""
    monkeypatch.setattr(stages_module, "stock_command", lambda name: [sys.executable])
    return Stages({"nnUNet_raw": str(tmp_path / "raw")}, tmp_path, total=2)


def test_a_stage_is_shown_logged_and_timed(stages, tmp_path, capsys):
    stages.run("Count", ["count", "-c", "print('one'); print('two')"], environment={"EXTRA": "a b"})
    assert (tmp_path / "1_count.log").read_text() == "one\ntwo\n"
    output = capsys.readouterr().out
    assert "[1/2] Count" in output and "EXTRA='a b'" in output
    script = (tmp_path / "commands.sh").read_text().splitlines()
    assert script[0] == f"export nnUNet_raw={tmp_path / 'raw'}"
    assert script[1].startswith("EXTRA='a b' ")
    assert 0 < stages.seconds["Count"] < 60


def test_commands_get_the_demos_environment_only(stages, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", "/home/me/real")
    monkeypatch.setenv("nnUNet_raw", "/home/me/raw")
    monkeypatch.setenv("OTHER", "kept")
    code = "import os; print({k: v for k, v in os.environ.items() if 'nnUNet' in k or k == 'OTHER'})"
    stages.run("Show", ["show", "-c", code])
    assert eval((tmp_path / "1_show.log").read_text()) == {"nnUNet_raw": str(tmp_path / "raw"), "OTHER": "kept"}
    assert os.environ["nnUNet_results"] == "/home/me/real"
    assert "nnUNet_results" not in child_environment({})


def test_a_failing_stage_shows_the_end_of_its_log(stages):
    code = "import sys; [print('line', k) for k in range(100)]; print('the reason', file=sys.stderr); sys.exit(3)"
    with pytest.raises(StageFailed) as error:
        stages.run("Fail", ["fail", "-c", code])
    assert "exit code 3" in str(error.value)
    assert "the reason" in str(error.value) and "line 99" in str(error.value)
    assert "line 50" not in str(error.value)


def test_training_moves_the_bar_by_epochs(stages, capsys):
    code = "[print(f'Epoch {k}\\nPseudo dice [np.float32(0.{k})]\\nEpoch time: 1 s') for k in (1, 2, 3)]"
    stages.run("Train", ["train", "-c", code], epochs=3)
    assert "3/3" in capsys.readouterr().err


def test_an_interrupt_ends_the_command(stages, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    def interrupt(self, line):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages_module._Progress, "show", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stages.run("Sleep", ["sleep", "-c", "import time; print('up', flush=True); time.sleep(60)"])
    assert started[0].poll() is not None


def test_a_failed_stage_ends_the_demo_with_1(tmp_path, monkeypatch, capsys):
    def fail(self, epochs):
        raise StageFailed("nnUNetv2_train failed with exit code 3.")

    monkeypatch.setattr("nnunet_ext.demo.run.Demo.run", fail)
    assert main(["demo", "--device", "cpu", "--work-dir", str(tmp_path / "work")]) == 1
    assert "nnUNetv2_train failed" in capsys.readouterr().err


def test_stock_commands_run_beside_the_running_python():
    command = stock_command("nnUNetv2_train")
    assert Path(command[0]).parent == Path(sys.executable).parent
    assert stock_command("no_such_script") == [sys.executable, "-m", "nnunet_ext", "no_such_script"]


def test_without_the_start_up_file_commands_go_through_our_module(monkeypatch):
    monkeypatch.setattr("nnunet_ext.discovery.commands.startup.installed", lambda: False)
    assert stock_command("nnUNetv2_train") == [sys.executable, "-m", "nnunet_ext", "nnUNetv2_train"]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--dataset", "nowhere/Dataset001_X"], "it has no dataset.json"),
        (["--epochs", "0"], "--epochs must be at least 1"),
    ],
)
def test_bad_arguments_touch_nothing(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--device", "cpu", *argv]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["e2enet", *(pytest.param(m.name, marks=thorough) for m in SHOWN if m.name != "e2enet")]
)
def test_the_demo_learns_the_phantoms(tmp_path, method):
    environment = {**os.environ, "nnUNet_results": str(tmp_path / "untouched")}
    words = ["demo", "--method", method, "--device", "cpu", "--work-dir", str(tmp_path / "work")]
    done = subprocess.run(
        [*stock_command("nnunet_ext"), *words],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "work" / "demo.json").read_text())
    assert result["mean_dice"] >= 0.7
    assert re.search(r"Dice of 2 test cases", done.stdout)
    assert (tmp_path / "work" / "demo.png").stat().st_size > 50_000
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


@pytest.mark.slow
@thorough
def test_all_methods_end_on_one_page(tmp_path):
    words = ["demo", "--all", "--epochs", "1", "--device", "cpu", "--work-dir", str(tmp_path / "work")]
    done = subprocess.run([*stock_command("nnunet_ext"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    compared = json.loads((tmp_path / "work" / "compare.json").read_text())
    assert [m["name"] for m in compared["models"]] == ["nnU-Net", *(m.title for m in SHOWN)]
    assert compared["baseline"] == "nnU-Net" and len(compared["cases"]) == 4
    assert (tmp_path / "work" / "compare.html").stat().st_size > 50_000
