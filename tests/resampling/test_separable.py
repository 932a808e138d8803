"""`resample_separable` against nnU-Net's own function, on grids of every kind."""

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape as stock
from scipy.ndimage import gaussian_filter

from nnunet_ext.resampling.grids import Grids
from nnunet_ext.resampling.matrices import apply_matrices, resize_matrix, sample_matrix
from nnunet_ext.resampling.separable import TIE, resample_separable


def drawn(seed, largest=24):
    """Two sizes, their spacings, orders, and which rule says what the thick axis is."""
    rng = np.random.default_rng(seed)
    shape, new_shape = rng.integers(1, largest, 3), rng.integers(1, largest, 3)
    if seed % 5 == 0:
        new_shape[seed % 3] = shape[seed % 3]
    current = rng.choice([1.0, 1.2, 5.0], 3)
    how = {"order": int(rng.integers(0, 6)), "order_z": int(rng.integers(0, 4))}
    return rng, shape, new_shape, current, current * shape / new_shape, how, (None, True, False)[seed % 3]


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_images_are_nnunets(first):
    for seed in range(first, first + 50):
        rng, shape, *grid, how, separate = drawn(seed)
        image = rng.normal(size=(2, *shape)).astype(np.float32) * 10.0 ** rng.integers(-2, 4)
        expected = stock(image.copy(), *grid, force_separate_z=separate, **how)
        found = resample_separable(image, *grid, force_separate_z=separate, **how)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-6 * np.ptp(image), seed  # one step of float32


def label_map(rng, shape, labels):
    """Smooth areas of so many labels, of which the first is -1 as outside of nnU-Net's mask."""
    noise = [gaussian_filter(rng.normal(size=shape), 2) for _ in range(labels)]
    return (np.argmax(noise, 0) - 1).astype(np.int8)[None]


def indicators(labels, grid, how, separate):
    """Each label's indicator as nnU-Net's function interpolates an image of it."""
    return {
        value: stock((labels == value).astype(np.float64), *grid, force_separate_z=separate, **how)[0]
        for value in np.unique(labels)
    }


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_label_maps_are_nnunets_except_for_ties(first):
    """Without rounding errors two labels often have equal indicators; nnU-Net's rounding then chooses."""
    equal = voxels = 0
    for seed in range(first, first + 40):
        rng, shape, *grid, how, separate = drawn(seed)
        how = {"order": seed % 4, "order_z": 0}
        labels = label_map(rng, shape, 4)
        expected = stock(labels.copy(), *grid, is_seg=True, force_separate_z=separate, **how)
        found = resample_separable(labels, *grid, is_seg=True, force_separate_z=separate, **how)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        different = np.argwhere(found[0] != expected[0])
        equal, voxels = equal + found.size - len(different), voxels + found.size
        if len(different):
            scores = indicators(labels, grid, how, separate)
            for voxel in map(tuple, different):
                ours, theirs = found[0][voxel], expected[0][voxel]
                assert abs(scores[ours][voxel] - scores[theirs][voxel]) < TIE, (seed, voxel)
    assert equal / voxels > 0.999


def test_label_maps_with_splines_of_a_thick_axis():
    """What is above one half wins there, the last label of all, and nothing where no label is."""
    rng = np.random.default_rng(0)
    labels = label_map(rng, (9, 20, 22), 3)
    grid = ((17, 13, 30), (5.0, 1.0, 1.0), (2.6, 1.54, 0.73))
    for order_z in (1, 3):
        how = {"is_seg": True, "order": 1, "order_z": order_z, "force_separate_z": None}
        expected, found = stock(labels.copy(), *grid, **how), resample_separable(labels, *grid, **how)
        assert (found == expected).mean() > 0.9999 and 0 < (found == 0).mean() < 1


def test_ties_go_to_the_nearest_voxel_and_else_to_the_smallest_label():
    row = np.array([3, 1, 1, 2, 2, 7], np.int8).reshape(1, 1, 1, 6)
    halved = resample_separable(row, (1, 1, 3), (1, 1, 1), (1, 1, 2), is_seg=True, order=1)
    assert halved.ravel().tolist() == stock(row, (1, 1, 3), (1, 1, 1), (1, 1, 2), is_seg=True, order=1).ravel().tolist()
    block = np.array([3, 1, 1, 1, 2, 2, 2, 3], np.int8).reshape(1, 2, 2, 2)  # 1 and 2 win, the nearest voxel is a 3
    assert resample_separable(block, (1, 1, 1), (1, 1, 1), (2, 2, 2), is_seg=True, order=1).item() == 1


