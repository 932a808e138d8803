"""What the command refuses, what it leaves behind when something fails, and how it goes on."""

import errno
import json
import os
import shutil

import pytest
import torch
from prediction.models import dataset_json, plans_of, write_images, write_model
from prediction.test_predict import assert_same, label_maps, run

from nnunet_ext.cli.main import main
from nnunet_ext.prediction import export
from nnunet_ext.prediction.records import FOLDER


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of two folds, three images, and their predictions with fold 0."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "model", plans_of(), dataset_json(), folds=(0, 1))
    write_images(folder / "images", [(8, 20, 16)] * 3)
    assert run(folder / "model", folder / "images", folder / "predicted", "-f", 0) == 0
    return folder


@pytest.fixture
def work(place, tmp_path):
    """A copy, with times of changes kept as they are."""
    shutil.copytree(place, tmp_path / "work")
    return tmp_path / "work"


def changed_cases(work, *words):
    """The cases that the command predicts again, by the times of their files."""
    before = {path.name: path.stat().st_mtime_ns for path in (work / "predicted").glob("*.nii.gz")}
    code = run(work / "model", work / "images", work / "predicted", "--continue_prediction", *words)
    assert code == 0
    after = {path.name: path.stat().st_mtime_ns for path in (work / "predicted").glob("*.nii.gz")}
    return {name.removesuffix(".nii.gz") for name, time in after.items() if before.get(name) != time}


def test_complete_cases_are_left_alone(work):
    assert changed_cases(work, "-f", 0) == set()


def cut(path, missing=10):
    path.write_bytes(path.read_bytes()[:-missing])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "predicted" / "case_1.nii.gz"),
        lambda folder: (folder / "predicted" / "case_1.nii.gz").unlink(),
        lambda folder: shutil.copy(folder / "predicted" / "case_0.nii.gz", folder / "predicted" / "case_1.nii.gz"),
        lambda folder: (folder / "predicted" / FOLDER / "case_1.json").unlink(),
        lambda folder: cut(folder / "predicted" / FOLDER / "case_1.json"),
        lambda folder: (folder / "predicted" / FOLDER / "case_1.json").write_text("[]"),
        lambda folder: shutil.copy(folder / "images" / "case_0_0000.nii.gz", folder / "images" / "case_1_0000.nii.gz"),
    ],
    ids=["cut", "gone", "another's", "no record", "half a record", "no dict", "another image"],
)
def test_a_damaged_or_stale_case_is_predicted_again(work, damage):
    damage(work)
    assert changed_cases(work, "-f", 0) == {"case_1"}
    assert changed_cases(work, "-f", 0) == set()


SETTINGS = ("-f 1", "-f 0 1", "-f 0 -step_size 0.7", "-f 0 --disable_tta", "-f 0 --npz", "-f 0 --precision fast")


@pytest.mark.parametrize("words", SETTINGS)
def test_other_settings_predict_anew(work, words):
    assert changed_cases(work, *words.split()) == {"case_0", "case_1", "case_2"}
    assert changed_cases(work, *words.split()) == set()


def test_a_model_that_was_trained_on_is_another_one(work):
    os.utime(work / "model" / "fold_0" / "checkpoint_final.pth")
    assert changed_cases(work, "-f", 0) == {"case_0", "case_1", "case_2"}


def test_without_the_flag_everything_is_predicted(work):
    before = {path: path.stat().st_mtime_ns for path in (work / "predicted").glob("*.nii.gz")}
    assert run(work / "model", work / "images", work / "predicted", "-f", 0) == 0
    assert all(path.stat().st_mtime_ns != time for path, time in before.items())


def test_a_case_that_fails_is_named_and_the_others_go_on(work, capsys):
    cut(work / "images" / "case_1_0000.nii.gz", 100)
    (work / "images" / "case_0_0000.nii.gz").write_bytes(b"no image")
    output = work / "new"
    assert run(work / "model", work / "images", output, "-f", 0) == 1
    out = capsys.readouterr().out
    assert "case_0 failed" in out and "2 of 3 cases failed: case_0, case_1." in out
    assert list(label_maps(output)) == ["case_2.nii.gz"]
    assert sorted(os.listdir(output / FOLDER)) == ["case_2.json"]
    for name in ("case_0", "case_1"):
        shutil.copy(work / "images" / "case_2_0000.nii.gz", work / "images" / f"{name}_0000.nii.gz")
    assert run(work / "model", work / "images", output, "-f", 0, "--continue_prediction") == 0
    assert len(label_maps(output)) == 3


