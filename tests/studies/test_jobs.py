"""The jobs of a study: what is done is not done again, trainings go on from where they stand, nothing runs twice."""

import json
import math
import os
import re
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from end_to_end.stock import stock_plans
from report.folders import log_text

from nnunet_ext.cli import run as cli_run
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS
from nnunet_ext.studies import steps
from nnunet_ext.studies.launch import snakemake_words
from nnunet_ext.studies.layout import Layout
from nnunet_ext.studies.locks import hold, is_held
from nnunet_ext.studies.resources import training_resources
from nnunet_ext.studies.status import status_table, training_status
from nnunet_ext.studies.study import read_study

DATASET = "Dataset007_Tiny"
STUDY = """
dataset: 7
folds: [0, 1]
device: cpu
schedule: {epochs: 5}
baseline: unet
methods:
  - {name: unet, trainer: nnUNetTrainer}
  - {name: sparse.9-a, preset: e2enet/s90}
test: {images: imagesTs, labels: labelsTs, parts: 2}
"""


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """A study of two entries and two folds, of which nothing was done."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    raw = tmp_path / "raw" / DATASET
    (raw / "labelsTr").mkdir(parents=True)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description))
    for case in range(5):
        (raw / "labelsTr" / f"case_{case}.nii.gz").touch()
    path = tmp_path / "study.yaml"
    path.write_text(textwrap.dedent(STUDY))
    return Layout(read_study(path), tmp_path / "work", "cpu")


@pytest.fixture
def unet(layout):
    return layout.study.entry("unet")


def make(path, content=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def plan(layout, *names):
    for name in names:
        make(layout.plans_file(name), stock_plans(name, [[1, 1, 1], [1, 2, 2], [2, 2, 2]]))


# commands


@pytest.mark.parametrize(
    ("files", "flag"),
    [
        ([], None),
        (["checkpoint_best.pth"], "--c"),
        (["checkpoint_latest.pth", "checkpoint_best.pth"], "--c"),
        (["checkpoint_latest.pth", "checkpoint_final.pth"], "--val"),
    ],
)
def test_a_training_goes_on_from_where_it_stands(files, flag, layout, unet):
    for name in files:
        make(layout.fold(unet, 1) / name)
    words = ["nnUNetv2_train", "7", "3d_fullres", "1", "-tr", "nnUNetTrainer_5epochs", "-p", "nnUNetPlans"]
    words += ["-device", "cpu", "--npz"]
    assert layout.train_words(unet, 1) == [*words, *([flag] if flag else [])]


def test_derived_plans_are_written_by_our_command(layout):
    words = layout.derive_words(layout.study.entry("sparse.9-a"))
    assert words == [
        *("nnunet_ext", "plan", DATASET, "--from", "E2ENetPlans", "--name", "E2ENetPlans_sparse.9-a"),
        *("--configuration", "3d_fullres", "--method", "e2enet", "--preset", "s90", "--set", "num_epochs=5"),
    ]


def test_the_page_says_what_the_study_lacks(layout, unet):
    with pytest.raises(ConfigurationError, match="No training has come to its validation"):
        layout.page_words()
    make(layout.summary(unet, 0))
    words = layout.page_words()
    assert words[:2] == ["nnunet_ext", "report"] and str(layout.model(unet)) in words
    make(layout.summary(layout.study.entry("sparse.9-a"), 1))
    words = layout.page_words()
    assert words[1] == "compare" and words[words.index("--baseline") + 1] == "unet"
    notes = [after for word, after in zip(words, words[1:], strict=False) if word == "--note"]
    assert notes == [
        "The study is not complete: unet lacks fold 1.",
        "The study is not complete: sparse.9-a lacks fold 0.",
    ]


def test_the_page_takes_what_was_timed_and_scored(layout, unet):
    sparse = layout.study.entry("sparse.9-a")
    for path in (layout.summary(unet, 0), layout.summary(sparse, 0), layout.timing(sparse, 1), layout.scores("best")):
        make(path)
    best = {"result_on_crossval_pre_pp": 0.5, "result_on_crossval_post_pp": 0.625}
    make(layout.best, {"entries": ["unet", "sparse.9-a"], "remark": "", "best_model_or_ensemble": best})
    words = " ".join(layout.page_words())
    assert f"--timing sparse.9-a={layout.timing(sparse, 1)} --test best={layout.scores('best')}" in words
    assert "the ensemble of unet and sparse.9-a: Dice 0.5000, after its postprocessing 0.6250" in words


# data


def test_data_are_whole_when_every_case_and_reference_is_there(layout, unet):
    plan(layout, "nnUNetPlans")
    folder = steps.data_folder(layout, unet)
    assert folder == layout.preprocessed / "nnUNetPlans_3d_fullres" and not steps.is_preprocessed(layout, folder)
    for case in range(5):
        make(layout.preprocessed / "gt_segmentations" / f"case_{case}.nii.gz")
        make(folder / f"case_{case}.pkl")
    assert steps.is_preprocessed(layout, folder)
    (folder / "case_3.pkl").unlink()
    assert not steps.is_preprocessed(layout, folder)


def test_the_split_is_nnunets_own(layout):
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    layout.preprocessed.mkdir()
    steps._write_splits(layout)
    path = layout.preprocessed / "splits_final.json"
    expected = generate_crossval_split([f"case_{k}" for k in range(5)], seed=12345, n_splits=5)
    assert json.loads(path.read_text()) == [{k: [str(c) for c in v] for k, v in split.items()} for split in expected]
    path.write_text("[]")
    steps._write_splits(layout)
    assert path.read_text() == "[]"  # the user's own stays


# locks


def test_a_lock_is_held_by_one_until_it_is_closed(tmp_path):
    path = tmp_path / "a.lock"
    assert not is_held(path) and not path.exists()
    first = hold(path)
    assert is_held(path) and hold(path) is None
    first.close()
    assert not is_held(path)


def test_a_command_holds_the_lock_of_the_process_that_was_killed(tmp_path):
    path = tmp_path / "a.lock"
    lock = hold(path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()]) as child:
        lock.close()
        assert is_held(path)
        child.communicate(b"\n")
    assert not is_held(path)


def test_every_training_has_a_gpu_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(steps.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    first, one = steps._free_gpu(2)
    second, other = steps._free_gpu(2)
    assert [one, other] == ["3", "5"]
    first.close()
    assert steps._free_gpu(2)[1] == "3"
    second.close()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux tells which files a process has open")
def test_a_job_is_told_its_gpu_and_holds_it(layout, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(steps.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(steps, "stock_command", lambda name: [sys.executable, "-c"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    code = (
        "import os; from pathlib import Path; "
        "open_files = [path.resolve().name for path in Path('/proc/self/fd').iterdir()]; "
        "print(os.environ.get('CUDA_VISIBLE_DEVICES'), [name for name in open_files if name.endswith('.lock')])"
    )
    steps.run_on_gpu(replace(layout, device="cuda"), 1, ["python", code])
    steps.run_on_gpu(replace(layout, device="cuda"), 0, ["python", code])
    steps.run_on_gpu(layout, 1, ["python", code])
    lines = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("$")]
    assert lines == ["0 ['gpu_0.lock']", "None []", "None []"]


def test_a_fold_that_another_process_trains_is_waited_for_and_not_trained_again(layout, unet, monkeypatch):
    ran = []
    monkeypatch.setattr(steps, "run", lambda words, **how: ran.append(words[0]))
    make(layout.summary(unet, 0))
    layout.lock(unet, 0).parent.mkdir(parents=True, exist_ok=True)
    code = f"import fcntl, time; f = open({str(layout.lock(unet, 0))!r}, 'w'); fcntl.flock(f, 2); "
    code += "print(1, flush=True); time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        start = time.monotonic()
        steps.train(layout, 0, "unet", "0")
        assert time.monotonic() - start > 0.5 and ran == []
    steps.train(layout, 0, "unet", "1")
    assert ran == ["nnUNetv2_train"]


def test_a_command_that_fails_gives_its_code(layout, capfd):
    with pytest.raises(steps.StepFailed) as error:
        steps.run(["nnunet_ext", "plan", "8", "--method", "e2enet", "--name", "x"])
    assert str(error.value) == "1" and "Data set '8' is none of" in capfd.readouterr().err


# status


def training(layout, entry, fold, *, epochs, age=10_000, checkpoint=None):
    folder = layout.fold(entry, fold)
    log = folder / "training_log_2026_9_3_10_00_00.txt"
    make(log, log_text(epochs))
    os.utime(log, (time.time() - age,) * 2)
    make(folder / "debug.json", {"num_epochs": "5"})
    if checkpoint:
        make(folder / checkpoint)
    return folder


def test_states_of_a_training(layout, unet):
    def state():
        return training_status(layout, unet, 0).state

    assert state() == "not started"
    training(layout, unet, 0, epochs=2)
    assert state() == "stopped"
    lock = hold(layout.lock(unet, 0))
    assert state() == "running"
    make(layout.fold(unet, 0) / "checkpoint_final.pth")
    assert state() == "validating"
    lock.close()
    assert state() == "stopped"
    make(layout.summary(unet, 0), {"foreground_mean": {"Dice": 0.75}})
    found = training_status(layout, unet, 0)
    assert (found.state, found.dice, found.seconds_left) == ("finished", 0.75, 0.0)


def test_a_training_on_another_machine_runs_while_its_log_is_young(layout, unet):
    training(layout, unet, 0, epochs=2, age=30)
    hold(layout.lock(unet, 0)).close()
    assert training_status(layout, unet, 0).state == "stopped"
    make(layout.elsewhere)
    assert training_status(layout, unet, 0).state == "running"
    training(layout, unet, 0, epochs=2, age=1000)
    assert training_status(layout, unet, 0).state == "stopped"


def test_epochs_and_time_left(layout, unet):
    training(layout, unet, 0, epochs=2)  # each of 2.5 s
    found = training_status(layout, unet, 0)
    assert (found.epochs, found.planned, found.seconds_left) == (2, 5, 3 * 2.5)
    found = training_status(layout, unet, 1)
    assert (found.epochs, found.planned) == (0, None) and math.isnan(found.seconds_left)
    plan(layout, "nnUNetPlans")
    assert training_status(layout, unet, 1).planned == 5  # nnUNetTrainer_5epochs


def test_the_status_is_a_table_that_needs_no_snakemake_and_changes_nothing(layout, unet):
    training(layout, unet, 0, epochs=2)
    before = sorted(layout.work.parent.rglob("*"))
    code = (
        "import sys\nsys.modules['snakemake'] = None\nfrom nnunet_ext.cli.main import main\n"
        f"code = main(['run', {str(layout.study.path)!r}, '--status'])\n"
        "assert code == 0 and not {'torch', 'nnunetv2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == status_table(layout).splitlines()
    assert re.search(r"^unet +0 +stopped +2 of 5 +7\.5 s +0\.3000$", done.stdout, re.M)
    assert "0 of 4 trainings are finished." in done.stdout
    assert sorted(layout.work.parent.rglob("*")) == before


# resources


def test_resources_follow_plans_and_schedule():
    def asked(patch=(64, 64, 64), batch=2, device="cuda", **schedule):
        schedule = {"epochs": 1000, "iterations": 250, "val_iterations": 50, **schedule}
        return training_resources({"patch_size": patch, "batch_size": batch}, 1, device, **schedule)

    small, large = asked(), asked((128, 128, 128), 4)
    assert small["mem_mb"] < large["mem_mb"] and small["runtime"] < large["runtime"]
    assert asked(epochs=100)["runtime"] < small["runtime"] < asked(device="cpu")["runtime"]


def test_a_schedule_that_nothing_says_is_the_methods_own(layout, unet):
    entry = replace(unet, trainer="MedTuningTrainer", method=METHODS["med_tuning"])
    assert layout.schedule(entry, {}) == {"epochs": 250, "iterations": 250, "val_iterations": 50}
    assert layout.schedule(entry, {"nnunet_ext": {"num_epochs": 7}})["epochs"] == 7


def test_the_study_replaces_estimates_and_unplanned_ones_are_asked_for_again(layout, unet):
    with pytest.raises(FileNotFoundError) as error:
        layout.training_resources(unet)
    assert error.value.filename == str(layout.plans_file("nnUNetPlans"))  # by which Snakemake knows it for an input
    plan(layout, "nnUNetPlans")
    asked = layout.training_resources(unet)
    layout.study.resources["runtime"] = 7
    assert layout.training_resources(unet) == {**asked, "runtime": 7}


# Snakemake


def test_where_jobs_run(layout, tmp_path):
    here = snakemake_words(layout, gpus=2, profile=None, dry_run=False, further=["--quiet"])
    assert here[-1] == "--quiet" and "training=2" in here and "--cores" in here and "--dry-run" not in here
    (tmp_path / "mine").mkdir()
    there = snakemake_words(layout, gpus=0, profile=str(tmp_path / "mine"), dry_run=True)
    assert there[there.index("--profile") + 1] == str(tmp_path / "mine") and there[-1] == "--dry-run"
    assert "--cores" not in there and not any(word.startswith("training=") for word in there)


def test_gpus_are_shared_out_on_this_machine_alone(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [cli_run._gpus("cuda", None), cli_run._gpus("cuda", "slurm"), cli_run._gpus("cpu", None)] == [2, 0, 0]


def test_words_for_snakemake_that_are_none():
    assert cli_run._words("--jobs 3 --quiet 'all'") == ["--jobs", "3", "--quiet", "all"]
    with pytest.raises(ConfigurationError, match="--snakemake takes words as a shell does"):
        cli_run._words("'")


def test_what_is_missing_is_made_and_what_is_done_is_not_done_again(layout, unet):
    """A page of a half study is there, made when one fold was; what the fold was trained on was tidied away."""
    pytest.importorskip("snakemake")
    plan(layout, "nnUNetPlans")
    sparse = layout.study.entry("sparse.9-a")
    make(layout.summary(unet, 0))
    parts = [layout.done("predict", entry.name, part) for entry in (unet, sparse) for part in (0, 1)]
    for path in (*parts, layout.done("best"), layout.best, *map(layout.scores, layout.scored_names), layout.page):
        make(path)
    done = subprocess.run(snakemake_words(layout, gpus=0, profile=None, dry_run=True), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = dict(re.findall(r"^([\w.-]+) +(\d+)$", done.stdout + done.stderr, re.M))
    assert counts == {
        "fingerprint": "1", "plan": "1", "derive": "1", "preprocess": "1", "train_unet": "1", "train_sparse.9-a": "2",
        "page": "1", "all": "1", "total": "9",
    }  # fmt: skip
