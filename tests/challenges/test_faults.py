"""Everything that can be wrong with a download, with predictions or with the disk: a message of its own, exit code 1,
and no file left behind."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest
from challenges import downloads
from challenges.commands import run, start

from nnunet_ext.challenges.raw_dataset import MANIFEST

SHAPE = (12, 12, 6)


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def edit(path, change):
    """Rewrites a NIfTI file with `change(array, affine)`."""
    image = nibabel.load(path)
    array, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def shifted(array, affine):
    affine[:3, 3] += 0.5 * np.abs(np.diag(affine)[:3])  # half a voxel
    return array, affine


def with_value(value, kind=np.uint8):
    def change(array, affine):
        array = array.astype(kind)
        array[0, 0, 0] = value
        return array, affine

    return change


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


# predictions -> archive


@pytest.fixture
def brats(tmp_path):
    """Predictions of three BraTS 2020 validation cases with nnU-Net's values."""
    download = downloads.brats2020(tmp_path / "download", val=3, shape=SHAPE, ending=".nii.gz")
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for case, (labels, affine) in download.cases["val"].items():
        ours = np.zeros_like(labels)
        for theirs, value in ((2, 1), (1, 2), (4, 3)):
            ours[labels == theirs] = value
        nibabel.save(nibabel.Nifti1Image(ours, affine), predictions / f"{case}.nii.gz")
    return predictions


def brats_words(predictions, *more):
    root = predictions.parent
    return "export", "brats2020", predictions, "--images", root / "download", "-o", root / "s.zip", "-np", 1, *more


ONE = "BraTS20_Validation_001.nii.gz"
EXPORT_FAULTS = {
    "extra case": (
        lambda p: shutil.copy(p / ONE, p / "BraTS20_Validation_004.nii.gz"),
        "BraTS20_Validation_004.nii.gz: no image of such a case in",
    ),
    "wrong name": (
        lambda p: (p / ONE).rename(p / "BraTS20_Training_001.nii.gz"),
        "BraTS20_Training_001.nii.gz: not the name of a validation case of BraTS 2020, such as BraTS20_Validation_001",
    ),
    "named like an image": (
        lambda p: (p / ONE).rename(p / "BraTS20_Validation_001_0000.nii.gz"),
        "BraTS20_Validation_001_0000.nii.gz: is named like an image (channel 0000), not like a prediction",
    ),
    "float labels": (
        lambda p: edit(p / ONE, with_value(0.5, np.float32)),
        f"{ONE}: holds 0.5, not whole numbers from 0 to 255",
    ),
    "not a number": (
        lambda p: edit(p / ONE, with_value(np.nan, np.float32)),
        f"{ONE}: holds nan, not whole numbers from 0 to 255",
    ),
    "value outside the set": (
        lambda p: edit(p / ONE, with_value(7)),
        f"{ONE}: holds the value 7, allowed are 0, 1, 2, 3",
    ),
    "negative value": (
        lambda p: edit(p / ONE, with_value(-1, np.int16)),
        f"{ONE}: holds -1, not whole numbers from 0 to 255",
    ),
    "already converted": (
        lambda p: edit(p / ONE, lambda a, f: (np.where(a == 3, 4, a).astype(np.uint8), f)),
        f"{ONE}: holds 4, so it has the challenge's values already; if all files do, use --values challenge",
    ),
    "converted in part": (
        lambda p: edit(p / ONE, with_value(4)),
        f"{ONE}: holds 3 of nnU-Net's values and 4 of the challenge's: converted in part",
    ),
    "shifted affine": (
        lambda p: edit(p / ONE, shifted),
        f"{ONE}: lies up to 0.866 voxels away from its image BraTS20_Validation_001_t1.nii.gz: its affine differs",
    ),
    "other shape": (
        lambda p: edit(p / ONE, lambda a, f: (a[:-1], f)),
        f"{ONE}: has shape 11x12x6, its image BraTS20_Validation_001_t1.nii.gz has 12x12x6",
    ),
    "4D": (
        lambda p: edit(p / ONE, lambda a, f: (a[..., None], f)),
        f"{ONE}: is 4D (12x12x6x1), expected 3D",
    ),
    "empty mask": (
        lambda p: edit(p / ONE, lambda a, f: (a * 0, f)),
        "BraTS20_Validation_001: the prediction is empty; --empty warn accepts that",
    ),
    "unreadable file": (lambda p: truncate(p / ONE), f"{ONE}: cannot be read ("),
    "not a NIfTI file": (lambda p: (p / ONE).write_text("404 not found"), f"{ONE}: cannot be read ("),
    "duplicate id": (
        lambda p: nibabel.save(nibabel.load(p / ONE), p / "BraTS20_Validation_001.nii"),
        "the same case as BraTS20_Validation_001.nii",
    ),
    "nothing there": (
        lambda p: [path.unlink() for path in p.iterdir()],
        "predictions holds no .nii.gz, .nii or .mha file",
    ),
}


