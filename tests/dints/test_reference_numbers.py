"""Parameters, multiply-adds, outputs and losses of the published model and of the reference implementation."""

import numpy as np
import pytest
import torch
from dints.small import CUBES

from nnunet_ext.costs.complexity import complexity_report, count_parameters
from nnunet_ext.dints.architecture_code import CVPR_CODE
from nnunet_ext.dints.discretize import decode
from nnunet_ext.dints.memory_budget import edge_memory, memory_ratio
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet
from nnunet_ext.dints.relaxation import REFERENCE_FLOOR, memory_use, regularisers, relax
from nnunet_ext.dints.search_space import OPERATIONS, edges, patterns, receivers, senders

PATCH = [96, 96, 96]
SEARCH = {
    (16, True): 150_612_467,
    (32, True): 602_177_299,
    (64, True): 2_408_166_227,
    (16, False): 37_405_395,
    (32, False): 149_478_099,
    (64, False): 597_627_603,
}
INSTANCE = {
    (16, True): 38_110_499,
    (32, True): 152_361_027,
    (64, True): 609_282_179,
    (16, False): 9_255_683,
    (32, False): 36_976_131,
    (64, False): 147_811_331,
    (8, True): 9_537_747,
    (4, True): 2_389_499,
}


def on_meta(kind, channels, classes, **kwargs):
    with torch.device("meta"):
        return kind(channels, classes, **kwargs)


def total(network):
    return count_parameters(network)["total"]


# parameters and multiply-adds


@pytest.mark.parametrize(("width", "downsample"), SEARCH)
def test_parameters_of_the_supernet(width, downsample):
    kwargs = {"strides": CUBES, "base_features": width, "use_downsample": downsample}
    assert total(on_meta(DiNTSSearchNet, 1, 3, **kwargs)) == SEARCH[width, downsample]


@pytest.mark.parametrize(("width", "downsample"), INSTANCE)
def test_parameters_of_the_published_code(width, downsample):
    kwargs = {"strides": CUBES, "base_features": width, "use_downsample": downsample, "keep_unused": True}
    assert total(on_meta(DiNTSNet, 1, 3, **kwargs)) == INSTANCE[width, downsample]


@pytest.mark.parametrize(
    ("kwargs", "channels", "classes", "parameters"),
    [
        ({"base_features": 8, "num_layers": 3, "num_depths": 3}, 1, 2, 2_397_032),
        ({"base_features": 8, "num_layers": 3, "num_depths": 3, "use_downsample": False}, 1, 2, 586_344),
        ({"base_features": 4}, 1, 3, 9_439_307),
        ({"base_features": 8, "num_layers": 4, "num_depths": 2}, 2, 2, 690_578),
        (
            {
                "features_per_stage": [6, 12, 25, 51],
                "num_layers": 6,
                "num_depths": 3,
                "use_downsample": False,
            },
            1,
            3,
            686_408,
        ),
    ],
)
def test_parameters_of_small_supernets(kwargs, channels, classes, parameters):
    assert total(on_meta(DiNTSSearchNet, channels, classes, strides=CUBES, **kwargs)) == parameters


def test_parameters_of_the_supernet_in_2d():
    network = on_meta(DiNTSSearchNet, 1, 3, strides=[stride[1:] for stride in CUBES], base_features=32)
    assert total(network) == 91_417_579


@pytest.mark.parametrize(("channels", "classes", "parameters"), [(1, 2, 152_360_994), (4, 4, 152_399_940)])
def test_parameters_by_channels_and_classes(channels, classes, parameters):
    assert total(on_meta(DiNTSNet, channels, classes, strides=CUBES, keep_unused=True)) == parameters


def test_the_published_code_without_its_unused_stem():
    network = on_meta(DiNTSNet, 1, 3, strides=CUBES)
    assert total(network) == 152_361_027 - 3_547_392
    assert list(network.stems) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("kind", "kwargs", "gmacs"),
    [
        (DiNTSNet, {"keep_unused": True}, 334.38),
        (DiNTSNet, {"keep_unused": True, "use_downsample": False}, 632.5),
        (DiNTSSearchNet, {}, 403.0),
    ],
)
def test_multiply_adds_are_those_of_table_1(kind, kwargs, gmacs):
    digits = len(str(gmacs).split(".")[1])
    network = on_meta(kind, 1, 3, strides=CUBES, **kwargs)
    report = complexity_report(network, 1, PATCH)
    assert round(report["paper"]["gflops"], digits) == round(report["paper"]["gmacs"], digits) == gmacs
    assert report["true"]["gflops"] == 2 * report["true"]["gmacs"] == 2 * report["paper"]["gmacs"]