@pytest.mark.parametrize("last", [False, True])
def test_a_full_disk(work, monkeypatch, capsys, last):
    """The second case cannot be written: nothing of it stays, the old file does, the third goes on."""
    flush, calls = export._flush, []

    def full(path):
        calls.append(path)
        if len(calls) == 2 + last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    monkeypatch.setattr(export, "_flush", full)
    before = (work / "predicted" / f"case_{1 + last}.nii.gz").read_bytes()
    shutil.copy(work / "images" / "case_0_0000.nii.gz", work / "images" / f"case_{1 + last}_0000.nii.gz")
    assert run(work / "model", work / "images", work / "predicted", "-f", 0) == 1
    assert f"case_{1 + last} failed: OSError: [Errno {errno.ENOSPC}]" in capsys.readouterr().out
    assert (work / "predicted" / f"case_{1 + last}.nii.gz").read_bytes() == before
    assert sorted(os.listdir(work / "predicted" / FOLDER)) == ["case_0.json", "case_1.json", "case_2.json"]
    monkeypatch.undo()
    assert changed_cases(work, "-f", 0) == {f"case_{1 + last}"}


def test_a_network_that_fails_for_one_case(work, monkeypatch, capsys):
    from nnunet_ext.prediction.pipeline import Predictor

    rows, calls = Predictor.rows, []

    def failing(self, *args):
        calls.append(args)
        for part in rows(self, *args):
            yield part
            if len(calls) == 2:
                raise RuntimeError("out of memory")

    monkeypatch.setattr(Predictor, "rows", failing)
    assert run(work / "model", work / "images", work / "new", "-f", 0) == 1
    assert "case_1 failed: RuntimeError: out of memory" in capsys.readouterr().out
    assert list(label_maps(work / "new")) == ["case_0.nii.gz", "case_2.nii.gz"]
    assert sorted(os.listdir(work / "new" / FOLDER)) == ["case_0.json", "case_2.json"]


def test_what_a_killed_process_left_is_removed_and_a_living_ones_stays(work):
    import socket

    host, gone = socket.gethostname(), 2**22 + 1  # above the largest number of a process
    for number in (gone, os.getpid()):
        (work / "predicted" / FOLDER / f"{host}.{number}.abc").mkdir()
    assert changed_cases(work, "-f", 0) == set()
    left = {path.name for path in (work / "predicted" / FOLDER).iterdir() if path.is_dir()}
    assert left == {f"{host}.{os.getpid()}.abc"}


def test_a_read_only_model_folder(work):
    for path in (work / "model").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (work / "model").chmod(0o555)
    before = sorted(path.name for path in (work / "model").rglob("*"))
    assert run(work / "model", work / "images", work / "new", "-f", 0) == 0
    assert sorted(path.name for path in (work / "model").rglob("*")) == before
    assert_same(work / "new", work / "predicted")
    for path in [work / "model", *(work / "model").rglob("*")]:
        path.chmod(0o755)


def test_times_and_memory_of_the_stages(work, capsys):
    assert run(work / "model", work / "images", work / "new", "-f", 0, "--timing", work / "t.json") == 0
    report = json.loads((work / "t.json").read_text())
    stages = ["read", "crop", "normalise", "resample", "network", "labels", "write"]
    assert sorted(report["cases"]) == ["case_0", "case_1", "case_2"]
    for seconds in report["cases"].values():
        assert set(seconds) == set(stages) and all(value >= 0 for value in seconds.values())
    assert sum(seconds["network"] for seconds in report["cases"].values()) <= report["seconds"]
    table = capsys.readouterr().out
    assert all(f"\n{stage} " in table for stage in stages) and "stages overlap" in table


def test_a_strangers_code_is_not_run(work, capsys):
    class Stranger:
        def __reduce__(self):
            return (os.mkdir, (str(work / "was here"),))

    path = work / "model" / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "more": Stranger()}, path)
    assert run(work / "model", work / "images", work / "new", "-f", 0) == 1
    assert "holds more than weights and numbers" in capsys.readouterr().err
    assert not (work / "was here").exists() and not (work / "new").exists()


def other_trainer(work):
    path = work / "model" / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=True), "trainer_name": "nnUNetTrainerNowhere"}, path)


