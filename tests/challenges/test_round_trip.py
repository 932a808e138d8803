"""From a miniature download through the stock nnU-Net commands to an archive that the independent judge accepts.

One challenge by default; nnUNet_ext_all_challenges=1 runs all of them.
"""

import numpy as np
import pytest
from challenges import downloads
from challenges.checker import judge, judge_msd
from challenges.commands import run
from contract.on_request import requested
from end_to_end.stock import DATASET_ID, Workspace, shrink

SHAPE = (32, 32, 20)
MODEL = ["-tr", "E2ENetTrainer", "-p", "TinyPlans"]
ARCH_KWARGS = {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "features_per_stage": [6, 6, 8], "sparsity": 0.6}
OPTIONS = {
    "num_epochs": 2,
    "num_iterations_per_epoch": 15,
    "num_val_iterations_per_epoch": 1,
    "initial_lr": 0.03,
    "update_every": 10,
}
ALL = requested("all_challenges", "NNUNET_EXT_ALL_CHALLENGES")
only_if_all = pytest.mark.skipif(not ALL, reason="takes minutes: nnUNet_ext_all_challenges=1 runs it")
# name, task, more for convert, sizes of the download, split that is submitted. Below them one task of the decathlon,
# which always runs.
CHALLENGES = [
    ("brats_gli", 2024, ("--regions",), {"train": 5, "year": 2024}, "val"),
    ("flare22", None, (), {"train": 5}, "val"),
    ("brats2020", None, ("--regions",), {"train": 5}, "val"),
    ("btcv", None, (), {"train": 5}, "test"),
    ("brats2019", None, (), {"train": 5}, "val"),
    ("brats2021", None, (), {"train": 5}, "val"),
    ("brats_gli", 2023, (), {"train": 5, "year": 2023}, "val"),
    ("brats_men", 2023, ("--regions",), {"train": 5, "year": 2023}, "val"),
    ("brats_met", 2025, ("--regions",), {"train": 5, "year": 2025}, "val"),
    ("brats_ped", 2024, (), {"train": 5, "year": 2024}, "val"),
    ("brats_ssa", 2026, ("--regions",), {"train": 5, "year": 2026}, "val"),
    ("flare23", None, (), {"train": 5}, "val"),
    ("kits19", None, ("--regions",), {"train": 5, "shape": SHAPE[::-1]}, "test"),
    ("kits23", None, ("--regions",), {"train": 5, "shape": SHAPE[::-1]}, "test"),
    ("lits17", None, ("--regions",), {"train": 5, "identity": (1,)}, "test"),
    ("amos22", 1, (), {"train": 5}, "val"),
    ("amos22", 2, (), {"train": 4}, "val"),
]
PARAMETERS = [pytest.param(*row, id=f"{row[0]}-{row[1] or 0}", marks=only_if_all) for row in CHALLENGES]


class Data(Workspace):
    """A workspace whose data set has another name."""

    dataset = f"Dataset{DATASET_ID:03d}_Tiny"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    workspace = Data(tmp_path)
    for name, value in workspace.folders.items():
        monkeypatch.setenv(name, value)
    return workspace


def train_and_predict(workspace, images, target):
    """Plans, preprocesses with nnU-Net's integrity check, trains for moments and predicts, all by stock commands."""
    workspace.plan("E2ENetPlanner", check=True)
    plans = shrink(workspace.plans("E2ENetPlans"), OPTIONS, ARCH_KWARGS)
    workspace.write_plans(plans, "TinyPlans")
    workspace.train("3d_fullres", 0, *MODEL)
    return workspace.predict(images, target, "-c", "3d_fullres", "-f", 0, *MODEL)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task", "more", "sizes", "split"), PARAMETERS)