# outputs


def test_the_published_code_computes_what_its_authors_network_does():
    """Values by flat index in the authors' axes, x y z; ours are z y x."""
    network = DiNTSNet(1, 3, strides=CUBES, keep_unused=True).eval()
    assert len(network.state_dict()) == 502
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.ndim > 1:
                values = torch.sin(0.7 * torch.arange(p.numel(), dtype=torch.float64))
                theirs = (values / p[0].numel() ** 0.5).view(*p.shape[:2], *p.shape[:1:-1])
                p.copy_(theirs.permute(0, 1, 4, 3, 2))
            else:
                p.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        x = torch.cos(0.05 * torch.arange(32**3, dtype=torch.float64)).float().view(1, 1, 32, 32, 32)
        y = network(x.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    tolerance = {"rtol": 0, "atol": 1e-4}  # float32 sums of 97 cells in another order
    torch.testing.assert_close(y.std(), torch.tensor(0.1428052409), **tolerance)
    torch.testing.assert_close(y.mean(), torch.tensor(0.0), **tolerance)
    first = torch.tensor([0.0747098699, 0.1029614657, 0.1187289506, 0.1310767531])
    torch.testing.assert_close(y[0, 0, 0, 0, :4], first, **tolerance)
    middle = torch.tensor([-0.0219944846, 0.0098619713, 0.0038962299])
    torch.testing.assert_close(y[0, :, 16, 16, 16], middle, **tolerance)


# table 1 of the search space


@pytest.mark.parametrize(
    ("depth", "pairs_of_sets", "feasible"), [(2, 9, 99), (3, 35, 4_999), (4, 125, 249_999), (5, 453, 12_499_999)]
)
def test_sizes_of_the_search_space(depth, pairs_of_sets, feasible):
    table = patterns(depth)
    assert len(table) == 2 ** (3 * depth - 2) - 1
    sends, receives = ([mask(depth, pattern) for pattern in table] for mask in (senders, receivers))
    assert len(set(zip(sends, receives, strict=True))) == pairs_of_sets
    counts = np.bincount(sends, minlength=2**depth)
    assert sum(counts[r] for r in receives) == feasible


def test_edges_and_patterns_are_numbered_as_published():
    ends = edges(4)
    assert [source for source, _ in ends] == [0, 1, 0, 1, 2, 1, 2, 3, 2, 3]
    assert [target for _, target in ends] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert patterns(4)[0] == (0,) * 9 + (1,)
    assert patterns(4)[1022] == (1,) * 10


# losses

FLAT = (torch.zeros(12, 10), torch.ones(12, 10, 5))
_LAYER, _EDGE = torch.meshgrid(torch.arange(12.0), torch.arange(10.0), indexing="ij")
SIN = (
    2 * torch.sin(1 + 10 * _LAYER + _EDGE),
    torch.cos(1 + 50 * _LAYER[..., None] + 5 * _EDGE[..., None] + torch.arange(5.0)),
)


def memory_table(batch_size=1):
    structure = on_meta(DiNTSSearchNet, 1, 3, strides=CUBES).structure
    return torch.tensor(edge_memory(structure, PATCH, batch_size))


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (
            FLAT,
            {
                "eta": ("0.0067747", "0.0067647"),
                "alpha": ("0.3218876", "0.3218876"),
                "topology": ("30.07833", "30.07502"),
                "memory_ratio": ("0.5004888", "0.5004888"),
                "memory": ("0.2995112", "0.2995112"),
            },
        ),
        (
            SIN,
            {
                "eta": ("0.0049981", "0.0049894"),
                "alpha": ("0.2820242", "0.2820242"),
                "topology": ("41.97485", "41.96278"),
                "memory_ratio": ("0.5001270", "0.5001270"),
                "memory": ("0.2998730", "0.2998730"),
            },
        ),
    ],
    ids=["flat", "sin"],
)
def test_losses_to_the_digits_given_exact_and_floored(logits, expected):
    for column, floor in enumerate((0.0, REFERENCE_FLOOR)):
        found = regularisers(relax(*logits), memory_table(), sigma=0.8, floor=floor)
        for name, texts in expected.items():
            digits = len(texts[column].split(".")[1])
            # a unit of the last digit, or the rounding of the reference's own sums in float32
            close = pytest.approx(float(texts[column]), abs=1.01 * 10**-digits, rel=5e-7)
            assert float(getattr(found, name)) == close, name


