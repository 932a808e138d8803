"""The topology graph: what is drawn, and in which colour and width."""

import pytest
from dints.small import random_code
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from nnunet_ext.dints.architecture_code import CVPR_CODE
from nnunet_ext.dints.search_figure import search_figure
from nnunet_ext.dints.search_space import OPERATIONS, edges
from nnunet_ext.dints.topology_figure import COLOURS, histogram, topology_figure


def names(code):
    return [[tuple(OPERATIONS[3])[value] for value in row] for row in code.operations]


def cells(figure):
    """The drawn cells: lines from one layer to the next, unused edges aside."""
    lines = figure.axes[0].get_lines()
    found = {}
    for line in lines:
        (x0, x1), (y0, y1) = line.get_xdata(), line.get_ydata()
        if x1 == x0 + 1 and x0 == int(x0) and to_hex(line.get_color()) in {c.lower() for c in COLOURS.values()}:
            found[int(x0), -int(y0), -int(y1)] = line
    return found


@pytest.mark.parametrize("code", [CVPR_CODE, random_code(2, layers=3), random_code(5, layers=4)])
def test_every_active_edge_is_drawn_in_the_colour_of_its_operation(code):
    figure = topology_figure(edges(code.depth), code.active, names(code), ["x"] * code.depth)
    drawn = cells(figure)
    expected = {
        (layer, *edges(code.depth)[e]): COLOURS[names(code)[layer][e]].lower()
        for layer, row in enumerate(code.active)
        for e, on in enumerate(row)
        if on
    }
    assert {key: to_hex(line.get_color()) for key, line in drawn.items()} == expected


def test_probable_edges_are_wider():
    rows = [[edge / 10 for edge in range(10)]] * 12
    drawn = cells(topology_figure(edges(4), CVPR_CODE.active, names(CVPR_CODE), ["x"] * 4, rows))
    widths = [drawn[(3, *edges(4)[e])].get_linewidth() for e, on in enumerate(CVPR_CODE.active[3]) if on]
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_active_nodes_are_filled():
    figure = topology_figure(edges(4), CVPR_CODE.active, names(CVPR_CODE), ["x"] * 4)
    filled = {
        (int(x), -int(y))
        for points in figure.axes[0].collections
        for (x, y) in points.get_offsets()
        if to_hex(points.get_facecolor()[0]) != "#ffffff"
    }
    expected = {(layer, s) for layer, row in enumerate(CVPR_CODE.nodes()) for s, on in enumerate(row) if on}
    assert filled == expected


def test_the_histogram_counts_active_edges():
    assert sum(histogram(CVPR_CODE.active, names(CVPR_CODE)).values()) == 97
    assert list(histogram(CVPR_CODE.active, names(CVPR_CODE)).values()) == [24, 33, 14, 12, 14]


def test_search_curves_show_what_the_rows_say():
    rows = [
        {"epoch": e, "L_alpha": 0.4 - 0.1 * e, "L_eta": 0.2, "L_tp": 8.0 / (1 + e), "memory_ratio": 0.5 - 0.1 * e,
         "sigma": 0.2, "G": 3 - e, "dice": 0.1 * e, "memory_ratio_of_code": None if e < 2 else 0.21}
        for e in range(4)
    ]  # fmt: skip
    figure = search_figure({"0": rows}, joint_from=2)
    assert len(figure.axes) == 4
    lines = {line.get_label(): list(line.get_ydata()) for ax in figure.axes for line in ax.get_lines()}
    assert lines["L_tp"] == [1, 0.5, 1 / 3, 0.25]
    assert lines["expected"] == [row["memory_ratio"] for row in rows]
    assert lines["budget sigma"] == [0.2, 0.2]
    assert lines["changed to be feasible"] == [3, 2, 1, 0]
    assert lines["of the code"] == [0.21, 0.21]


@pytest.mark.parametrize(("depth", "layers"), [(2, 1), (2, 3), (3, 4), (4, 12)])
def test_the_legend_is_not_cut_off(depth, layers):
    code = random_code(depth, layers=layers)
    rows = [[0.5] * len(edges(depth))] * layers
    figure = topology_figure(edges(depth), code.active, names(code), ["1/8"] * depth, rows)
    FigureCanvasAgg(figure).draw()
    legend, page = figure.axes[0].get_legend().get_window_extent(), figure.bbox
    assert page.x0 <= legend.x0 and legend.x1 <= page.x1 and page.y0 <= legend.y0