def test_from_the_download_to_the_upload(workspace, tmp_path, capsys, name, task, more, sizes, split):
    download = getattr(downloads, name)(tmp_path / "download", **{"shape": SHAPE, **sizes})
    task_words = ("--task", task) if task else ()
    words = ("--dataset-id", DATASET_ID, "--name", "Tiny", "-np", 2, *task_words)
    name = name.replace("_", "-")
    code, out, err = run(capsys, "convert", name, tmp_path / "download", *words, *more)
    assert code == 0, err
    with capsys.disabled():
        print(f"\n{out}", flush=True)
    dataset = workspace.raw / workspace.dataset
    predictions = tmp_path / "predictions"
    predicted = train_and_predict(workspace, dataset / "imagesTs", predictions)

    output = tmp_path / "submission.zip"
    words = ("--images", dataset / "imagesTs", "-o", output, "--subset", "--empty", "warn", "-np", 1, *task_words)
    code, out, err = run(capsys, "export", name, predictions, *words)
    assert code == 0, err
    cases = [case for case in download.cases[split] if not (task == 1 and int(case[-4:]) > 500)]
    assert sorted(predicted) == sorted(f"{case}.nii.gz" for case in cases)
    submitted = judge(
        f"{name}-{task}" if task else name,
        output,
        {case: source_image(tmp_path / "download", case) for case in cases},
        official=False,
    )
    back = {1: 2, 2: 1, 3: 4} if name.startswith("brats20") else {}
    for case, array in submitted.items():
        expected = predicted[f"{case}.nii.gz"].T
        assert np.array_equal(array, np.vectorize(lambda v: back.get(v, v))(expected))
    dice = [2 * ((a > 0) & (t > 0)).sum() / ((a > 0).sum() + (t > 0).sum()) for a, t in truths(download, submitted)]
    with capsys.disabled():  # to be read, not judged: the training is far too short
        print(f"{out}\nDice of everything against background: {np.round(dice, 2)}", flush=True)


def truths(download, submitted):
    return [(array, download.truth(case)[0]) for case, array in submitted.items()]


def source_image(root, case):
    names = {"BraTS-": f"{case}-t1n.nii*", "BraTS": f"{case}_t1.nii*", "case_": f"{case}/imaging.nii.gz"}
    names |= {"FLARE": f"{case}_0000.nii.gz"}
    pattern = next((pattern for start, pattern in names.items() if case.startswith(start)), f"{case}.nii*")
    return next(path for path in sorted(root.rglob(pattern)) if path.is_file())


@pytest.mark.slow
@only_if_all
@pytest.mark.parametrize("trained", [("Task05_Prostate",), ("Task05_Prostate", "Task10_Colon")], ids=len)
def test_from_the_decathlon_to_the_upload(tmp_path, monkeypatch, capsys, trained):
    """Tasks with two channels in one file, or labels in floating point numbers, are trained. The others are filled."""
    references, predicted = {}, {}
    for folder in downloads.MSD:
        shape = SHAPE if folder in trained else (8, 8, 4)
        download = downloads.msd_task(tmp_path / "download", folder, train=5, test=2, shape=shape)
        cases = download.cases["test"]
        references[folder] = {case: tmp_path / "download" / folder / "imagesTs" / f"{case}.nii.gz" for case in cases}
    for folder in trained:
        workspace = Data(tmp_path / folder)
        workspace.dataset = f"Dataset{DATASET_ID:03d}_{folder[7:]}"
        for name, value in workspace.folders.items():
            monkeypatch.setenv(name, value)
        words = ("--dataset-id", DATASET_ID, "--task", int(folder[4:6]), "-np", 1)
        code, out, err = run(capsys, "convert", "msd", tmp_path / "download", *words)
        assert code == 0, err
        with capsys.disabled():
            print(f"\n{out}", flush=True)
        images = workspace.raw / workspace.dataset / "imagesTs"
        predicted.update(train_and_predict(workspace, images, tmp_path / "predictions" / folder))
    output = tmp_path / "submission.zip"
    words = ("--images", tmp_path / "download", "-o", output, "--subset", "--fill-missing-tasks", "--empty", "warn")
    code, out, err = run(capsys, "export", "msd", tmp_path / "predictions", *words, "-np", 1)
    assert code == 0, err
    submitted = judge_msd(output, references)
    assert len(predicted) == 2 * len(trained)
    assert all(np.array_equal(submitted[name.removesuffix(".nii.gz")], array.T) for name, array in predicted.items())
    with capsys.disabled():
        print(out, flush=True)
