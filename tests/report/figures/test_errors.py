"""Where a case is most wrong, and what is wrong there."""

import numpy as np
import pytest

from nnunet_ext.report.figures.overlay import case_figure, error_map, worst_slice

CLASSES = {(1,): "outer", (2,): "inner"}
REGIONS = {(1, 2): "whole", (2,): "inner"}


def row(*values):
    return np.array(values).reshape(1, 1, -1)


def test_errors_are_missed_extra_or_another_class():
    reference, prediction = row(0, 1, 0, 1, 2, 1, 2), row(0, 1, 1, 0, 1, 2, 2)
    assert error_map(reference, prediction, CLASSES, None).ravel().tolist() == [0, 0, 2, 1, 3, 3, 0]


def test_in_regions_only_the_membership_that_differs_counts():
    reference, prediction = row(2, 1, 0, 2), row(1, 2, 2, 0)
    assert error_map(reference, prediction, REGIONS, None).ravel().tolist() == [1, 2, 2, 1]


def test_ignored_voxels_are_never_wrong():
    assert error_map(row(3, 3, 1), row(0, 1, 0), CLASSES, 3).ravel().tolist() == [0, 0, 1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_has_the_most_wrong_voxels_of_all_across_the_coarsest_axis(axis):
    rng = np.random.default_rng(axis)
    errors = (rng.random((9, 8, 7)) < 0.3).astype(np.uint8)
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 3.0
    where = worst_slice(errors, spacing, errors)
    counts = [np.count_nonzero(np.take(errors, index, axis)) for index in range(errors.shape[axis])]
    assert (where.axis, where.index) == (axis, int(np.argmax(counts)))
    assert (where.wrong, where.wrong_in_case) == (max(counts), sum(counts))


def test_a_case_without_errors_shows_the_slice_with_most_of_the_reference():
    reference = np.zeros((4, 5, 5))
    reference[1, 2, 2] = reference[3, :3] = 1
    where = worst_slice(np.zeros((4, 5, 5)), (1, 1, 1), reference)
    assert (where.index, where.wrong) == (3, 0)


def test_the_figure_shows_that_slice_in_true_proportions():
    rng = np.random.default_rng(0)
    reference, prediction = rng.integers(0, 3, (2, 6, 12, 10))
    errors = error_map(reference, prediction, CLASSES, None)
    spacing = (5.0, 2.0, 1.0)
    where = worst_slice(errors, spacing, reference)
    image = rng.normal(size=(6, 12, 10))
    axes = case_figure(image, reference, prediction, errors, where, spacing, CLASSES).axes
    assert [ax.get_title() for ax in axes] == ["Reference", "Prediction", "Errors"]
    assert np.array_equal(axes[0].images[0].get_array(), image[where.index])
    assert np.array_equal(axes[2].images[1].get_array().filled(0), errors[where.index])
    assert all(ax.get_aspect() == 2.0 for ax in axes)


def test_two_dimensional_images_have_their_one_slice():
    reference = np.zeros((1, 8, 8), int)
    reference[0, 2:5, 2:5] = 1
    errors = error_map(reference, 0 * reference, CLASSES, None)
    where = worst_slice(errors, (999, 1, 1), reference)
    assert (where.axis, where.index, where.wrong) == (0, 0, 9)
    assert case_figure(None, reference, 0 * reference, errors, where, (999, 1, 1), CLASSES).axes