def other_network(work):
    plans = json.loads((work / "model" / "plans.json").read_text())
    arch_kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arch_kwargs["features_per_stage"] = [5, 5, 5]
    (work / "model" / "plans.json").write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (None, ("-f", 7), "no fold_7/checkpoint_final.pth. It has -f 0 1."),
        (None, ("-f", "x"), "-f takes numbers of folds, or all; found x."),
        (None, (), "no fold_2/checkpoint_final.pth"),
        (None, ("-f", 0, "-chk", "best.pth"), "no fold_0/best.pth. Choose"),
        (None, ("-f", 0, "-part_id", 1), "-part_id must be from 0"),
        (None, ("-f", 0, "-step_size", 0), "-step_size must be above 0"),
        (None, ("-f", 0, "-d", 7, "-c", "2d"), "either as a folder with -m, or with -d"),
        (None, ("-f", 0, "-prev_stage_predictions", "nowhere"), "There is no folder nowhere"),
        (None, ("-f", 0, "--timing", "nowhere/t.json"), "There is no folder for nowhere/t.json"),
        (None, ("-f", 0, "-device", "cuda"), "torch finds no CUDA GPU"),
        (None, ("-f", 0, "--device", "mps"), "torch finds no Apple GPU"),
        (lambda work: (work / "model" / "plans.json").unlink(), ("-f", 0), "it has no plans.json"),
        (lambda work: cut(work / "model" / "fold_0" / "checkpoint_final.pth"), ("-f", 0), "cannot be read"),
        (lambda work: shutil.rmtree(work / "images"), ("-f", 0), "There is no folder"),
        (
            lambda work: [p.unlink() for p in (work / "images").iterdir()],
            ("-f", 0),
            "no image that ends in _0000.nii.gz",
        ),
        (other_trainer, ("-f", 0), "trained by nnUNetTrainerNowhere, which nnU-Net does not find"),
        (other_network, ("-f", 0), "does not fit the network"),
        (lambda work: (work / "new").write_text(""), ("-f", 0), "is not a folder"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(work, monkeypatch, capsys, change, words, message):
    monkeypatch.chdir(work)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    if change is not None:
        change(work)
    assert run(work / "model", work / "images", work / "new", *words) == 1
    assert message in capsys.readouterr().err
    assert not (work / "new").is_dir()


def test_channels_must_be_complete(work, tmp_path, capsys):
    plans = plans_of(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[False] * 2)
    model = write_model(tmp_path / "two", plans, dataset_json(channels=2))
    assert run(model, work / "images", work / "new", "-f", 0) == 1
    assert "has 1 of 2 channels of the case case_0: expected case_0_0000.nii.gz to" in capsys.readouterr().err


def test_a_cascade_needs_the_stage_before(work, tmp_path, capsys):
    plans = plans_of()
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    model = write_model(tmp_path / "cascade", plans, dataset_json(), configuration="3d_cascade_fullres")
    assert run(model, work / "images", work / "new", "-f", 0) == 1
    assert "continues from predictions of 3d_lowres" in capsys.readouterr().err
    (work / "predicted" / "case_1.nii.gz").unlink()
    assert run(model, work / "images", work / "new", "-f", 0, "-prev_stage_predictions", work / "predicted") == 1
    assert "case_1.nii.gz, the prediction of 3d_lowres for the case case_1" in capsys.readouterr().err


def test_the_model_of_a_data_set(work, monkeypatch, capsys):
    words = ["predict", "-i", str(work / "images"), "-o", str(work / "new"), "-device", "cpu", "-f", "0"]
    monkeypatch.delenv("nnUNet_results", raising=False)
    assert main([*words, "-d", "7", "-c", "3d_fullres"]) == 1
    assert "nnUNet_results is not set" in capsys.readouterr().err
    assert main([*words, "-d", "7"]) == 1
    assert "-m, or with -d and -c" in capsys.readouterr().err
    results = work / "results" / "Dataset007_Tiny"
    shutil.copytree(work / "model", results / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    monkeypatch.setenv("nnUNet_results", str(work / "results"))
    monkeypatch.setattr("nnunetv2.utilities.file_path_utilities.nnUNet_results", str(work / "results"))
    assert main([*words, "-d", "999", "-c", "3d_fullres"]) == 1
    assert "There is no data set 999" in capsys.readouterr().err
    assert main([*words, "-d", "Dataset007_Tiny", "-c", "3d_fullres", "--disable_progress_bar"]) == 0
    assert_same(work / "new", work / "predicted")


def test_the_help_names_nnunets_arguments_and_ours(capsys):
    with pytest.raises(SystemExit) as end:
        main(["predict", "-h"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("-num_parts", "-prev_stage_predictions", "-m MODEL_FOLDER", "--timing FILE"))
