"""Tiles of whole cases: the ones that nnU-Net's prediction makes, with their targets."""

import json

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from contract.trainer import LABELS, REGIONS, STRIDES
from end_to_end.stock import handmade_plans
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.trainers.whole_cases import StoredSlices, case_of, corners, tiles_of


def nnunets_tiles(image, patch):
    """The tiles of nnU-Net's own predictor, slice by slice in 2D, in its order."""
    plans = handmade_plans(None, strides=STRIDES)
    configuration = "2d" if len(patch) == 2 else "3d_fullres"
    plans["configurations"][configuration]["patch_size"] = list(patch)
    plans = PlansManager(json.loads(json.dumps(plans)))
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.manual_initialization(None, plans, plans.get_configuration(configuration), None, LABELS, "-", None)
    padded, inner = pad_nd_image(image, patch, "constant", {"value": 0}, True, None)
    slicers = predictor._internal_get_sliding_window_slicers(padded.shape[1:])
    return [padded[slicer] for slicer in slicers], inner[1]


@pytest.mark.parametrize(
    ("shape", "patch"), [((9, 20, 33), (4, 16, 16)), ((3, 20, 7), (6, 16, 16)), ((8, 16, 16),) * 2]
)
def test_3d_tiles_are_nnunets(shape, patch):
    image = torch.randn(2, *shape)
    target = (image[:1] > 0).short()
    expected, inner = nnunets_tiles(image, patch)
    truths, _ = nnunets_tiles(target, patch)
    found = list(tiles_of(image, target, patch))
    assert len(found) == len(expected)
    depths = set()
    for (tile, true, inside), wanted, truth in zip(found, expected, truths, strict=True):
        assert torch.equal(tile, wanted[None]) and torch.equal(true, truth[None])
        assert inside.shape == (patch[0],)
        depths.add(tuple(inside.tolist()))
    if shape[0] < patch[0]:
        assert depths == {tuple(inner.start <= k < inner.stop for k in range(patch[0]))}
    else:
        assert depths == {(True,) * patch[0]}


@pytest.mark.parametrize(("shape", "patch"), [((19, 20, 33), (16, 16)), ((2, 9, 40), (16, 24))])
def test_2d_tiles_are_nnunets_in_batches_of_slices(shape, patch):
    image = torch.randn(1, *shape)
    target = (image > 0).short()
    expected, _ = nnunets_tiles(image, patch)
    found, sizes = {}, []
    places = len(expected) // shape[0]
    for number, (tile, true, inside) in enumerate(tiles_of(image, target, patch)):
        sizes.append(len(tile))
        assert inside.tolist() == [True] * len(tile)
        first, place = 16 * (number // places), number % places
        for offset, (one, truth) in enumerate(zip(tile, true, strict=True)):
            found[(first + offset) * places + place] = one
            assert torch.equal(truth, (one > 0).short())
    assert sizes == ([16] * places + [3] * places if shape[0] == 19 else [2] * places)
    assert [k for k in sorted(found)] == list(range(len(expected)))
    assert all(torch.equal(found[k], wanted) for k, wanted in enumerate(expected))


class Stored:
    """A data set of one case, as nnU-Net's classes give it."""

    def __init__(self, segmentation, previous=None):
        self.segmentation, self.previous = np.array(segmentation, np.int8).reshape(1, 1, 1, -1), previous

    def load_case(self, name):
        image = np.arange(self.segmentation.size, dtype=np.float32).reshape(self.segmentation.shape)
        return image, self.segmentation, self.previous, {}


def labels_of(dataset_json):
    return PlansManager(handmade_plans(None, strides=STRIDES)).get_label_manager(dataset_json)


def test_outside_of_the_image_is_background():
    image, target = case_of(Stored([-1, 0, 1, 2]), "a", labels_of(LABELS))
    assert target.flatten().tolist() == [0, 0, 1, 2] and target.dtype == torch.int16
    assert image.flatten().tolist() == [0, 1, 2, 3]


def test_regions_are_masks_and_the_ignored_pixels_the_last():
    without = {name: value for name, value in REGIONS["labels"].items() if name != "ignore"}
    plain, told = labels_of({**REGIONS, "labels": without}), labels_of(REGIONS)
    _, target = case_of(Stored([-1, 0, 1, 2, 3]), "a", told)
    masks = [[label in np.atleast_1d(region) for label in (0, 0, 1, 2, 3)] for region in told.foreground_regions]
    assert target[:, 0, 0].tolist() == [*masks, [0, 0, 0, 0, 1]]
    _, target = case_of(Stored([0, 1, 2]), "a", plain)
    assert len(target) == len(plain.foreground_regions)


def test_a_cascades_earlier_segmentation_becomes_channels():
    previous = np.array([0, 1, 2, 2]).reshape(1, 1, 4)
    image, _ = case_of(Stored([0, 1, 2, 1], previous), "a", labels_of(LABELS), cascaded=True)
    assert image[:, 0, 0].tolist() == [[0, 1, 2, 3], [0, 1, 0, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("whole", "part", "expected"),
    [(16, 16, [0]), (17, 16, [0, 1]), (40, 16, [0, 12, 24]), (48, 16, [0, 16, 32]), (9, 16, [-4]), (10, 16, [-3])],
)
def test_windows_cover_an_image_and_no_more_of_them_than_needed(whole, part, expected):
    assert corners([whole, part], [part, part]) == [expected, [0]]
    covered = {k for first in expected for k in range(first, first + part)}
    assert covered >= set(range(whole))


def test_slices_are_cut_out_of_stored_cases(tmp_path):
    rng, names = np.random.default_rng(0), ("b", "a")
    images = {name: rng.normal(size=(2, 3, 9, 20)).astype(np.float32) for name in names}
    labels = {name: rng.integers(-1, 3, (1, 3, 9, 20)).astype(np.int8) for name in names}
    for name in names:
        nnUNetDatasetBlosc2.save_case(images[name], labels[name], {}, str(tmp_path / name))
    stored = StoredSlices(nnUNetDatasetBlosc2(str(tmp_path)), (12, 16), labels_of(LABELS))
    assert stored.names == ["a", "b"]
    parts = list(stored.of_case(1))
    assert [places[:, 2:].unique(dim=0).tolist() for places, _, _ in parts] == [[[-2, 0]], [[-2, 4]]]
    for places, slices, target in parts:
        assert places[:, :2].tolist() == [[1, 0], [1, 1], [1, 2]]
        x = int(places[0, 3])
        for z in range(3):
            image, true = (np.pad(v["b"][:, z, :, x : x + 16], [(0, 0), (2, 1), (0, 0)]) for v in (images, labels))
            assert torch.equal(slices[z], torch.from_numpy(image))
            assert torch.equal(target[z], torch.from_numpy(np.maximum(true, 0).astype(np.int16)))
        assert torch.equal(stored.at(places[[2, 0]]), slices[[2, 0]])


def test_a_box_of_a_cascade_has_its_earlier_segmentation():
    previous = np.array([0, 1, 2, 2]).reshape(1, 1, 4)
    case = Stored([0, 1, 2, 1], previous)
    image, target = case_of(case, "a", labels_of(LABELS), True, [(0, 1), (0, 1), (2, 5)])
    assert image[:, 0, 0].tolist() == [[2, 3, 0], [0, 0, 0], [1, 1, 0]] and target.flatten().tolist() == [2, 1, 0]
