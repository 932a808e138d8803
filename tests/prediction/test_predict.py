"""`nnunet_ext predict` against nnU-Net's own predictor: the same files."""

import json
import os
import pickle

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from prediction.models import LABELS, REGIONS, dataset_json, plans_of, predict_as_nnunet, write_images, write_model

from nnunet_ext.cli.main import main


def run(model, images, output, *words):
    """The exit code of the command."""
    return main(["predict", "-m", str(model), "-i", str(images), "-o", str(output), "-device", "cpu",
                 "--disable_progress_bar", *map(str, words)])  # fmt: skip


def label_maps(folder):
    return {path.name: sitk.ReadImage(str(path)) for path in sorted(folder.glob("*.nii.gz"))}


def assert_same(found, expected, labels=2):
    """Bytes of voxels, types and grids; and the prediction says something."""
    ours, theirs = label_maps(found), label_maps(expected)
    assert ours.keys() == theirs.keys() and ours
    for name, image in ours.items():
        other = theirs[name]
        assert image.GetPixelID() == other.GetPixelID()
        for fact in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
            assert getattr(image, fact)() == getattr(other, fact)(), name
        array = sitk.GetArrayFromImage(image)
        assert np.array_equal(array, sitk.GetArrayFromImage(other)), name
        assert len(np.unique(array)) >= labels


def assert_same_probabilities(found, expected):
    """Up to some steps of the logits' float16: the preprocessed images differ in the last bit of float32."""
    archives = sorted(expected.glob("*.npz"))
    assert archives
    for path in archives:
        theirs, ours = (np.load(folder / path.name)["probabilities"] for folder in (expected, found))
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_label_maps_and_probabilities_are_nnunets(tmp_path, labels, configuration):
    """Two folds, cropped images of two channels, turned axes, probabilities too."""
    plans = plans_of(transpose=(2, 0, 1), spacing=(2.0, 1.1, 0.7), normalization_schemes=["ZScoreNormalization"] * 2,
                     use_mask_for_norm=[True, False])  # fmt: skip
    mirroring = (0, 1) if configuration == "2d" else (1, 2)
    model = write_model(tmp_path / "model", plans, dataset_json(labels, 2), folds=(0, 3), configuration=configuration,
                        mirroring=mirroring)  # fmt: skip
    images = write_images(tmp_path / "images", channels=2, border=3)
    expected = predict_as_nnunet(model, images, tmp_path / "stock", folds=(0, 3), probabilities=True)
    assert run(model, images, tmp_path / "ours", "-f", 0, 3, "--npz") == 0
    assert_same(tmp_path / "ours", expected, 3)
    assert_same_probabilities(tmp_path / "ours", expected)
    for path in expected.glob("*.npz"):
        facts = [pickle.loads((f / path.with_suffix(".pkl").name).read_bytes()) for f in (tmp_path / "ours", expected)]
        assert facts[0].keys() == facts[1].keys() and facts[0]["spacing"] == facts[1]["spacing"]
    for name in ("plans.json", "dataset.json"):
        assert json.loads((tmp_path / "ours" / name).read_text()) == json.loads((expected / name).read_text())


def test_without_mirroring_and_with_other_steps(tmp_path):
    model = write_model(tmp_path / "model", plans_of(), dataset_json())
    images = write_images(tmp_path / "images")
    expected = predict_as_nnunet(model, images, tmp_path / "stock", mirror=False, step=0.8)
    torch.set_num_threads(3)
    assert run(model, images, tmp_path / "ours", "-f", 0, "--disable_tta", "-step_size", 0.8) == 0
    assert torch.get_num_threads() == int(os.environ["nnUNet_ext_threads"]) == 1, "what this process may have"
    assert_same(tmp_path / "ours", expected)
    mirrored = predict_as_nnunet(model, images, tmp_path / "mirrored", step=0.8)
    with pytest.raises(AssertionError):  # the arguments do make a difference
        assert_same(tmp_path / "ours", mirrored)


def test_a_cascade(tmp_path):
    plans = plans_of()
    low = write_model(tmp_path / "low", plans, dataset_json())
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    model = write_model(tmp_path / "model", plans, dataset_json(), configuration="3d_cascade_fullres")
    images = write_images(tmp_path / "images", border=2)
    previous = predict_as_nnunet(low, images, tmp_path / "previous")
    expected = predict_as_nnunet(model, images, tmp_path / "stock", previous=previous)
    assert run(model, images, tmp_path / "ours", "-f", 0, "-prev_stage_predictions", previous) == 0
    assert_same(tmp_path / "ours", expected)


@pytest.mark.parametrize("how", [{"order": 3, "order_z": 0}, {"order": 1, "order_z": 3}], ids=str)
def test_plans_with_other_orders_go_through_nnunets_function(tmp_path, how):
    arguments = {"is_seg": False, "force_separate_z": None, **how}
    model = write_model(tmp_path / "model", plans_of(resampling_fn_probabilities_kwargs=arguments), dataset_json())
    images = write_images(tmp_path / "images")
    expected = predict_as_nnunet(model, images, tmp_path / "stock", probabilities=True)
    assert run(model, images, tmp_path / "ours", "-f", 0, "--save_probabilities") == 0
    assert_same(tmp_path / "ours", expected)
    assert_same_probabilities(tmp_path / "ours", expected)


@pytest.mark.parametrize("function", ["no_resampling_hack", "resample_torch_fornnunet"])
def test_other_resampling_functions_are_left_as_they_are(tmp_path, function):
    changes = {f"resampling_fn_{what}": function for what in ("data", "seg", "probabilities")}
    arguments = {} if function == "no_resampling_hack" else {"is_seg": False, "force_separate_z": None}
    changes |= {f"resampling_fn_{what}_kwargs": arguments for what in ("data", "probabilities")}
    changes["resampling_fn_seg_kwargs"] = arguments and {**arguments, "is_seg": True}
    model = write_model(tmp_path / "model", plans_of(**changes), dataset_json())
    images = write_images(tmp_path / "images", spacing=(1.0, 1.0, 2.0) if not arguments else (0.8, 0.9, 2.5))
    expected = predict_as_nnunet(model, images, tmp_path / "stock")
    assert run(model, images, tmp_path / "ours", "-f", 0) == 0
    assert_same(tmp_path / "ours", expected)


def test_plans_that_name_our_function_predict_alike_in_both(tmp_path):
    changes = {f"resampling_fn_{what}": "resample_separable" for what in ("data", "seg", "probabilities")}
    stock = write_model(tmp_path / "model", plans_of(), dataset_json())
    named = write_model(tmp_path / "named", plans_of(**changes), dataset_json())
    images = write_images(tmp_path / "images")
    expected = predict_as_nnunet(stock, images, tmp_path / "stock")
    assert_same(predict_as_nnunet(named, images, tmp_path / "theirs"), expected)
    assert run(named, images, tmp_path / "ours", "-f", 0) == 0
    assert_same(tmp_path / "ours", expected)


def test_parts_of_the_cases(tmp_path):
    model = write_model(tmp_path / "model", plans_of(), dataset_json())
    images = write_images(tmp_path / "images", sizes=[(8, 16, 16)] * 5)
    for part, names in ((1, {"case_1", "case_4"}), (0, {"case_0", "case_1", "case_3", "case_4"})):
        assert run(model, images, tmp_path / "ours", "-f", 0, "-num_parts", 3, "-part_id", part) == 0
        assert {path.name[:6] for path in (tmp_path / "ours").glob("*.nii.gz")} == names