@pytest.mark.parametrize(("logits", "used", "full"), [(FLAT, 3575.085, 7143.1875), (SIN, 3505.488, 7009.195)])
def test_memory_in_megabytes(logits, used, full):
    found = [float(value) / 2**20 for value in memory_use(relax(*logits), memory_table())]
    assert found == pytest.approx([used, full], rel=3e-7)  # the reference sums in float32
    assert [float(v) / 2**20 for v in memory_use(relax(*logits), memory_table(3))] == pytest.approx(
        [3 * value for value in found]
    )


def test_memory_costs_by_operation():
    """In units of the output: same [0,3,4,4,4], up [6,...], down [7,...], each plus 1 for the output itself."""
    table = memory_table().numpy()
    for edge, before in ((0, 0), (1, 6), (2, 7), (9, 0)):
        unit = 4 * 16 * 2 ** edges(4)[edge][1] * (96 // 2 ** edges(4)[edge][1]) ** 3 / 2
        assert table[edge] / unit - 1 == pytest.approx([before, before + 3] + [before + 4] * 3)


def test_memory_of_a_step_along_two_axes():
    """A step by (1, 2, 2) joins four voxels, not eight."""
    anisotropic = on_meta(DiNTSSearchNet, 1, 3, strides=[[1, 1, 1], *[[1, 2, 2]] * 4]).structure
    table = np.array(edge_memory(anisotropic, [16, 96, 96]))
    unit = 4 * 32 * 16 * 48 * 48 / 2
    assert table[2] / unit - 1 == pytest.approx([4 / 2 + 3 + extra for extra in (0, 3, 4, 4, 4)])


def test_the_published_code_has_the_papers_memory_ratio():
    structure = on_meta(DiNTSNet, 1, 3, strides=CUBES, base_features=16).structure
    assert memory_ratio(CVPR_CODE, structure, PATCH) == pytest.approx(0.7963548, abs=1e-7)


def test_probabilities_of_the_sin_case():
    relaxed = relax(*SIN)
    expected = [0.843315, 0.860419, 0.57011, 0.18041, 0.128105, 0.363827, 0.788197, 0.878566, 0.695152, 0.251993]
    assert relaxed.edges[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert float(relaxed.log_eta[0, 1022].exp()) == pytest.approx(4.21851e-4, rel=2e-6)
    assert float(relaxed.log_eta[3, 511].exp()) == pytest.approx(9.48933e-6, rel=2e-6)


# discretization


def test_decode_of_the_sin_case():
    found = decode(SIN[0].numpy(), SIN[1].numpy())
    assert list(found.pattern_indices) == [909, 498, 573, 454, 632, 909, 496, 829, 454, 568, 909, 240]
    assert found.cost == pytest.approx(42.098149, abs=5e-7)
    assert (found.code.num_edges, found.gap) == (72, 12)
    assert found.code.nodes() == [[1, 1, 1, 1]] * 12 + [[0, 1, 1, 1]]
    assert ["".join(map(str, row)) for row in found.code.operations] == [
        "0023400234", "0123401234", "0123401244", "0124401244", "0134001340", "0234002340",
        "1234012340", "1234012440", "1244013440", "1340023400", "2340123401", "2340123401",
    ]  # fmt: skip
    floored = decode(SIN[0].numpy(), SIN[1].numpy(), REFERENCE_FLOOR)
    assert floored.cost + 1e-3 == pytest.approx(42.104915 + 1e-3, abs=1e-6)


def test_facts_about_the_published_code():
    rows = [int("".join(map(str, row)), 2) for row in CVPR_CODE.active]
    assert rows == [762, 987, 1019, 766, 991, 767, 983, 1011, 991, 991, 927, 775]
    assert [sum(row) for row in CVPR_CODE.active] == [7, 8, 9, 8, 9, 9, 8, 8, 9, 9, 8, 5]
    chosen = [
        operation
        for active, operations in zip(CVPR_CODE.active, CVPR_CODE.operations, strict=True)
        for on, operation in zip(active, operations, strict=True)
        if on
    ]
    assert np.bincount(chosen).tolist() == [24, 33, 14, 12, 14]  # as many of 2 as of 4, which exchange their roles
    assert CVPR_CODE.num_edges == 97
    assert (CVPR_CODE.nodes()[0], CVPR_CODE.nodes()[-1]) == ([1, 1, 1, 0], [1, 0, 1, 1])
    assert len(OPERATIONS[3]) == 5
