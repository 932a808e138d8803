"""What the page's viewer gets: crops that lie as the patient does, in few bytes, and the library that draws them."""

import base64
import gzip
import hashlib
import json
from importlib.resources import files

import nibabel
import numpy as np
import pytest

from nnunet_ext.report.figures.overlay import error_map
from nnunet_ext.report.figures.palette import ERRORS, label_colour
from nnunet_ext.report.viewer import Viewer

CLASSES = {(1, 2): "whole", (2,): "core"}
SPACING = (3.0, 2.0, 1.0)


def volumes(shape=(12, 30, 40)):
    """Image, reference and prediction: a core near the right, front, lower corner of the whole."""
    reference = np.zeros(shape, np.int16)
    reference[4:8, 12:20, 16:28] = 1
    reference[4, 12, 16] = 2
    prediction = np.where(reference == 2, 1, reference)
    image = np.arange(reference.size, dtype=float).reshape(shape) % 250 + 1000 * reference
    return image, reference, prediction


def added(megabytes=5.0, in_lps=True, image=True, arrays=None, expected=1):
    grey, reference, prediction = arrays or volumes()
    errors = error_map(reference, prediction, CLASSES, None)
    viewer = Viewer(megabytes, expected)
    labels = {"Reference": reference, "Prediction": prediction}
    fits = viewer.add("case", grey if image else None, labels, {"Errors": errors}, SPACING, CLASSES, in_lps)
    return viewer, fits


def opened(text):
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def test_volumes_lie_as_the_patient_does():
    """The core lies at the right, front and lower end of the whole: high x, high y, low z of RAS."""
    viewer, fits = added()
    layer = opened(viewer.cases[0].layers[0].volume)
    assert fits and nibabel.aff2axcodes(layer.affine) == ("R", "A", "S")
    assert layer.header.get_zooms() == SPACING[::-1]
    values = np.asarray(layer.dataobj)
    x, y, z = (axis[0] for axis in np.nonzero(values == 2))
    whole = [(axis.min(), axis.max()) for axis in np.nonzero(values)]
    assert (x, y, z) == (whole[0][1], whole[1][1], whole[2][0])
    assert viewer.cases[0].shape == values.shape


def test_the_crop_holds_what_is_segmented_with_a_margin():
    viewer, _ = added()
    values = np.asarray(opened(viewer.cases[0].layers[0].volume).dataobj)
    assert (values > 0).sum() == 4 * 8 * 12
    assert values.shape == (12 + 2 * 4, 8 + 2 * 4, 12)


def test_grey_values_keep_their_unit():
    viewer, _ = added()
    case = viewer.cases[0]
    values = np.asarray(opened(case.image).dataobj)
    low, high = case.limits
    assert values.min() == pytest.approx(low) and values.max() == pytest.approx(high)
    assert low <= case.window[0] < case.window[1] <= high
    grey, reference, _ = volumes()
    cut = grey[0:12, 8:24, 12:32].T[::-1, ::-1]
    inside = (cut > low) & (cut < high)
    assert np.abs(values - cut)[inside].max() <= (high - low) / 255


def test_regions_and_errors_have_the_colours_of_the_pictures():
    viewer, _ = added()
    reference, prediction, errors = viewer.cases[0].layers
    assert reference.colours == [tuple(round(255 * c) for c in label_colour(k)) for k in (0, 1)]
    assert (np.asarray(opened(reference.volume).dataobj) == 2).sum() == 1
    assert (np.asarray(opened(prediction.volume).dataobj) == 2).sum() == 0
    assert np.unique(np.asarray(opened(errors.volume).dataobj)).tolist() == [0, 1], "the core is missed"
    assert list(viewer.legend) == ["whole", "core", ERRORS[1][0]]


def test_the_cross_starts_in_the_slice_with_the_most_errors():
    viewer, _ = added()
    case = viewer.cases[0]
    errors = np.asarray(opened(case.layers[2].volume).dataobj)
    place = tuple(int(share * size) for share, size in zip(case.start, errors.shape, strict=True))
    assert errors[place] == 1


def noisy():
    """Volumes of which no byte can be saved but by leaving voxels out."""
    grey, reference, prediction = volumes()
    return np.random.default_rng(0).normal(size=grey.shape) + 5.0 * reference, reference, prediction


def test_large_cases_are_coarsened_along_the_finest_axis_first_and_say_so():
    whole, _ = added(arrays=noisy())
    size = whole.cases[0].size
    viewer, fits = added(megabytes=0.7e-6 * size, arrays=noisy())
    assert fits and viewer.cases[0].size <= 0.7 * size
    assert opened(viewer.cases[0].image).header.get_zooms() == (2.0, 2.0, 3.0)
    assert "of each 2 × 1 × 1 voxels" in viewer.cases[0].remark and not whole.cases[0].remark


def test_the_space_is_shared_by_the_expected_cases():
    size = added(arrays=noisy())[0].cases[0].size
    assert added(megabytes=3.1e-6 * size, expected=3, arrays=noisy())[0].cases[0].size == size
    assert added(megabytes=2.9e-6 * size, expected=3, arrays=noisy())[0].cases[0].size < size


def test_what_does_not_fit_is_left_out():
    viewer, fits = added(megabytes=1e-5)
    assert not fits and viewer.cases == [] and viewer.legend == {}


def test_without_image_and_sides_there_are_labels_alone():
    viewer, fits = added(image=False, in_lps=False)
    assert fits and not viewer.cases[0].sides_known
    assert not np.asarray(opened(viewer.cases[0].image).dataobj).any()
    json.dumps(viewer.content)


def test_the_library_is_what_its_authors_published():
    folder = files("nnunet_ext.report").joinpath("niivue")
    digest = hashlib.sha256(folder.joinpath("niivue.umd.js").read_bytes()).hexdigest()
    assert digest == "43d966b756982173fdd0cd37736c348b4db02238cdcbdd21fb16714963aad3fa"
    assert "NiiVue 0.44.2," in folder.joinpath("README.md").read_text()
    assert "BSD 2-Clause" in folder.joinpath("LICENSE").read_text()