@pytest.mark.parametrize("fault", EXPORT_FAULTS)
def test_export_refuses(brats, capsys, fault):
    spoil, message = EXPORT_FAULTS[fault]
    spoil(brats)
    before = listing(brats.parent)
    code, out, err = run(capsys, *brats_words(brats))
    assert code == 1
    assert message in err
    assert "no archive was written" in err
    assert out == ""
    assert listing(brats.parent) == before


def test_every_problem_is_listed_at_once(brats, capsys):
    edit(brats / ONE, with_value(7))
    edit(brats / ONE.replace("001", "002"), shifted)
    truncate(brats / ONE.replace("001", "003"))
    (brats / "scan.nii.gz").write_bytes(b"")
    code, _, err = run(capsys, *brats_words(brats, "--missing", "error", "--split", "val"))
    lines = err.splitlines()
    assert code == 1
    assert "nnunet_ext: 5 problems, no archive was written:" in lines
    assert len([line for line in lines if line.startswith("  - ")]) == 5
    for part in ("no image of 122 of 125", "scan.nii.gz: not", "value 7", "002.nii.gz: lies", "003.nii.gz: cannot"):
        assert part in err


def test_a_missing_case_is_named(brats, capsys):
    (brats / ONE).unlink()
    code, _, err = run(capsys, *brats_words(brats, "--missing", "error", "--subset"))
    assert code == 1
    assert "1 problem, no archive was written:\n  - BraTS20_Validation_001: no prediction of this case in" in err
    assert not (brats.parent / "s.zip").exists()


def test_a_missing_case_is_a_note_where_the_challenge_goes_on_without(brats, capsys):
    (brats / ONE).unlink()
    code, out, _ = run(capsys, *brats_words(brats))
    assert code == 0
    assert "note: BraTS20_Validation_001: no prediction of this case" in out
    assert (brats.parent / "s.zip").exists()


def test_brats_3_left_over_is_found_among_the_challenges_values(brats, capsys):
    code, _, err = run(capsys, *brats_words(brats, "--values", "challenge"))
    assert code == 1
    assert err.count("holds the value 3, allowed are 0, 1, 2, 4: 3 is nnU-Net's value for the enhancing tumor") == 3


def test_converted_predictions_are_taken_as_they_are(brats, capsys):
    for path in brats.iterdir():
        edit(path, lambda a, f: (np.where(a == 3, 4, a).astype(np.uint8), f))
    code, _, _ = run(capsys, *brats_words(brats, "--values", "challenge"))
    assert code == 0


def test_a_folder_without_any_enhancing_tumor_is_noticed(brats, capsys):
    for path in brats.iterdir():
        edit(path, lambda a, f: (np.minimum(a, 2), f))
    code, out, _ = run(capsys, *brats_words(brats))
    assert code == 0
    assert "note: BraTS 2020: in no prediction are enhancing tumor (3)" in out


