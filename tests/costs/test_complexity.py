"""Counts of parameters and FLOPs: the papers' tables, torch's own counter, and sums worked by hand."""

import pytest
import torch
from costs.layers import layer_flops
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_ext.costs.complexity import complexity_report, complexity_text, count_flops, count_parameters, kept_elements
from nnunet_ext.e2enet.masked import MaskedConv3d, MaskedConvTranspose3d, masked_modules
from nnunet_ext.e2enet.network import E2ENet

CUBE = (128, 128, 128)
TINY = {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]], "features_per_stage": [4, 5, 6, 7]}
ISOTROPIC = [[1, 1, 1]] + [[2, 2, 2]] * 5
ANISOTROPIC = [[1, 1, 1], [1, 2, 2]] + [[2, 2, 2]] * 4


def e2enet(channels=1, classes=16, **kwargs):
    return E2ENet(channels, classes, **{"strides": ISOTROPIC, **kwargs})


def backbone_biases(network):
    """Real parameters that the papers do not count."""
    return sum(block.conv.bias.numel() for stage in network.backbone for block in stage)


def case(gflops, millions, active, channels, classes, patch=CUBE, **kwargs):
    settings = ", ".join(f"{key}={value}" for key, value in kwargs.items())
    label = f"{channels} channels, {classes} classes, {settings}".replace(str(ANISOTROPIC), "anisotropic")
    return pytest.param(gflops, millions, active, channels, classes, patch, kwargs, id=label)


AMOS, BRATS, BTCV = (1, 16), (4, 4), (1, 14)

# Published GFLOPs and millions of parameters (None: not published), and the exact number of active parameters.
PUBLISHED = [
    case(3069.55, 23.90, 23_899_088, *AMOS, sparsity=None),
    case(969.32, 11.23, 11_229_255, *AMOS, sparsity=0.7, density_overrides={"48": 0.2}),
    case(778.74, 9.44, 9_445_351, *AMOS, sparsity=0.8),
    case(492.29, 7.64, 7_638_615, *AMOS, sparsity=0.9),
    case(3071.78, 23.89, 23_892_512, *BRATS, sparsity=None),
    case(1067.06, 11.24, 11_245_449, *BRATS, sparsity=0.7),
    case(780.97, 9.44, 9_438_775, *BRATS, sparsity=0.8),
    case(494.52, 7.63, 7_632_039, *BRATS, sparsity=0.9),
    case(449.00, 11.25, 11_250_713, *BTCV, (96, 96, 96), sparsity=0.7),
    case(4511.57, 52.54, None, *AMOS, sparsity=None, kernel_size=[3, 3, 3]),
    case(1778.55, 27.97, None, *AMOS, sparsity=0.7, kernel_size=[3, 3, 3]),
    case(1119.17, None, None, *AMOS, sparsity=0.8, base_features=58),
    case(1041.42, None, None, *AMOS, sparsity=0.8, strides=ANISOTROPIC),
    case(680.25, None, None, *AMOS, sparsity=0.9, strides=ANISOTROPIC),
    # Not published, worked out with the same formula:
    case(1064.825, None, 11_252_025, *AMOS, sparsity=0.7),
    case(3930.14, None, None, *AMOS, sparsity=None, strides=ANISOTROPIC),
    case(1402.32, None, None, *AMOS, sparsity=0.7, strides=ANISOTROPIC),
]


@pytest.mark.parametrize(("gflops", "millions", "active", "channels", "classes", "patch", "kwargs"), PUBLISHED)
def test_the_papers_convention_gives_the_papers_tables(gflops, millions, active, channels, classes, patch, kwargs):
    """The tables have two decimals, and two of their rows are 0.005 off."""
    network = e2enet(channels, classes, **kwargs)
    counts = count_parameters(network)
    assert count_flops(network, channels, patch, convention="paper") / 1e9 == pytest.approx(gflops, abs=0.006)
    if millions is not None:
        assert (counts["active"] - backbone_biases(network)) / 1e6 == pytest.approx(millions, abs=0.006)
    if active is not None:
        assert counts["active"] == active
    assert counts["trainable"] == counts["active"] == sum(p.numel() for p in network.parameters())
    dense = {k: v for k, v in kwargs.items() if k not in ("sparsity", "density_overrides")}
    assert counts["total"] == count_parameters(e2enet(channels, classes, sparsity=None, **dense))["total"]


