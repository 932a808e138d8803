"""The fusion figure shows the shares that the network has."""

import pytest
import torch
from matplotlib.patches import Rectangle
from report.folders import ARCH_KWARGS, E2ENET, STOCK, e2enet_model, write_json

from nnunet_ext.e2enet.fusion_flow import COLOURS, flow_figure, mean_shares, random_shares, shares_figure
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.report import section, start_shares, topology
from nnunet_ext.e2enet.topology import direction_shares
from nnunet_ext.report.model_folder import read_model_folder

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
WIDTHS = [6, 8, 12, 10, 10]


def network(sparsity, strides=STRIDES, widths=WIDTHS):
    return E2ENet(1, 2, strides=strides, features_per_stage=widths, sparsity=sparsity)


def columns(net):
    return {
        f"{stage},{level}": node.directions
        for stage, nodes in enumerate(net.fusion, start=1)
        for level, node in enumerate(nodes)
    }


def test_random_shares_are_those_of_the_dense_network():
    dense = network(None)
    shares = direction_shares(dense)
    assert len(shares) == 10
    for node, expected in random_shares(columns(dense)).items():
        assert shares[node] == pytest.approx(expected)


def test_random_masks_have_the_random_shares_on_average():
    torch.manual_seed(0)
    several = [direction_shares(network(0.8)) for _ in range(40)]
    for node, expected in random_shares(columns(network(0.8))).items():
        # at least 14 active kernels per node: a standard deviation of at most 14 % for one network, 2.2 % for 40
        assert mean_shares(several)[node] == pytest.approx(expected, abs=0.08)


def test_the_bars_of_the_figure_are_as_high_as_the_shares_of_a_real_network():
    torch.manual_seed(0)
    shares = direction_shares(network(0.6))
    ax = flow_figure(shares).axes[0]
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    backbone = max(bar.get_height() for bar in bars)
    for name in ("forward", "up", "down"):
        drawn = [bar.get_height() / backbone for bar in bars if bar.get_facecolor()[:3] == rgb(COLOURS[name])]
        assert drawn == pytest.approx([share[name] for share in shares.values() if share[name]])


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def test_the_lines_of_the_figure_are_the_shares_of_the_history():
    history = [(epoch, direction_shares(network(0.6))) for epoch in range(4)]
    figure = shares_figure([history])
    drawn = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    line = next(line for line in drawn["stage 1"].lines if line.get_color() == COLOURS["up"])
    assert list(line.get_xdata()) == [0, 1, 2, 3]
    assert list(line.get_ydata()) == pytest.approx([100 * shares["1,0"]["up"] for _, shares in history])


@pytest.mark.parametrize(("strides", "widths"), [(STRIDES, WIDTHS), (STRIDES[:3], [6, 8, 10])])
def test_the_start_comes_from_the_network_that_the_plans_name(tmp_path, strides, widths):
    model = e2enet_model(tmp_path)
    arch_kwargs = {"strides": strides, "features_per_stage": widths, "sparsity": 0.8}
    model.plans["configurations"]["3d_fullres"]["architecture"] = {**E2ENET, "arch_kwargs": arch_kwargs}
    write_json(model.path / "plans.json", model.plans)
    start, how = start_shares(read_model_folder(model.path))
    assert how == "expected of random masks"
    assert start == direction_shares(network(None, strides, widths))


def test_the_start_of_stock_plans_is_that_of_the_methods_default_network(tmp_path):
    model = e2enet_model(tmp_path)
    model.plans["configurations"]["3d_fullres"]["architecture"] = STOCK
    write_json(model.path / "plans.json", model.plans)
    start, _ = start_shares(read_model_folder(model.path))
    assert start == direction_shares(network(None, STRIDES[:3], [48, 96, 192]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"strides": STRIDES, "features_per_stage": WIDTHS}, "the plans are of another network"),
        ({"strides": STRIDES}, "the plans do not say the network"),
        ({"strides": 3}, "the plans do not say the network"),
    ],
)
def test_a_start_that_does_not_fit_the_history_is_left_out_and_named(tmp_path, change, reason):
    model = e2enet_model(tmp_path)
    model.plans["configurations"]["3d_fullres"]["architecture"] = {**E2ENET, "arch_kwargs": {**ARCH_KWARGS, **change}}
    write_json(model.path / "plans.json", model.plans)
    read = read_model_folder(model.path)
    assert [picture.caption for picture in section(read).pictures] == ["After epoch 2 (fold 0)", "Along the training"]
    assert reason in read.notes[0]


@pytest.mark.parametrize("block", [1, 16])
def test_connections_in_blocks_are_said(tmp_path, block):
    model = e2enet_model(tmp_path)
    arch_kwargs = {**ARCH_KWARGS, "connection_block": block}
    model.plans["configurations"]["3d_fullres"]["architecture"] = {**E2ENET, "arch_kwargs": arch_kwargs}
    write_json(model.path / "plans.json", model.plans)
    text = " ".join(section(read_model_folder(model.path)).text)
    assert ("up to 16 neighbouring outputs of a convolution share their inputs" in text) == (block == 16)


def test_epochs_with_a_topology_update_are_marked(tmp_path):
    model = e2enet_model(tmp_path)
    marks = topology(read_model_folder(model.path).folds[0])
    assert (marks.epochs, marks.updated) == ([0, 1, 2], [0, 1, 2])
    rows = [{**row, "updates": updates} for row, updates in zip(_rows(model), (0, 1, 1), strict=True)]
    write_json(model.path / "fold_0" / "e2enet_history.json", rows)
    assert topology(read_model_folder(model.path).folds[0]).updated == [1]


def _rows(model):
    return read_model_folder(model.path).folds[0].history