def test_one_label_stays_everywhere():
    labels = np.full((1, 5, 6, 7), 4, np.int16)
    assert (resample_separable(labels, (9, 3, 8), (1, 1, 1), (1, 1, 1), is_seg=True, order=1) == 4).all()


def test_labels_of_any_type_and_size():
    labels = np.array([0, 100000, 100000, 0, 5, 5], np.int32).reshape(1, 1, 1, 6)
    for values in (labels, labels.astype(np.float32)):
        found = resample_separable(values, (1, 1, 12), (1, 1, 1), (1, 1, 0.5), is_seg=True, order=1)
        assert found.dtype == values.dtype
        assert np.array_equal(found, stock(values.copy(), (1, 1, 12), (1, 1, 1), (1, 1, 0.5), is_seg=True, order=1))


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int16])
def test_the_type_of_the_data_is_kept(kind):
    image = (np.random.default_rng(0).normal(size=(1, 8, 9, 10)) * 50).astype(kind)
    grid = ((12, 7, 15), (1, 1, 1), (0.7, 1.3, 0.67))
    expected, found = stock(image.copy(), *grid, order=1), resample_separable(image, *grid, order=1)
    assert found.dtype == kind
    if kind is np.int16:  # nnU-Net cuts the fraction off, which rounding moves across a whole number
        assert np.abs(found - expected).max() <= 1 and (found == expected).mean() > 0.99
    elif kind is np.float16:  # halfway between two float16, rounding errors of float64 choose
        exact = stock(image.astype(np.float64), *grid, order=1)
        halfway = np.spacing(np.maximum(np.abs(found), np.abs(expected))).astype(np.float64) / 2
        assert (np.abs(found - exact) <= halfway + 1e-9).all() and (found == expected).mean() > 0.99
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_tensors_and_equal_grids():
    image = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    grid = ((8, 5, 3), (1, 1, 1), (0.5, 1, 2))
    assert np.array_equal(resample_separable(torch.from_numpy(image), *grid), resample_separable(image, *grid))
    assert resample_separable(image, (4, 5, 6), (1, 1, 1), (1, 1, 1)) is image


def test_values_that_are_not_finite_are_left_to_nnunet():
    image = np.random.default_rng(0).normal(size=(2, 6, 7, 8)).astype(np.float32)
    image[0, 3, 3, 3] = np.nan
    grid = ((9, 9, 9), (5, 1, 1), (3.3, 0.8, 0.9))
    expected = stock(image.copy(), *grid, order=1, force_separate_z=None)
    found = resample_separable(image, *grid, order=1, force_separate_z=None)
    assert np.array_equal(np.isnan(found), np.isnan(expected)) and 0 < np.isnan(found).sum() < found[0].size
    assert np.nanmax(np.abs(found - expected)) < 1e-6


def test_what_is_no_volume_with_channels_is_refused():
    with pytest.raises(ValueError, match=r"\[C, D, H, W\]"):
        resample_separable(np.zeros((4, 5, 6)), (4, 5, 6), (1, 1, 1), (1, 1, 1))
    with pytest.raises(ValueError, match="three sizes"):
        resample_separable(np.zeros((1, 4, 5, 6)), (5, 6), (1, 1), (1, 1))


def test_thin_slices_are_nnunets_choice():
    grids = Grids.of((4, 5, 6), (8, 5, 6), (5, 1, 1), (2.5, 1, 1), None)
    assert grids.thick == 0 and not grids.equal
    assert Grids.of((4, 5, 6), (8, 5, 6), (2, 1, 1), (1, 1, 1), None).thick is None
    assert Grids.of((4, 5, 6), (8, 5, 6), (2, 1, 1), (1, 1, 1), None, 1.5).thick == 0


def test_matrices_cannot_be_changed_and_add_up_to_one():
    for matrix in (resize_matrix(7, 11, 3), sample_matrix(7, 11, 1), resize_matrix(9, 9, 5)):
        assert np.allclose(matrix.sum(1), 1)
        with pytest.raises(ValueError, match="read-only"):
            matrix[0, 0] = 2


def test_axes_longer_than_a_block_of_rows():
    x = torch.randn(3, 150, 2, dtype=torch.float64)
    matrices = [np.eye(3), resize_matrix(150, 190, 3), resize_matrix(2, 70, 1)]
    dense = torch.einsum(
        "mn,ank,ok->amo", torch.from_numpy(matrices[1].copy()), x, torch.from_numpy(matrices[2].copy())
    )
    assert torch.allclose(apply_matrices(x, matrices), dense, atol=1e-9)
