"""Preprocessing for prediction against nnU-Net's own."""

import numpy as np
import pytest
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero as stock_crop
from nnunetv2.preprocessing.preprocessors import default_preprocessor as module
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from prediction.models import dataset_json, plans_of, write_images, write_model
from scipy.ndimage import binary_fill_holes

from nnunet_ext.prediction.model import load_model
from nnunet_ext.prediction.preprocessing import crop_to_nonzero, preprocess, without_holes
from nnunet_ext.prediction.timing import Timing


def masks():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.3, 0.5, 0.7, 0.98, 1.0):
        for shape in ((9, 10, 11), (1, 14, 15)):
            yield rng.random(shape) < share
    shell = np.zeros((9, 9, 9), bool)
    shell[1:8, 1:8, 1:8] = True
    shell[3:6, 3:6, 3:6] = False
    yield shell
    open_shell = shell.copy()
    open_shell[4, 4, :4] = False
    yield open_shell
    corner = shell.copy()
    corner[7, 7, 7] = corner[2, 2, 2] = False  # meets the outside at a corner of a voxel only
    yield corner


def test_holes_are_filled_as_by_scipy():
    for mask in masks():
        assert np.array_equal(without_holes(mask), binary_fill_holes(mask))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labelled", [False, True])
def test_cropping_is_nnunets(channels, labelled):
    rng = np.random.default_rng(1)
    for mask in masks():
        data = np.where(rng.random((channels, *mask.shape)) < 0.7, mask, 0) * rng.normal(size=(channels, *mask.shape))
        seg = rng.integers(0, 3, (1, *mask.shape)).astype(np.int16) if labelled else None
        expected = stock_crop(data.copy(), None if seg is None else seg.copy())
        found = crop_to_nonzero(data.copy(), None if seg is None else seg.copy())
        for ours, theirs in zip(found, expected, strict=True):
            assert np.array_equal(ours, theirs) and np.asarray(ours).dtype == np.asarray(theirs).dtype


@pytest.mark.parametrize("scheme", ["ZScoreNormalization", "CTNormalization", "RescaleTo01Normalization"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_case_is_nnunets(tmp_path, scheme, masked):
    """Cropped, turned, normalised and resampled, with thick slices; and with a label map of the stage before."""
    plans = plans_of(transpose=(1, 2, 0), spacing=(4.0, 1.1, 0.7), normalization_schemes=[scheme] * 2,
                     use_mask_for_norm=[masked, False])  # fmt: skip
    model = load_model(write_model(tmp_path / "model", plans, dataset_json(channels=2)), (0,), "checkpoint_final.pth")
    images = sorted(map(str, write_images(tmp_path / "images", [(30, 28, 20)], channels=2, border=3).glob("*.nii.gz")))
    before = module.crop_to_nonzero, module.DefaultPreprocessor._normalize
    timing = Timing()
    for previous in (None, images[0]):
        if previous is not None:
            previous = str(tmp_path / "previous.nii.gz")
            import SimpleITK as sitk

            image = sitk.ReadImage(images[0])
            sitk.WriteImage(sitk.Cast(image > 0.5, sitk.sitkUInt8) + sitk.Cast(image > 1.5, sitk.sitkUInt8), previous)
        preprocessor = module.DefaultPreprocessor(verbose=False)
        data, seg, facts = preprocessor.run_case(images, previous, model.plans, model.configuration, model.dataset)
        if previous is not None:
            one_hot = convert_labelmap_to_one_hot(seg[0], model.labels.foreground_labels, data.dtype)
            data = np.vstack((data, one_hot))
        with timing.case("case"):
            found, properties = preprocess(model, images, previous, timing)
        assert found.shape == data.shape and found.numpy().dtype == np.float32
        assert np.abs(found.numpy() - data).max() <= 1e-5 * np.ptp(data)
        for key in ("spacing", "shape_before_cropping", "bbox_used_for_cropping"):
            assert properties[key] == facts[key]
        assert properties["shape_before_cropping"] != properties["shape_after_cropping_and_before_resampling"]
    assert (module.crop_to_nonzero, module.DefaultPreprocessor._normalize) == before
    assert {"read", "crop", "normalise", "resample"} == set(timing.report()["cases"]["case"])


def test_another_preprocessor_is_asked_itself(tmp_path):
    model = load_model(write_model(tmp_path / "model", plans_of(), dataset_json()), (0,), "checkpoint_final.pth")
    images = [str(path) for path in write_images(tmp_path / "images", [(8, 16, 16)]).glob("*.nii.gz")]

    class Doubling(module.DefaultPreprocessor):
        def run_case_npy(self, data, *rest):
            return super().run_case_npy(2 * data + 1, *rest)

        def _normalize(self, data, *rest):
            return data

    type(model.configuration).preprocessor_class.fget.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.configuration), "preprocessor_class", property(lambda self: Doubling))
        timing = Timing()
        with timing.case("case"):
            found, _ = preprocess(model, images, None, timing)
            expected = Doubling(verbose=False).run_case(images, None, model.plans, model.configuration, model.dataset)
    assert np.array_equal(found.numpy(), expected[0]) and found.mean() > 1.5
