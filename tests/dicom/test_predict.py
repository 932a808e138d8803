"""`nnunet_ext predict` from DICOM: the labels of the same volumes as NIfTI, segmentations, faults, going on."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom.series import OBLIQUE, SAGITTAL, Phantom, noise, uid
from end_to_end.stock import ENVIRONMENT
from prediction.models import LABELS, REGIONS, dataset_json, plans_of, write_model
from prediction.test_predict import assert_same, label_maps, run

from nnunet_ext.dicom.series import find_series
from nnunet_ext.dicom.volume import read_volume

SHAPES = {"first": (9, 30, 26), "second": (7, 21, 34)}
CT = {"0": "CT"}


def phantom(name):
    """Structure, so that labels have extent; slopes that differ."""
    shape = SHAPES[name]
    stored = noise(shape, np.uint16) + np.linspace(0, 3000, shape[2]).astype(np.uint16)
    return Phantom(
        stored, OBLIQUE if name == "first" else SAGITTAL, name=name, spacing=(2.5, 0.8, 0.9), slopes=[0.01] * shape[0],
        intercepts=[-10 + z / 10 for z in range(shape[0])],
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, two series as DICOM and as NIfTI, and what is predicted of the latter."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "model", plans_of(), dataset_json(channel_names=CT))
    (folder / "nifti").mkdir()
    for name in SHAPES:
        made = phantom(name)
        made.write(folder / "dicom" / name)
        image = sitk.GetImageFromArray(made.values.astype(np.float32))  # by the standard's formulas, not by our reader
        image.SetSpacing(made.spacing[::-1])
        image.SetOrigin(made.origin)
        axes = np.stack([made.orientation[:3], made.orientation[3:], made.normal], axis=1)
        image.SetDirection(axes.astype(float).ravel().tolist())
        sitk.WriteImage(image, str(folder / "nifti" / f"{name}_0000.nii.gz"))
    assert run(folder / "model", folder / "nifti", folder / "expected", "-f", 0) == 0
    return folder


@pytest.fixture
def work(place, tmp_path):
    shutil.copytree(place, tmp_path / "work")
    return tmp_path / "work"


def predict(work, *words, dicom="dicom", output="out"):
    return run(work / "model", work / dicom, work / output, "-f", 0, *words)


def assert_same_labels(found, expected, names=("first", "second")):
    """Voxels are equal, and grids as far as NIfTI and DICOM keep them."""
    ours, theirs = label_maps(found), label_maps(expected)
    assert list(ours) == [f"{name}.nii.gz" for name in names]
    for name, image in ours.items():
        array = sitk.GetArrayFromImage(image)
        assert np.array_equal(array, sitk.GetArrayFromImage(theirs[name])) and len(np.unique(array)) > 1
        for fact in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(image, fact)(), getattr(theirs[name], fact)(), atol=1e-4)


def assert_segmentation_is_the_label_map(folder, name, values=((1,), (2,), (3,))):
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{name}.nii.gz")))
    made, places = pydicom.dcmread(folder / f"{name}.dcm"), phantom(name)
    found = np.zeros((len(values), *labels.shape), bool)
    frames = made.pixel_array.reshape(-1, *labels.shape[1:])
    for group, frame in zip(made.PerFrameFunctionalGroupsSequence, frames, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        away = [np.linalg.norm(position - places.position(z)) for z in range(len(labels))]
        assert min(away) < 1e-4
        found[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1, int(np.argmin(away))] = frame
    assert np.array_equal(found, [np.isin(labels, value) for value in values]) and found.any()
    return made


def test_the_command_from_dicom_is_the_command_from_nifti(work):
    """In a process of its own."""
    command = [sys.executable, "-m", "nnunet_ext", "predict", "-m", work / "model", "-i", work / "dicom", "-o",
               work / "out", "-f", "0", "-device", "cpu", "--disable_progress_bar", "--dicom-seg"]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_labels(work / "out", work / "expected")
    for name in SHAPES:
        made = assert_segmentation_is_the_label_map(work / "out", name)
        assert [one.SegmentLabel for one in made.SegmentSequence] == ["outer", "inner", "rim"]
        algorithm = made.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmParameters == "model=Dataset007_Tiny, model, folds 0"
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["first", "CT", "no.", "3", "Abdomen", "9", "0.9", "x", "0.8", "x", "2.5"] in [line[:11] for line in lines]
    table = json.loads((work / "out" / "dicom.json").read_text())
    assert list(table) == ["first", "second"]
    assert table["first"]["series_instance_uid"] == uid("study", "first") and table["first"]["files"] == 9
    assert table["second"]["folder"] == str(work / "dicom" / "second")
    assert "Phantom" not in (work / "out" / "dicom.json").read_text()
    assert sorted(path.name for path in (work / "out" / ".nnunet_ext").iterdir()) == ["first.json", "second.json"]
    assert len(list((work / "out").glob("*.dcm"))) == 2 and "warn" not in done.stderr.lower(), done.stderr


def test_without_the_flag_there_is_no_segmentation(work):
    assert predict(work) == 0
    assert_same_labels(work / "out", work / "expected")
    assert list((work / "out").glob("*.dcm")) == []


def test_regions(work, tmp_path):
    model = write_model(tmp_path / "regions", plans_of(), dataset_json(REGIONS, channel_names=CT))
    assert run(model, work / "dicom", work / "out", "-f", 0, "--dicom-seg") == 0
    for name in SHAPES:
        made = assert_segmentation_is_the_label_map(work / "out", name, ((1, 2, 3), (2, 3), (3,)))
        assert [one.SegmentLabel for one in made.SegmentSequence] == ["whole", "core", "inner"]


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient"])
def test_other_readers_of_volumes(work, tmp_path, reader):
    plans = plans_of()
    plans["image_reader_writer"] = reader
    model = write_model(tmp_path / reader, plans, dataset_json(channel_names=CT))
    assert run(model, work / "nifti", work / "expected_too", "-f", 0) == 0
    assert run(model, work / "dicom", work / "out", "-f", 0, "--dicom-seg") == 0
    assert_same_labels(work / "out", work / "expected_too")
    for name in SHAPES:
        assert_segmentation_is_the_label_map(work / "out", name)


# a broken series beside a good one


def test_a_broken_series_is_named_and_the_other_is_predicted(work, capsys):
    next((work / "dicom" / "first").glob("*5")).unlink()
    assert predict(work, "--dicom-seg") == 1
    said = capsys.readouterr().out
    assert "nnunet_ext: first failed: missing slices: neighbours are 2.500 mm apart" in said
    assert "1 of 2 cases failed: first." in said
    assert_same_labels(work / "out", work / "expected", ("second",))
    assert_segmentation_is_the_label_map(work / "out", "second")
    phantom("first").write(work / "dicom" / "first")
    assert predict(work, "--dicom-seg", "--continue_prediction") == 0
    assert "1 of 2 cases are done already." in capsys.readouterr().out
    assert_same_labels(work / "out", work / "expected")


def test_a_file_that_cannot_be_decoded_costs_its_own_case(work, capsys):
    path = next((work / "dicom" / "first").glob("*5"))
    path.write_bytes(path.read_bytes()[:-50])
    assert predict(work) == 1
    said = capsys.readouterr().out
    assert f"first failed: {path} cannot be decoded" in said and "1 of 2 cases failed: first." in said
    assert_same_labels(work / "out", work / "expected", ("second",))
    assert [path.name for path in (work / "out" / ".nnunet_ext").iterdir()] == ["second.json"]


def test_parts_share_series_and_faults(work, capsys):
    next((work / "dicom" / "first").glob("*5")).unlink()
    assert predict(work, "-num_parts", 2, "-part_id", 1) == 0
    assert predict(work, "-num_parts", 2, "-part_id", 0) == 1
    assert "1 of 1 cases failed: first." in capsys.readouterr().out


def test_only_broken_series_are_an_error_before_anything_is_written(work, capsys):
    for name in SHAPES:
        next((work / "dicom" / name).glob("*5")).unlink()
    assert predict(work) == 1
    said = capsys.readouterr().err
    assert "holds no DICOM series that can be predicted.\n  first: missing slices" in said and "\n  second:" in said
    assert not (work / "out").exists()


# going on


def changed(work, *words):
    """Cases that are predicted again, by the times of their label maps."""
    before = {path: path.stat().st_mtime_ns for path in (work / "out").glob("*.nii.gz")}
    assert predict(work, "--continue_prediction", *words) == 0
    return {path.name for path in (work / "out").glob("*.nii.gz") if path.stat().st_mtime_ns != before[path]}


def test_going_on_leaves_complete_cases_alone(work):
    """But where a slice, the segmentation, its names or the flag have changed."""
    assert predict(work, "--dicom-seg") == 0
    assert changed(work, "--dicom-seg") == set()
    (work / "out" / "first.dcm").unlink()
    assert changed(work, "--dicom-seg") == {"first.nii.gz"}
    os.utime(next((work / "dicom" / "second").glob("*5")))
    assert changed(work, "--dicom-seg") == {"second.nii.gz"}
    assert changed(work) == {"first.nii.gz", "second.nii.gz"}
    assert changed(work, "--dicom-seg") == {"first.nii.gz", "second.nii.gz"}
    os.utime(work / "model" / "dataset.json")
    assert changed(work, "--dicom-seg") == {"first.nii.gz", "second.nii.gz"}


def test_slices_of_one_name_in_several_folders(work):
    """Of each of them a change is seen."""
    for half in "ab":
        (work / "split" / "case" / half).mkdir(parents=True)
    for number, path in enumerate(sorted((work / "dicom" / "first").iterdir())):
        shutil.copy(path, work / "split" / "case" / "ab"[number % 2] / f"{number // 2}")
    words = ("-f", 0, "--continue_prediction")
    for _ in range(2):
        assert run(work / "model", work / "split", work / "out", *words) == 0
        time = (work / "out" / "case.nii.gz").stat().st_mtime_ns
    for half in "ab":
        os.utime(work / "split" / "case" / half / "1")
        assert run(work / "model", work / "split", work / "out", *words) == 0
        before, time = time, (work / "out" / "case.nii.gz").stat().st_mtime_ns
        assert time != before


def test_another_series_under_a_cases_name_is_refused(work, capsys):
    assert predict(work) == 0
    before = (work / "out" / "first.nii.gz").read_bytes()
    (work / "other").mkdir()
    shutil.copytree(work / "dicom" / "second", work / "other" / "first")
    assert predict(work, dicom="other") == 1
    assert "says that the case first is the series" in capsys.readouterr().err
    assert (work / "out" / "first.nii.gz").read_bytes() == before


def test_more_series_into_one_output(work):
    """The table keeps those of earlier runs."""
    for name in SHAPES:
        (work / name).mkdir()
        shutil.copytree(work / "dicom" / name, work / name / name)
        assert predict(work, dicom=name) == 0
    assert list(json.loads((work / "out" / "dicom.json").read_text())) == ["first", "second"]


def test_a_segmentation_that_fails_costs_its_case(work, monkeypatch, capsys):
    """The old one does not stay beside the new label map."""
    from nnunet_ext.dicom import segmentation

    assert predict(work, "--dicom-seg") == 0
    pixels = segmentation._pixels
    monkeypatch.setattr(segmentation, "_pixels", lambda labels, segments: pixels(labels[::-1], segments))
    assert predict(work, "--dicom-seg") == 1
    said = capsys.readouterr().out
    print(said)
    assert "first failed: RuntimeError: The segmentation differs from the label map" in said
    assert not (work / "out" / "first.dcm").exists()
    monkeypatch.undo()
    assert changed(work, "--dicom-seg") == {"first.nii.gz", "second.nii.gz"}


def test_a_cascade(work, tmp_path):
    plans = plans_of()
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    model = write_model(tmp_path / "cascade", plans, dataset_json(channel_names=CT), configuration="3d_cascade_fullres")
    assert run(model, work / "nifti", work / "theirs", "-f", 0, "-prev_stage_predictions", work / "expected") == 0
    assert run(model, work / "dicom", work / "out", "-f", 0, "-prev_stage_predictions", work / "expected") == 0
    assert_same_labels(work / "out", work / "theirs")


# what is refused or said at the start


def test_modalities_that_the_model_does_not_mean_are_said(work, capsys):
    Phantom(noise((7, 21, 34)), name="mr", modality="MR").write(work / "dicom" / "mr")
    assert predict(work, "-num_parts", 3, "-part_id", 2) == 0
    assert "Careful: this model's channel is CT, and mr is MR." in capsys.readouterr().out


def channels(work):
    plans = plans_of(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[False] * 2)
    shutil.rmtree(work / "model")
    write_model(work / "model", plans, dataset_json(channels=2))


def photographs(work):
    path = work / "model" / "plans.json"
    plans = json.loads(path.read_text())
    path.write_text(json.dumps({**plans, "image_reader_writer": "NaturalImage2DIO"}))


def regions(work):
    dataset = dataset_json({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3})
    shutil.rmtree(work / "model")
    write_model(work / "model", plans_of(), {**dataset, "regions_class_order": [3, 2, 1]})


def images_too(work):
    shutil.copy(work / "nifti" / "first_0000.nii.gz", work / "dicom")


def none(work):
    shutil.rmtree(work / "dicom")
    shutil.copytree(work / "nifti", work / "dicom")


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (channels, (), "this model takes 2 channels (MR, MR), which would have to be on one grid"),
        (photographs, (), "images are read by NaturalImage2DIO"),
        (regions, ("--dicom-seg",), "a label map does not say which regions were found. Leave out --dicom-seg."),
        (images_too, ("--dicom-seg",), "holds images that end in .nii.gz and DICOM files"),
        (none, ("--dicom-seg",), "holds no DICOM file. Leave it out."),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(work, capsys, change, words, message):
    change(work)
    assert predict(work, *words) == 1
    assert message in capsys.readouterr().err
    assert not (work / "out").exists()


def test_images_of_the_models_format_come_first_and_it_is_said(work, capsys):
    images_too(work)
    assert predict(work) == 0
    assert "which are predicted; DICOM files there are not." in capsys.readouterr().out
    assert list(label_maps(work / "out")) == ["first.nii.gz"] and not (work / "out" / "dicom.json").exists()


def test_a_series_without_frame_of_reference_gets_labels_but_no_segmentation(work, capsys):
    def change(z, made):
        del made.FrameOfReferenceUID

    phantom("first").write(work / "dicom" / "first", change)
    assert predict(work, "--dicom-seg") == 1
    assert "first failed: no FrameOfReferenceUID" in capsys.readouterr().out
    assert predict(work, output="without") == 0
    assert_same_labels(work / "without", work / "expected")


ABSENT = """
import importlib.util, sys
absent, find = ("pydicom", "highdicom"), importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in absent else find(name, *more)
sys.modules.update(dict.fromkeys(absent))  # None makes an import fail
from nnunet_ext.cli.main import main
words = ["predict", "-m", "model", "-f", "0", "-device", "cpu", "--disable_progress_bar"]
assert main([*words, "-i", "nifti", "-o", "images"]) == 0
assert main([*words, "-i", "dicom", "-o", "out"]) == 1
assert main([*words, "-i", "dicom", "-o", "out", "--dicom-seg"]) == 1
"""


def test_without_the_extra(work):
    """Images are predicted as ever, in a process that cannot import it; DICOM is refused with what to install."""
    environment = {**os.environ, **ENVIRONMENT}
    command = [sys.executable, "-c", ABSENT]
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(work / "images", work / "expected")
    first, second = done.stderr.strip().splitlines()
    assert first.startswith("nnunet_ext: dicom holds DICOM files, and reading them needs pydicom and highdicom")
    assert second.startswith("nnunet_ext: --dicom-seg needs pydicom and highdicom, not installed here.")
    assert all(line.endswith('Run: pip install "nnunet-ext[dicom]"') for line in (first, second))
    assert not (work / "out").exists()


def test_the_volume_that_is_predicted_is_the_series(work):
    """The fixture's NIfTI files and our reader agree, so that the tests above compare what they say."""
    for name, series in find_series(work / "dicom").series.items():
        theirs = sitk.ReadImage(str(work / "nifti" / f"{name}_0000.nii.gz"))
        np.testing.assert_allclose(
            sitk.GetArrayFromImage(read_volume(series)), sitk.GetArrayFromImage(theirs), rtol=1e-6
        )


def test_labels_of_the_fixture_are_those_of_the_model():
    assert list(LABELS) == ["background", "outer", "inner", "rim"]
