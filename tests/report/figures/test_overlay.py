"""The overlay figure: which slices it takes, its grey window and colours, and the PNG itself."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunet_ext.report.figures.overlay import choose_slices, draw_outline, grey_window, slices_png
from nnunet_ext.report.figures.palette import label_colour


def volume(shape=(12, 20, 16)):
    truth = np.zeros(shape, np.uint8)
    truth[3:9, 5:15, 4:10] = 1
    truth[7:8, 2:4, 12:14] = 2
    return np.random.default_rng(0).normal(0, 10, shape) + 100.0 * truth, truth


def test_slices_show_what_is_small_too():
    _, truth = volume()
    assert choose_slices(truth, 1) == [7], "the only slice with label 2"
    chosen = choose_slices(truth, 3)
    assert len(chosen) == 3 and 7 in chosen
    assert all(truth[index].any() for index in chosen)
    assert chosen == sorted(chosen)


def test_slices_lie_apart():
    labels = np.ones((30, 4, 4), np.uint8)
    chosen = choose_slices(labels, 3)
    assert len(chosen) == 3
    assert min(np.diff(chosen)) >= 5


def test_how_far_apart_depends_on_the_labelled_slices_alone():
    labels = np.zeros((40, 4, 4), np.uint8)
    labels[28:38] = 1  # a sixth of ten slices, rounded
    chosen = choose_slices(labels, 3)
    assert chosen == [28, 30, 32]


def test_an_empty_case_shows_its_middle():
    assert choose_slices(np.zeros((9, 4, 4), np.uint8), 3) == [4]


def test_the_grey_window_follows_the_labelled_voxels_not_the_air():
    image = np.full((4, 10, 10), -1000.0)
    inside = np.zeros(image.shape, bool)
    inside[:, 2:8, 2:8] = True
    image[inside] = np.linspace(40, 60, inside.sum())
    low, high = grey_window(image, inside)
    assert 10 < low < 42 and 58 < high < 90
    low, high = grey_window(np.zeros((2, 2, 2)), np.zeros((2, 2, 2), bool))
    assert low < high


def test_outlines_run_along_the_edges_of_voxels():
    mask = np.zeros((4, 5), bool)
    mask[1, 2:4] = True
    ax = Figure().subplots()
    draw_outline(ax, mask, "white", 1)
    segments = {tuple(map(tuple, segment)) for segment in ax.collections[0].get_segments()}
    sides = [((x, y), (x + 1, y)) for x in (1.5, 2.5) for y in (0.5, 1.5)]
    assert segments == {*sides, ((1.5, 0.5), (1.5, 1.5)), ((3.5, 0.5), (3.5, 1.5))}


def colour_share(png, colour, tolerance=0.12):
    return (np.abs(png[..., :3] - np.array(colour)).max(-1) < tolerance).mean()


def test_the_png_shows_both_label_maps_and_the_legend(tmp_path):
    image, truth = volume()
    both, neither = tmp_path / "both.png", tmp_path / "neither.png"
    names = {(1,): "liver", (2,): "spleen"}
    slices_png(both, image, truth, truth, spacing=(3, 1, 1), classes=names, title="case", scores={"liver": 0.9})
    slices_png(neither, image, truth, np.zeros_like(truth), spacing=(3, 1, 1), classes=names)
    pictures = [imread(path) for path in (both, neither)]
    assert all(min(picture.shape[:2]) > 300 for picture in pictures)
    right = [picture[:, 2 * picture.shape[1] // 3 :, :3] for picture in pictures]
    saturation = [(part.max(-1) - part.min(-1) > 0.2).mean() for part in right]
    assert saturation[0] > 0.05 > saturation[1], "the prediction stands in the right-hand panels"
    assert colour_share(pictures[0], label_colour(1)) > 0, "the legend has the second label"
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".png"] == []


def test_panels_have_the_aspect_of_the_spacing(tmp_path):
    image, truth = volume((12, 20, 20))
    heights = []
    for spacing in ((3, 1, 1), (3, 2, 1)):
        slices_png(tmp_path / "x.png", image, truth, truth, spacing=spacing, classes={(1,): "a", (2,): "b"}, rows=1)
        heights.append(imread(tmp_path / "x.png").shape[0])
    assert heights[1] > 1.5 * heights[0]


def test_the_axis_of_thick_slices_is_cut(tmp_path):
    image, truth = volume()
    paths = [tmp_path / "first.png", tmp_path / "last.png"]
    slices_png(paths[0], image, truth, truth, spacing=(3, 1, 1), classes={(1,): "a", (2,): "b"})
    turned = [np.moveaxis(a, 0, 2)[::-1] for a in (image, truth, truth)]  # these slices stand on their feet
    slices_png(paths[1], *turned, spacing=(1, 1, 3), classes={(1,): "a", (2,): "b"})
    np.testing.assert_array_equal(imread(paths[0]), imread(paths[1]))


def test_volumes_of_different_shape_are_refused(tmp_path):
    image, truth = volume()
    with pytest.raises(ValueError, match="three volumes"):
        slices_png(tmp_path / "x.png", image, truth, truth[1:], spacing=(3, 1, 1), classes={(1,): "a"})
    with pytest.raises(ValueError, match="three volumes"):
        slices_png(tmp_path / "x.png", image[0], truth[0], truth[0], spacing=(1, 1), classes={(1,): "a"})
    assert not list(tmp_path.iterdir())