def test_the_published_parameters_of_base_width_58_are_those_of_an_anisotropic_first_stride():
    network = e2enet(sparsity=0.8, base_features=58, strides=ANISOTROPIC)
    assert count_parameters(network)["active"] - backbone_biases(network) == 10_372_409  # published: 10.37 M


@pytest.mark.parametrize(("sparsity", "gflops"), [(None, 2024.71), (0.7, 750.90), (0.8, 569.11), (0.9, 387.09)])
def test_what_is_really_computed_with_all_heads(sparsity, gflops):
    found = count_flops(e2enet(sparsity=sparsity), 1, CUBE, deep_supervision=True) / 1e9
    assert found == pytest.approx(gflops, abs=0.006)


def test_prediction_computes_one_head():
    network = e2enet(sparsity=0.8)
    auxiliary = sum(2 * width * 16 * (128 // f) ** 3 for width, f in ((96, 2), (192, 4), (320, 8)))
    without, all_heads = (count_flops(network, 1, CUBE, deep_supervision=deep) for deep in (False, True))
    assert all_heads - without == auxiliary
    assert count_flops(network, 1, CUBE) == without


@pytest.mark.parametrize("sparsity", [None, 0.6])
def test_the_network_costs_the_active_kernels_of_its_layers_one_by_one(sparsity):
    network = E2ENet(2, 3, sparsity=sparsity, **TINY)
    active = {name: int(module.kernel_mask.sum()) for name, module in masked_modules(network)}
    assert count_flops(network, 2, (9, 30, 17)) == layer_flops(network, 2, (9, 30, 17), active)


def test_masks_on_the_meta_device_count_as_many_kernels_as_were_drawn():
    with torch.device("meta"):
        shadow = E2ENet(2, 3, sparsity=0.7, density_overrides={"4": 0.35}, **TINY)
    network = E2ENet(2, 3, sparsity=0.7, density_overrides={"4": 0.35}, **TINY)
    assert complexity_report(shadow, 2, (8, 16, 16)) == complexity_report(network, 2, (8, 16, 16))


# torch's own counter


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("patch", [(8, 32, 32), (9, 30, 17)], ids=["divisible", "odd"])
def test_a_dense_network_costs_what_torchs_counter_says(patch, deep_supervision):
    network = E2ENet(2, 3, sparsity=None, deep_supervision=deep_supervision, **TINY)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, 2, *patch))
    assert count_flops(network, 2, patch, deep_supervision=deep_supervision) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("network", "patch"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.Conv2d(8, 8, 3, padding=1, groups=4)), (9, 7)),
        (nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), nn.ConvTranspose2d(8, 6, 3, 1, groups=2)), (9, 7)),
        (nn.Sequential(nn.Conv3d(3, 4, 3, stride=2), nn.Conv3d(4, 4, (1, 3, 3), dilation=2)), (9, 13, 15)),
        (nn.Sequential(nn.Conv1d(3, 4, 5), nn.ConvTranspose1d(4, 2, 4, 2)), (30,)),
        (nn.Sequential(nn.Flatten(2), nn.Linear(20, 7), nn.Linear(7, 5)), (4, 5)),
    ],
    ids=["grouped convolutions", "transposed convolutions", "strides and dilation", "1d", "linear"],
)
def test_each_kind_of_layer_costs_what_torchs_counter_says(network, patch):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, 3, *patch))
    assert count_flops(network, 3, patch) == counter.get_total_flops() > 0


# by hand


def test_a_masked_convolution_costs_its_active_kernels():
    layer = MaskedConv3d(2, 3, (1, 3, 3), 1, (0, 1, 1), density=0.5)
    assert count_flops(layer, 2, (4, 5, 6)) == 2 * 3 * 9 * (4 * 5 * 6)
    assert count_parameters(layer) == {"total": 57, "trainable": 57 - 3 * 9, "active": 57 - 3 * 9}


def test_a_masked_transposed_convolution_costs_one_tap_for_each_output_voxel():
    layer = MaskedConvTranspose3d(2, 3, (1, 2, 2), (1, 2, 2), density=1 / 3)
    assert count_flops(layer, 2, (4, 5, 6)) == 2 * 2 * (4 * 10 * 12)