def test_an_existing_archive_stays(brats, capsys):
    output = brats.parent / "s.zip"
    output.write_bytes(b"mine")
    code, _, err = run(capsys, *brats_words(brats))
    assert (code, output.read_bytes()) == (1, b"mine")
    assert "s.zip exists already; --overwrite replaces it" in err
    edit(brats / ONE, with_value(7))
    assert run(capsys, *brats_words(brats, "--overwrite"))[0] == 1
    assert output.read_bytes() == b"mine"
    edit(brats / ONE, with_value(0))
    assert run(capsys, *brats_words(brats, "--overwrite"))[0] == 0
    assert output.read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "brats2020", "nowhere", "--images", "nowhere", "-o", "s.zip"), "nowhere is not a folder"),
        (("export", "brats2020", ".", "--images", ".", "-o", "s.tar"), "must end in .zip, found 's.tar'"),
        (("export", "brats2020", ".", "--images", ".", "-o", "no/s.zip"), "no does not exist"),
        (("export", "btcv", ".", "--images", ".", "-o", "s.zip", "--split", "val"), "takes test, not val"),
        (("export", "msd", ".", "--images", ".", "-o", "s.zip", "--folder", "x"), "leave out --folder"),
        (("export", "btcv", ".", "--images", ".", "-o", "s.zip", "--fill-missing-tasks"), "several tasks"),
        (("export", "brats-gli", ".", "--images", ".", "-o", "s.zip"), "brats-gli has the tasks 2023, 2024"),
        (("convert", "msd", ".", "--task", "2", "--regions"), "MSD Task02_Heart has no regions"),
        (("convert", "msd", "."), "holds nothing of MSD Task01_BrainTumour, MSD Task02_Heart"),
        (("convert", "kits", "."), "Unknown challenge 'kits'. Known: amos22, brats2019"),
        (("convert", "kits.py", "."), "kits.py is not a file"),
        (("convert", "btcv", ".", "-np", "0"), "at least 1, found 0"),
        (("convert", "btcv", "nowhere"), "nowhere is not a folder"),
        (("convert", "btcv", "."), "holds nothing of BTCV abdomen. The download looks like this: RawData/"),
        (("score", "plain", "nowhere", "."), "nowhere is not a folder"),
        (("score", "msd", ".", "."), "msd has the tasks 1, 2, 3"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    code, _, err = run(capsys, *words)
    assert code == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("-o", "s.zip"), ("--images", ".")])
