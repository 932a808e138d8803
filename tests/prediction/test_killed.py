"""The command killed at random moments, and two of them on one output folder."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import SimpleITK as sitk
from end_to_end.stock import ENVIRONMENT
from prediction.models import dataset_json, plans_of, write_images, write_model
from prediction.test_predict import assert_same, run

from nnunet_ext.prediction.records import FOLDER

KILLS = int(os.environ.get("nnUNet_ext_kills", 3))


def start(place, output, *words):
    command = [sys.executable, "-m", "nnunet_ext", "predict", "-m", place / "model", "-i", place / "images",
               "-o", output, "-f", "0", "-device", "cpu", "--npz", *words]  # fmt: skip
    return subprocess.Popen(
        list(map(str, command)), env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "model", plans_of(), dataset_json())
    write_images(folder / "images", [(24, 60, 64)] * 8)
    assert run(folder / "model", folder / "images", folder / "whole", "-f", 0) == 0
    return folder


@pytest.mark.slow
def test_killed_at_random_moments_and_continued(place, tmp_path):
    """Nothing has a name that it does not deserve, and what is done is not done again."""
    rng, output = random.Random(0), tmp_path / "out"
    began = time.monotonic()
    assert start(place, tmp_path / "timed").wait() == 0
    whole_run = time.monotonic() - began
    for _ in range(KILLS):
        process = start(place, output, "--continue_prediction")
        time.sleep(rng.uniform(0.3, 1.05) * whole_run)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in output.glob("*.nii.gz"):
            theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(place / "whole" / path.name)))
            assert (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == theirs).all()
        if rng.random() < 0.5 and (done := sorted(output.glob("*.npz"))):
            done[0].unlink()
    times = {path.name: path.stat().st_mtime_ns for path in output.glob(f"{FOLDER}/*.json")}
    assert start(place, output, "--continue_prediction").wait() == 0
    assert_same(output, place / "whole")
    kept = [name for name, at in times.items() if (output / FOLDER / name).stat().st_mtime_ns == at]
    assert len(kept) >= len(times) - 1  # all but the one whose file was taken away
    assert sorted(path.name for path in (output / FOLDER).iterdir()) == [f"case_{n}.json" for n in range(8)]


@pytest.mark.slow
def test_two_commands_on_one_folder(place, tmp_path):
    both = [start(place, tmp_path / "out") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert_same(tmp_path / "out", place / "whole")
    assert start(place, tmp_path / "out", "--continue_prediction").wait() == 0
    assert sorted(path.name for path in (tmp_path / "out" / FOLDER).iterdir()) == [f"case_{n}.json" for n in range(8)]