def test_the_papers_convention_counts_all_taps_of_a_transposed_convolution_and_biases_of_the_fusion():
    network = E2ENet(1, 2, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]], features_per_stage=[4, 5, 6], sparsity=None)
    up, fusion, backbone = network.fusion[0][0].up, network.fusion[0][0].convs[0].conv, network.backbone[0][0].conv
    assert network.paper_flops("fusion.0.0.up", up, 20, 100) == 2 * 4 * 20 * 100
    assert network.paper_flops("fusion.0.0.convs.0.conv", fusion, 32, 100) == (2 * 9 * 32 + 4) * 100
    assert network.paper_flops("backbone.0.0.conv", backbone, 4, 100) == 2 * 9 * 4 * 100


def test_a_layer_that_is_called_twice_costs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv3d(2, 2, 1)

        def forward(self, x):
            return self.layer(self.layer(x))

    assert count_flops(Twice(), 2, (3, 3, 3)) == 2 * (2 * 2 * 2 * 27)


def test_frozen_parameters_are_not_trainable():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(2, 3, 1))
    network[0].requires_grad_(False)
    assert count_parameters(network) == {"total": 4 + 9, "trainable": 9, "active": 13}


def test_counting_leaves_the_network_as_it_was():
    network = E2ENet(1, 2, deep_supervision=True, **TINY).train()
    before = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
    complexity_report(network, 1, (8, 16, 16))
    assert network.training and network.deep_supervision
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_the_report_names_both_conventions_and_counts_two_flops_for_each_multiply_add():
    network = E2ENet(2, 3, **TINY)
    report = complexity_report(network, 2, (8, 16, 16))
    assert report["network"] == "nnunet_ext.e2enet.network.E2ENet"
    assert (report["input_channels"], report["patch_size"]) == (2, [8, 16, 16])
    assert report["parameters"] == count_parameters(network)
    for convention in ("true", "paper"):
        flops = count_flops(network, 2, (8, 16, 16), convention=convention)
        assert report[convention] == {"gmacs": flops / 2e9, "gflops": flops / 1e9}
    assert report["paper"] != report["true"]


def test_a_network_whose_paper_is_unknown_has_only_the_true_convention():
    network = nn.Sequential(nn.Conv3d(1, 2, 1))
    assert "paper" not in complexity_report(network, 1, (2, 2, 2))
    with pytest.raises(ValueError, match="Sequential says nothing of how its paper counts"):
        count_flops(network, 1, (2, 2, 2), convention="paper")


def test_an_unknown_convention_is_refused():
    with pytest.raises(ValueError, match="must be 'true' or 'paper', found 'papers'"):
        count_flops(E2ENet(1, 2, **TINY), 1, (8, 16, 16), convention="papers")


def test_kept_elements_are_those_that_backward_needs():
    """Convolutions keep their input, ReLU its output, which is the next one's input and counts once."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1, bias=False))
    assert kept_elements(network, torch.empty(1, 2, 8, 8, device="meta")) == 2 * 64 + 3 * 64


def test_interpolation_by_size_and_by_factor_costs_nothing():
    class Up(nn.Module):
        def __init__(self, **how):
            super().__init__()
            self.how, self.conv = how, nn.Conv2d(1, 2, 1, bias=False)

        def forward(self, x):
            return self.conv(nn.functional.interpolate(x, **self.how))

    for how in ({"size": (8, 12)}, {"scale_factor": 2}):
        assert count_flops(Up(**how), 1, (4, 6)) == 2 * 8 * 12 * 2


def test_the_report_in_words():
    cost = {"gmacs": 1.25, "gflops": 2.5}
    report = {"parameters": {"total": 2000, "active": 1500, "trainable": 10}, "patch_size": [8, 16], "true": cost}
    assert complexity_text(report) == (
        "Parameters: 2,000 in all, 1,500 active, 10 trainable\n"
        "One patch 8x16 costs 1.25 GMACs (2.50 GFLOPs, true convention)\n"
    )
    both = complexity_text({**report, "paper": {"gmacs": 3.0, "gflops": 6.0}})
    assert both.endswith("true convention) or 3.00 GMACs (6.00 GFLOPs, paper convention)\n")