def test_export_needs_images_and_a_place(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(capsys, "export", "btcv", ".", *words)
    assert "the following arguments are required" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# download -> data set


@pytest.fixture
def lits(tmp_path, monkeypatch):
    downloads.lits17(tmp_path / "download", shape=SHAPE)
    (tmp_path / "raw").mkdir()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    return next((tmp_path / "download").rglob("volume-1.nii")).parent


def lits_words(folder, *more):
    return "convert", "lits17", next(p for p in folder.parents if p.name == "download"), "-np", 1, *more


CONVERT_FAULTS = {
    "missing label": (
        lambda p: (p / "segmentation-1.nii").unlink(),
        "training case volume-1 has no label map for",
    ),
    "missing image": (
        lambda p: (p / "volume-1.nii").unlink(),
        "training case volume-1 has no image beside",
    ),
    "duplicate id": (
        lambda p: shutil.copy(p / "volume-2.nii", p.parent / "volume-1.nii"),
        "volume-1 is there twice: ",
    ),
    "float labels": (
        lambda p: edit(p / "segmentation-1.nii", with_value(1.5, np.float32)),
        "segmentation-1.nii: holds 1.5, not whole numbers from 0 to 255",
    ),
    "value outside the set": (
        lambda p: edit(p / "segmentation-1.nii", with_value(3)),
        "segmentation-1.nii: holds the value 3, allowed are 0, 1, 2",
    ),
    "shifted affine": (
        lambda p: edit(p / "segmentation-1.nii", shifted),
        "voxels away from its image: its affine differs",
    ),
    "other shape": (
        lambda p: edit(p / "segmentation-1.nii", lambda a, f: (a[:-1], f)),
        "segmentation-1.nii: has shape 11x12x6, its image has 12x12x6",
    ),
    "4D label": (
        lambda p: edit(p / "segmentation-1.nii", lambda a, f: (a[..., None], f)),
        "segmentation-1.nii: is 4D (12x12x6x1), expected 3D",
    ),
    "4D image": (
        lambda p: edit(p / "volume-1.nii", lambda a, f: (np.stack([a, a], -1), f)),
        "volume-1.nii: is 4D (12x12x6x2), expected 3D",
    ),
    "not a number": (
        lambda p: edit(p / "volume-1.nii", with_value(np.nan, np.float32)),
        "volume-1.nii: holds voxels that are not finite numbers",
    ),
    "unreadable label": (lambda p: truncate(p / "segmentation-1.nii"), "segmentation-1.nii: cannot be read ("),
    "unreadable image": (lambda p: truncate(p / "volume-1.nii"), "volume-1.nii: cannot be read ("),
}


@pytest.mark.parametrize("fault", CONVERT_FAULTS)
def test_convert_refuses(lits, tmp_path, capsys, fault):
    spoil, message = CONVERT_FAULTS[fault]
    spoil(lits)
    before = listing(tmp_path)
    code, out, err = run(capsys, *lits_words(lits))
    assert code == 1
    assert message in err
    assert "nothing was converted" in err
    assert out == ""
    assert listing(tmp_path) == before


def test_convert_lists_every_problem_at_once(lits, capsys):
    edit(lits / "segmentation-0.nii", with_value(9))
    truncate(lits / "volume-1.nii")
    edit(lits / "segmentation-2.nii", shifted)
    code, _, err = run(capsys, *lits_words(lits))
    assert code == 1
    assert "3 problems in" in err
    for part in ("segmentation-0.nii: holds the value 9", "volume-1.nii: cannot be read", "segmentation-2.nii: lies"):
        assert part in err


def test_an_empty_label_map_is_a_note(lits, capsys):
    edit(lits / "segmentation-1.nii", lambda a, f: (a * 0, f))
    code, out, _ = run(capsys, *lits_words(lits))
    assert code == 0
    assert "note: volume-1: the label map is empty" in out


def test_labels_of_brats_in_nnunets_values_are_recognised(tmp_path, lits, capsys):
    downloads.brats2020(tmp_path / "brats", shape=SHAPE)
    label = next((tmp_path / "brats").rglob("BraTS20_Training_001_seg.nii"))
    edit(label, with_value(3))
    code, _, err = run(capsys, "convert", "brats2020", tmp_path / "brats", "-np", 1)
    assert code == 1
    assert "holds the value 3, allowed are 0, 1, 2, 4: 3 is nnU-Net's value for the enhancing tumor" in err
    assert list((tmp_path / "raw").iterdir()) == []


def test_kits23_given_to_kits19_is_recognised(tmp_path, lits, capsys):
    downloads.kits23(tmp_path / "kits", shape=(10, 16, 16))
    code, _, err = run(capsys, "convert", "kits19", tmp_path / "kits", "-np", 1)
    assert code == 1 and "3 is the cyst of KiTS21 and KiTS23; convert those with kits23" in err


def test_a_missing_channel_is_named(tmp_path, lits, capsys):
    downloads.brats2020(tmp_path / "brats", shape=SHAPE)
    next((tmp_path / "brats").rglob("BraTS20_Validation_001_flair.nii")).unlink()
    code, _, err = run(capsys, "convert", "brats2020", tmp_path / "brats", "-np", 1)
    assert code == 1
    assert "validation case BraTS20_Validation_001 has no Flair image" in err


@pytest.mark.parametrize("value", [None, "nowhere"])
def test_nnunet_raw_must_be_a_folder(lits, monkeypatch, capsys, value):
    monkeypatch.delenv("nnUNet_raw")
    if value is not None:
        monkeypatch.setenv("nnUNet_raw", value)
    code, _, err = run(capsys, *lits_words(lits))
    assert code == 1
    assert ("nnUNet_raw is not set" if value is None else "nnUNet_raw is nowhere, which is not a folder") in err


# the disk


@contextmanager
def small_disk(folder, kib):
    """A file system of that size, which can be made larger."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if result.returncode:
        pytest.skip(f"mounting a small tmpfs is not permitted here: {result.stderr.strip()}")
    try:
        yield lambda kib: subprocess.run(["mount", "-o", f"remount,size={kib}k", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def noisy_lits(root, cases, size):
    """A LiTS download that does not compress, as the real one hardly does."""
    rng = np.random.default_rng(0)
    for number in range(cases):
        affine = downloads.affine_of(rng)
        image = rng.integers(-1000, 1000, (size, size, size)).astype(np.int16)
        downloads.save(root / f"volume-{number}.nii", image, affine)
        labels = downloads.nested(rng, image.shape, (1, 2))
        downloads.save(root / f"segmentation-{number}.nii", labels, affine)


def test_a_full_disk_stops_convert_and_more_space_lets_it_go_on(tmp_path, monkeypatch, capsys):
    noisy_lits(tmp_path / "download", 4, 32)  # more than 64 KiB a case
    raw = tmp_path / "raw"
    monkeypatch.setenv("nnUNet_raw", str(raw))
    with small_disk(raw, 200) as enlarge:
        code, _, err = run(capsys, "convert", "lits17", tmp_path / "download", "-np", 1)
        assert code == 1
        assert "No space left on device" in err
        done = len(list(raw.rglob("labelsTr/*")))
        assert 1 <= done < 4
        assert f"{done} of 4 cases are complete, there are no others" in err
        dataset = raw / "Dataset029_LiTS17"
        assert len(list(dataset.rglob("*.gz"))) == 2 * done
        files = {p.name for p in dataset.rglob("*") if p.is_file() and p.suffix != ".gz"}
        assert files <= {MANIFEST}
        assert {p.name for p in dataset.iterdir()} - files == {"imagesTr", "labelsTr"}
        enlarge(4096)
        code, out, _ = run(capsys, "convert", "lits17", tmp_path / "download", "-np", 1)
        assert code == 0
        assert f"{4 - done} case{'s' if done < 3 else ''} converted now, {done} were there already" in out


def test_a_disk_that_is_full_from_the_start_keeps_no_folder(tmp_path, monkeypatch, capsys):
    noisy_lits(tmp_path / "download", 2, 32)
    raw = tmp_path / "raw"
    monkeypatch.setenv("nnUNet_raw", str(raw))
    with small_disk(raw, 40):
        code, _, err = run(capsys, "convert", "lits17", tmp_path / "download", "-np", 1)
        assert code == 1
        assert "No space left on device" in err
        assert list(raw.iterdir()) == []


def test_a_full_disk_leaves_no_archive(tmp_path, capsys):
    images, predictions = tmp_path / "images", tmp_path / "predictions"
    rng = np.random.default_rng(0)
    for number in range(4):
        labels = rng.integers(0, 3, (48, 48, 48)).astype(np.uint8)
        for folder, name in ((images, f"test-volume-{number}_0000"), (predictions, f"test-volume-{number}")):
            downloads.save(folder / f"{name}.nii.gz", labels, np.eye(4))
    disk = tmp_path / "disk"
    with small_disk(disk, 64):
        words = ("--images", images, "-o", disk / "s.zip", "--subset", "-np", 1)
        code, _, err = run(capsys, "export", "lits17", predictions, *words)
        assert code == 1
        assert "No space left on device" in err
        assert "No file is left of it" in err
        assert list(disk.iterdir()) == []


# Ctrl-C

SLOW = """
import nnunet_ext.challenges.{module} as module, time
fast = module.{function}
def slow(item):
    result = fast(item)
    time.sleep(1.5)
    return result
module.{function} = slow
"""


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def test_ctrl_c_stops_export_without_a_trace(brats, tmp_path):
    before = listing(tmp_path)
    slow = SLOW.format(module="archive", function="submitted_file")
    process = start(tmp_path, *brats_words(brats), before=slow)
    wait_for(lambda: any(p.name.startswith(".s.zip") for p in tmp_path.iterdir()), process)
    time.sleep(0.1)  # into the packing, which takes 4.5 s; not into the call that makes the temporary file
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"nnunet_ext: Interrupted, {tmp_path / 's.zip'} was not written." in err
    assert "Traceback" not in err
    assert listing(tmp_path) == sorted([*before, "driver.py"])


def test_ctrl_c_stops_convert_between_cases_and_it_can_go_on(lits, tmp_path, capsys):
    slow = SLOW.format(module="convert", function="write_case")
    process = start(tmp_path, *lits_words(lits), before=slow, environment=dict(os.environ))
    dataset = tmp_path / "raw" / "Dataset029_LiTS17"
    wait_for(lambda: any(dataset.glob("labelsTr/*")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "nnunet_ext: Interrupted. " in err
    assert "Traceback" not in err
    done = len([p for p in dataset.glob("images*/*")])
    assert 1 <= done < 5
    assert f"{done} of 5 cases are complete" in err
    assert {p.name for p in dataset.iterdir()} <= {"imagesTr", "labelsTr", "imagesTs", MANIFEST}
    code, out, _ = run(capsys, *lits_words(lits))
    assert code == 0
    assert f"{done} were there already" in out


def test_ctrl_c_in_a_terminal_reaches_all_processes(lits, tmp_path):
    slow = SLOW.format(module="convert", function="write_case")  # the workers load it too
    process = start(tmp_path, *lits_words(lits, "-np", 2), before=slow, environment=dict(os.environ))
    dataset = tmp_path / "raw" / "Dataset029_LiTS17"
    wait_for(lambda: any(dataset.glob("images*/*")), process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "nnunet_ext: Interrupted. " in err
    assert "Traceback" not in err
    assert {p.name for p in dataset.iterdir()} <= {"imagesTr", "labelsTr", "imagesTs", MANIFEST}
    assert running_in_session(process.pid) == []  # no worker is left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(lits, tmp_path, number):
    slow = SLOW.format(module="convert", function="write_case").replace("1.5", "30")
    process = start(tmp_path, *lits_words(lits, "-np", 2), before=slow, environment=dict(os.environ))
    dataset = tmp_path / "raw" / "Dataset029_LiTS17"
    wait_for(lambda: any(dataset.glob("images*/*")), process)
    process.send_signal(number)
    process.wait(60)
    assert running_in_session(process.pid, 10) == []
    if number == signal.SIGTERM:
        assert process.returncode == 1 and "nnunet_ext: Interrupted. " in process.communicate()[1]
        assert {p.name for p in dataset.iterdir()} <= {"imagesTr", "labelsTr", "imagesTs", MANIFEST}


def running_in_session(session, seconds=5):
    """Names of the processes of a session that have not ended; they get some seconds to do so."""
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs /proc")
    end = time.monotonic() + seconds
    while True:
        fields = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it ended meanwhile
                fields.append(path.read_text().rpartition(")")[2].split())
        running = [f for f in fields if f[3] == str(session) and f[0] not in "ZX"]
        if not running or time.monotonic() > end:
            return running
        time.sleep(0.05)


def test_a_case_of_which_only_some_files_got_their_names_is_removed(lits, tmp_path, monkeypatch, capsys):
    """As when a worker is stopped between two renames; files of an earlier run stay."""
    from nnunet_ext.challenges import cases as module

    dataset = tmp_path / "raw" / "Dataset029_LiTS17"
    earlier = dataset / "imagesTr" / "volume-2_0000.nii.gz"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"of an earlier run")
    renamed = []

    def replace(before, after):
        if len(renamed) == 3:
            raise KeyboardInterrupt
        renamed.append(after)
        rename(before, after)

    rename = os.replace
    monkeypatch.setattr(module.os, "replace", replace)
    code, _, err = run(capsys, *lits_words(lits))
    assert code == 1
    assert renamed[-1].parent.name == "imagesTr"  # its label map had no name yet
    assert not renamed[-1].exists()
    assert "Interrupted. 2 of 5 cases are complete" in err
    assert earlier.exists()


def test_a_folder_that_may_not_be_written_is_named(lits, tmp_path, capsys):
    (tmp_path / "raw" / "Dataset029_LiTS17").write_text("a file where the folder should be")
    code, _, err = run(capsys, *lits_words(lits))
    assert code == 1
    assert "Writing failed: " in err
