"""The figures of the scores, looked up in what was drawn."""

import numpy as np

from nnunet_ext.report.figures.scores import strip_figure, volumes_figure


def dots(ax):
    return [line for line in ax.lines if line.get_marker() == "o"]


def test_every_case_is_a_dot_in_the_row_of_its_class_and_fold():
    figure = strip_figure({"a": {"0": [0.1, 0.8, 0.5], "1": [0.4]}, "b": {"0": [], "1": [0.7, 0.8]}}, "Dice")
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"{c}, fold {f}" for c in "ab" for f in "01"]
    rows = ax.get_yticks()
    strips = dots(ax)
    assert [list(strip.get_xdata()) for strip in strips] == [[0.1, 0.8, 0.5], [0.4], [], [0.7, 0.8]]
    for strip, row in zip(strips, rows, strict=True):
        assert np.abs(strip.get_ydata() - row).max(initial=0) < 0.4
    medians = [line.get_xdata()[0] for line in ax.lines if line.get_marker() != "o"]
    assert medians == [0.5, 0.4, 0.75]


def test_volumes_are_drawn_predicted_over_true_with_the_same_axes():
    figure = volumes_figure({"a": ([10, 20], [12, 18]), "b": ([0, 5, 5000], [3, 0, 4000])}, "voxels")
    for ax, (true, found) in zip(figure.axes, (([10, 20], [12, 18]), ([0, 5, 5000], [3, 0, 4000])), strict=False):
        assert [list(d) for d in dots(ax)[0].get_data()] == [true, found]
        assert ax.get_xlim() == ax.get_ylim() and ax.get_xscale() == ax.get_yscale()
        low, high = ax.get_xlim()
        assert low <= min(true + found) and max(true + found) < high, "each dot is within the axes, also at zero"
    assert [ax.get_xscale() for ax in figure.axes] == ["linear", "symlog"]
