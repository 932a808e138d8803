"""Labels and probabilities from rows of logits, against nnU-Net's resampling of all logits and its label manager."""

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape as stock
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.resampling.grids import Grids
from nnunet_ext.resampling.label_rows import LabelRows, ProbabilityRows, axis_matrices, pieces
from nnunet_ext.resampling.matrices import resize_matrix

CLASSES = 5
LABELS = LabelManager({"background": 0, **{f"l{k}": k for k in range(1, CLASSES)}}, None)
REGIONS = LabelManager(
    {"background": 0, "a": [1, 2, 3], "b": [2, 3], "c": [3, 4], "d": 4, "e": [1, 4]}, [4, 3, 2, 1, 5]
)


def logits_of(seed, shape, kind):
    """Of a network that is sure, one that is not, one whose classes often tie, and one with large logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(CLASSES, *shape))
    if kind == "sure":
        logits[:, : shape[0] // 2] *= 0.1
        logits[0] += 20 * (np.arange(shape[2]) < shape[2] // 2)
    if kind == "tied":
        logits = np.round(logits)
    return torch.from_numpy(logits * (300 if kind == "large" else 1)).half()


def rows_of(taker, logits, step):
    for start in range(0, logits.shape[1], step):
        taker.add(logits[:, start : start + step])
    assert taker.complete


def drawn(seed):
    rng = np.random.default_rng(seed)
    shape, new_shape = rng.integers(2, 30, 3), rng.integers(2, 80, 3)
    current = rng.choice([1.0, 5.0], 3)
    return shape, new_shape, current, current * shape / new_shape


@pytest.mark.parametrize("kind", ["sure", "unsure", "large"])
@pytest.mark.parametrize("manager", [LABELS, REGIONS])
def test_labels_are_nnunets(kind, manager):
    for seed in range(12):
        shape, new_shape, *spacings = drawn(seed)
        logits, order_z = logits_of(seed, shape, kind), seed % 2
        resampled = stock(logits.numpy(), new_shape, *spacings, order=1, order_z=order_z, force_separate_z=None)
        expected = manager.convert_logits_to_segmentation(resampled)
        grids = Grids.of(shape, new_shape, *spacings, None)
        for step in (1, 7, 100):
            labels = np.zeros(new_shape, np.uint8)
            regions = manager.regions_class_order if manager.has_regions else None
            rows_of(LabelRows(grids, 1, order_z, labels, regions), logits, step)
            assert np.array_equal(labels, expected), (seed, step)


@pytest.mark.parametrize("manager", [LABELS, REGIONS])
def test_boxes_that_belong_to_one_class(manager):
    """Where nothing is interpolated: wide areas of classes that are far above all others."""
    logits = logits_of(0, (6, 150, 170), "unsure") - 20
    for number, (rows, columns) in enumerate(((0, 0), (0, 80), (70, 0), (70, 80)), 1):
        logits[number, :, rows : rows + 80, columns : columns + 90] += 40
    grids = Grids((6, 150, 170), (13, 290, 330), None)
    resampled = stock(logits.numpy(), grids.new_shape, (1, 1, 1), (1, 1, 1), order=1)
    labels = np.zeros(grids.new_shape, np.uint8)
    rows_of(LabelRows(grids, 1, 0, labels, manager.regions_class_order if manager.has_regions else None), logits, 4)
    assert np.array_equal(labels, manager.convert_logits_to_segmentation(resampled))
    assert len(np.unique(labels[:, 20:100, 20:100])) == 1 and len(np.unique(labels)) >= 4


@pytest.mark.parametrize("classes", [256, 257, 300])
def test_more_classes_than_a_byte_has_values(classes):
    """Classes come in any order of their largest value, and all of them win somewhere."""
    shape = (4, 9, 30)
    logits = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(0)).half()
    logits.flatten(1)[torch.arange(classes), torch.randperm(logits[0].numel())[:classes]] += 50
    grids = Grids(shape, (8, 18, 60), None)
    resampled = stock(logits.numpy(), grids.new_shape, (1, 1, 1), (1, 1, 1), order=1)
    labels = np.zeros(grids.new_shape, np.uint16)
    rows_of(LabelRows(grids, 1, 0, labels), logits, 2)
    assert np.array_equal(labels, resampled.argmax(0)) and len(np.unique(labels)) == classes


def test_equal_logits_go_to_the_first_class():
    logits = logits_of(0, (12, 14, 16), "tied")
    grids = Grids.of((12, 14, 16), (24, 28, 32), (1, 1, 1), (0.5, 0.5, 0.5))  # weights 1/4 and 3/4 are exact
    expected = stock(logits.numpy(), (24, 28, 32), (1, 1, 1), (0.5, 0.5, 0.5), order=1).argmax(0)
    labels = np.zeros((24, 28, 32), np.uint8)
    rows_of(LabelRows(grids, 1, 0, labels), logits, 5)
    assert np.array_equal(labels, expected)


def test_logits_that_need_no_interpolation():
    logits = logits_of(0, (6, 70, 9), "unsure")
    labels = np.zeros((6, 70, 9), np.uint8)
    rows_of(LabelRows(Grids((6, 70, 9), (6, 70, 9), None), 1, 0, labels), logits, 2)
    assert np.array_equal(labels, logits.numpy().argmax(0))


def test_nearest_neighbours():
    logits = logits_of(0, (6, 11, 9), "unsure")
    labels = np.zeros((13, 7, 20), np.uint8)
    rows_of(LabelRows(Grids((6, 11, 9), (13, 7, 20), None), 0, 0, labels), logits, 2)
    assert np.array_equal(labels, stock(logits.numpy(), (13, 7, 20), (1, 1, 1), (1, 1, 1), order=0).argmax(0))


def test_fast_labels_are_those_of_unrounded_logits():
    logits = logits_of(3, (10, 12, 14), "large")
    grids = Grids((10, 12, 14), (33, 35, 37), None)
    unrounded = stock(logits.double().numpy(), (33, 35, 37), (1, 1, 1), (1, 1, 1), order=1)
    rounded = stock(logits.numpy(), (33, 35, 37), (1, 1, 1), (1, 1, 1), order=1).argmax(0)
    labels = np.zeros((33, 35, 37), np.uint8)
    rows_of(LabelRows(grids, 1, 0, labels, exact=False), logits, 3)
    assert np.array_equal(labels, unrounded.argmax(0)) and not np.array_equal(labels, rounded)


def test_regions_leave_the_other_voxels_alone():
    logits = torch.full((1, 4, 4, 4), -1.0).half()
    logits[:, 2:] = 1
    labels = np.full((8, 8, 8), 9, np.uint8)
    rows_of(LabelRows(Grids((4, 4, 4), (8, 8, 8), None), 1, 0, labels, [7]), logits, 1)
    assert set(np.unique(labels[:4])) == {9} and set(np.unique(labels[4:])) == {7}


def test_a_region_begins_above_one_half():
    """The sigmoid of the smallest float16 above zero is one half in float32."""
    values = torch.tensor([0.0, 6e-8, 1e-7, 2e-7, 6e-7, 1e-3, -6e-8, -1.0]).half()
    logits = values.view(1, 1, 1, -1)
    labels = np.zeros((1, 1, len(values)), np.uint8)
    rows_of(LabelRows(Grids(labels.shape, labels.shape, None), 1, 0, labels, [1]), logits, 1)
    assert np.array_equal(labels.ravel(), (torch.sigmoid(values.float()) > 0.5).int().numpy())
    assert labels.ravel()[1] == 0 and labels.ravel()[5] == 1


@pytest.mark.parametrize("manager", [LABELS, REGIONS])
def test_probabilities_are_nnunets(manager):
    for seed in range(6):
        shape, new_shape, *spacings = drawn(seed)
        logits = logits_of(seed, shape, "unsure")
        resampled = stock(logits.numpy(), new_shape, *spacings, order=1, order_z=0, force_separate_z=None)
        expected = manager.apply_inference_nonlin(resampled)
        found = np.zeros((CLASSES, *new_shape), np.float32)
        rows_of(
            ProbabilityRows(Grids.of(shape, new_shape, *spacings, None), 1, 0, found, manager.inference_nonlin),
            logits,
            4,
        )
        difference = np.abs(found - expected.numpy())
        assert (difference > 2e-7).mean() < 5e-3  # one step of float32 below one
        assert difference.max() < 1e-3  # halfway between two float16, rounding errors choose: one step of a logit


def test_a_view_of_a_larger_array_is_written_to():
    logits = logits_of(0, (5, 6, 7), "unsure")
    whole = np.full((20, 12, 20), 99, np.uint8)
    rows_of(LabelRows(Grids((5, 6, 7), (10, 12, 14), None), 1, 0, whole.transpose(2, 1, 0)[4:14, :, 3:17]), logits, 2)
    inside = np.zeros(whole.shape, bool)
    inside.transpose(2, 1, 0)[4:14, :, 3:17] = True
    assert (whole[~inside] == 99).all() and whole[inside].max() < CLASSES


def test_only_the_rows_that_are_needed_are_kept():
    taker = LabelRows(Grids((40, 5, 5), (80, 5, 5), None), 1, 0, np.zeros((80, 5, 5), np.uint8))
    logits = logits_of(0, (40, 5, 5), "unsure")
    kept = []
    for row in range(40):
        taker.add(logits[:, row : row + 1])
        kept.append(taker.kept.shape[1])
    assert taker.complete and max(kept) <= 10 and kept[-1] == 0  # 16 rows of the result come of 9 or 10


@pytest.mark.parametrize(("order", "order_z"), [(3, 0), (1, 3)])
def test_other_orders_are_refused(order, order_z):
    grids = Grids((9, 9, 9), (12, 12, 12), 0)
    assert axis_matrices(grids, order, order_z) is None
    with pytest.raises(ValueError, match="orders 0 and 1"):
        LabelRows(grids, order, order_z, np.zeros((12, 12, 12), np.uint8))


def test_pieces_are_the_matrix():
    matrix = resize_matrix(50, 131, 1)
    found = np.zeros_like(matrix)
    for piece in pieces(matrix, 64):
        low, high = piece.source
        found[piece.start : piece.stop, low:high] = piece.double
        for voxel in range(piece.stop - piece.start):
            row = np.zeros(high - low)
            row[piece.first[voxel]] += piece.weights[0][voxel]
            row[piece.second[voxel]] += piece.weights[1][voxel]
            assert np.array_equal(row, piece.double[voxel].numpy())
    assert np.array_equal(found, matrix)
