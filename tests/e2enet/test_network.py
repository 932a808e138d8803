"""The E2ENet network: published counts, structure, an independent formulation, and what it refuses."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ext.costs.complexity import count_parameters
from nnunet_ext.e2enet.masked import MaskedConv3d, MaskedConvTranspose3d, active_kernels, masked_modules
from nnunet_ext.e2enet.network import E2ENet, arch_kwargs_at
from nnunet_ext.errors import ConfigurationError

WIDTHS = [48, 96, 192, 320, 320, 320]
STRIDES = [[1, 1, 1]] + [[2, 2, 2]] * 5
TINY_STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
TINY_WIDTHS = [5, 6, 7, 8]


def paper(channels=1, classes=16, **kwargs):
    return E2ENet(channels, classes, strides=STRIDES, features_per_stage=WIDTHS, **kwargs)


def on_meta(levels, **kwargs):
    with torch.device("meta"):
        return E2ENet(1, 2, strides=[[1, 1, 1]] + [[2, 2, 2]] * (levels - 1), **kwargs)


def tiny(seed=0, channels=4, **kwargs):
    torch.manual_seed(seed)
    network = E2ENet(channels, 3, **{"strides": TINY_STRIDES, "features_per_stage": TINY_WIDTHS, **kwargs})
    with torch.no_grad():  # at their start all norms and biases are the same; here none is
        for name, p in network.named_parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p)) if "norm" in name else p.normal_()
    return network


# published counts


@pytest.mark.parametrize(
    ("channels", "classes", "parameters"), [(1, 16, 23_899_088), (4, 4, 23_892_512), (1, 14, 23_897_776)]
)
def test_parameters_of_the_papers_three_data_sets(channels, classes, parameters):
    with torch.device("meta"):
        network = paper(channels, classes)
        assert count_parameters(network)["total"] == parameters
        assert sum(p.numel() for p in paper(channels, classes, sparsity=None).parameters()) == parameters


def test_default_widths_are_the_papers():
    assert on_meta(6).features_per_stage == WIDTHS
    assert on_meta(7).features_per_stage == [*WIDTHS, 320]
    assert on_meta(6, base_features=58).features_per_stage == [58, 116, 232, 320, 320, 320]


def test_35_tensors_and_18067200_weights_are_masked():
    with torch.device("meta"):
        modules = dict(masked_modules(paper()))
    assert len(modules) == 35
    assert sum(math.prod(m.dense_shape) for m in modules.values()) == 18_067_200
    assert sum(isinstance(m, MaskedConvTranspose3d) for m in modules.values()) == 15
    assert sum(isinstance(m, MaskedConv3d) for m in modules.values()) == 20


def test_only_the_fusion_is_masked():
    convolutions = {n for n, m in tiny().named_modules() if isinstance(m, (nn.Conv3d, nn.ConvTranspose3d))}
    assert {name for name, _ in masked_modules(tiny())} == {n for n in convolutions if n.startswith("fusion.")}


# Kernels kept at densities .3, .2, .1: first convolution of a node, second of a last node, transposed convolution.
KEPT = {
    0: {"first": (1382, 922, 461), "second": (691, 461, 230), "up": (1382, 922, 461)},
    1: {"first": (6912, 4608, 2304), "second": (2765, 1843, 922), "up": (5530, 3686, 1843)},
    2: {"first": (27648, 18432, 9216), "second": (11059, 7373, 3686), "up": (18432, 12288, 6144)},
    3: {"first": (79872, 53248, 26624), "second": (30720, 20480, 10240), "up": (30720, 20480, 10240)},
    4: {"first": (92160, 61440, 30720), "second": (30720, 20480, 10240), "up": (30720, 20480, 10240)},
}


@pytest.mark.parametrize(
    ("column", "sparsity", "total"), [(0, 0.7, 5_420_137), (1, 0.8, 3_613_463), (2, 0.9, 1_806_727)]
)
def test_kernels_kept_at_initialisation(column, sparsity, total):
    network = paper(sparsity=sparsity)
    for nodes in network.fusion:
        for level, node in enumerate(nodes):
            convolutions = {"up": node.up, "first": node.convs[0].conv}
            if len(node.convs) == 2:
                convolutions["second"] = node.convs[1].conv
            for kind, conv in convolutions.items():
                assert int(conv.kernel_mask.sum()) == KEPT[level][kind][column], f"level {level}, {kind}"
    # "Kept" weights are counted in the taps of their kernels.
    kept = sum(int(m.kernel_mask.sum()) * math.prod(m.dense_shape[2:]) for _, m in masked_modules(network))
    assert kept == total


def test_density_override_of_the_48_output_convolutions_gives_the_papers_amos_count():
    network = paper(sparsity=0.7, density_overrides={"48": 0.2})
    assert sum(int(m.kernel_mask.sum()) * math.prod(m.dense_shape[2:]) for _, m in masked_modules(network)) == 5_397_367
    changed = [m for _, m in masked_modules(network) if m.kernel_mask.float().mean() < 0.25]
    assert len(changed) == 6
    assert {(type(m), m.out_channels) for m in changed} == {(MaskedConv3d, 48)}


def test_density_overrides_may_have_numbers_as_keys():
    """They cannot in a plans file, but in Python."""
    names, numbers = (tiny(density_overrides={key: 0.9}, sparsity=0.8) for key in ("5", 5))
    active = [[int(m.kernel_mask.sum()) for _, m in masked_modules(network)] for network in (names, numbers)]
    assert active[0] == active[1] != [int(m.kernel_mask.sum()) for _, m in masked_modules(tiny(sparsity=0.8))]


def test_kernel_counts_do_not_suffer_from_binary_fractions():
    """1 - 0.7 is above 0.3 and 1 - 0.9 is below 0.1, which decides where a product is a half (halves go to even)."""
    assert active_kernels(15, 1 - 0.7) == 4
    assert active_kernels(15, 1 - 0.9) == 2
    assert active_kernels(35, 1 - 0.9) == 4


def test_inactive_kernels_start_at_zero_and_active_ones_do_not():
    for name, module in masked_modules(tiny(sparsity=0.7)):
        norms = module.dense_weight().abs().flatten(2).sum(2)
        assert torch.equal(norms != 0, module.kernel_mask), name


def test_the_dense_network_has_no_masks():
    network = tiny(sparsity=None)
    assert list(masked_modules(network)) == []
    assert network.state_dict().keys() == dict(network.named_parameters()).keys()


# structure


@pytest.mark.parametrize("levels", [3, 4, 5, 6, 7])
def test_the_grid_of_a_network_with_this_many_levels(levels):
    network = on_meta(levels, base_features=4, max_features=9)
    assert len(network.backbone) == levels
    assert [len(nodes) for nodes in network.fusion] == list(range(levels - 1, 0, -1))
    assert len(network.heads.seg_layers) == levels - 2
    widths = network.features_per_stage
    for stage, nodes in enumerate(network.fusion, start=1):
        for level, node in enumerate(nodes):
            above = widths[level - 1] if level else 0
            assert node.convs[0].conv.in_channels == 2 * widths[level] + above
            assert (node.up.in_channels, node.up.out_channels) == (widths[level + 1], widths[level])
            assert (node.down is None) == (level == 0)
            assert len(node.convs) == (2 if stage + level == levels - 1 else 1)
            assert (node.up.bias is None) and all(block.conv.bias is not None for block in node.convs)
    with torch.device("meta"):
        network.deep_supervision = True
        heads = network(torch.empty(1, 1, *[2 ** (levels + 1)] * 3))
    assert [tuple(head.shape[2:]) for head in heads] == [(2 ** (levels + 1 - k),) * 3 for k in range(levels - 2)]


def test_defaults_for_a_plan_are_json_values_of_the_papers_network():
    strides = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert arch_kwargs_at(strides) == {
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
        "features_per_stage": [48, 96, 192, 320],
        "sparsity": 0.8,
    }


@pytest.mark.parametrize("kernel", [[1, 3, 3], [3, 1, 3], [3, 3, 1], [3, 3, 3]])
def test_kernels_and_shifts_of_the_ablations(kernel):
    """With 3x3x3 only backbone and last nodes have that kernel, and nothing is shifted."""
    network = on_meta(4, kernel_size=kernel, base_features=6)
    restricted = kernel != [3, 3, 3]
    blocks = [block for stage in network.backbone for block in stage]
    other = []
    for stage, nodes in enumerate(network.fusion, start=1):
        for level, node in enumerate(nodes):
            (blocks if restricted or stage + level == 3 else other).extend(node.convs)
    assert {block.conv.kernel_size for block in blocks} == {tuple(kernel)}
    assert {block.conv.kernel_size for block in other} == (set() if restricted else {(1, 3, 3)})
    for block in blocks:
        shifted = restricted and block.conv.in_channels >= 3
        assert bool(block.shifts) == shifted
        assert not shifted or kernel[block.shift_axis] == 1
    assert not any(block.shifts for block in other)


@pytest.mark.parametrize(("direction", "source"), enumerate(["forward", "below", "above"]))
def test_columns_of_a_fusion_convolution_read_forward_then_up_then_down(direction, source):
    node = tiny().fusion[0][1]
    inputs = {
        "forward": torch.randn(1, TINY_WIDTHS[1], 4, 4, 4, requires_grad=True),
        "below": torch.randn(1, TINY_WIDTHS[2], 2, 2, 2, requires_grad=True),
        "above": torch.randn(1, TINY_WIDTHS[0], 4, 8, 8, requires_grad=True),
    }
    columns = [TINY_WIDTHS[1], TINY_WIDTHS[1], TINY_WIDTHS[0]]
    conv = node.convs[0].conv
    flow = torch.arange(3).repeat_interleave(torch.tensor(columns))[conv.index % sum(columns)]  # of each slot
    with torch.no_grad():
        conv.values.normal_()[flow != direction] = 0
    node(**inputs).square().sum().backward()
    reached = {name for name, x in inputs.items() if x.grad.abs().sum() > 0}
    assert reached == {source}


# an independent formulation


def slow_block(state, name, x, *, kernel, stride=1, shift_size=1, split="balanced"):
    weight = state[f"{name}.conv.weight"]
    if 1 in kernel and shift_size:
        groups = 2 * shift_size + 1
        if split == "reference" or x.shape[1] >= groups:
            dim = 2 + kernel.index(1)
            margins = [0] * 6
            margins[2 * (4 - dim)] = margins[2 * (4 - dim) + 1] = shift_size
            parts = (torch.tensor_split if split == "balanced" else torch.chunk)(F.pad(x, margins), groups, 1)
            rolled = [torch.roll(part, k - shift_size, dim) for k, part in enumerate(parts)]
            x = torch.cat(rolled, 1).narrow(dim, shift_size, x.shape[dim])
    assert list(weight.shape[2:]) == kernel
    x = F.conv3d(x, weight, state[f"{name}.conv.bias"], stride, [k // 2 for k in kernel])
    x = F.instance_norm(x, weight=state[f"{name}.norm.weight"], bias=state[f"{name}.norm.bias"], eps=1e-5)
    return F.leaky_relu(x, 0.01)


def weights_of(network):
    """All parameters by name, those of masked convolutions as the dense weight."""
    weights = {f"{name}.weight": module.dense_weight() for name, module in masked_modules(network)}
    return {**dict(network.named_parameters()), **weights}


def slow_e2enet(state, x, strides, kernel=(1, 3, 3), shift_size=1, split="balanced"):
    """The logits of all heads, from the parameters alone, for a patch that the strides divide."""
    options = {"shift_size": shift_size if 1 in kernel else 0, "split": split}
    levels = len(strides)
    grid = {}
    for level, stride in enumerate(strides):
        x = slow_block(state, f"backbone.{level}.0", x, kernel=list(kernel), stride=stride, **options)
        x = slow_block(state, f"backbone.{level}.1", x, kernel=list(kernel), **options)
        grid[0, level] = x
    for stage in range(1, levels):
        for level in range(levels - stage):
            last = stage + level == levels - 1
            name = f"fusion.{stage - 1}.{level}"
            up = F.conv_transpose3d(
                grid[stage - 1, level + 1], state[f"{name}.up.weight"], stride=tuple(strides[level + 1])
            )
            sources = [grid[stage - 1, level], up]
            if level:
                sources.append(F.max_pool3d(grid[stage - 1, level - 1], strides[level], strides[level]))
            own = list(kernel) if last or 1 in kernel else [1, 3, 3]
            x = slow_block(state, f"{name}.convs.0", torch.cat(sources, 1), kernel=own, **options)
            if last:
                x = slow_block(state, f"{name}.convs.1", x, kernel=own, **options)
            grid[stage, level] = x
    heads = [state[f"heads.seg_layers.{level}.weight"] for level in range(levels - 2)]
    return [F.conv3d(grid[levels - 1 - level, level], head) for level, head in enumerate(heads)]


VARIANTS = {
    "default": {},
    "one channel": {"channels": 1},
    "reference split": {"channel_split": "reference"},
    "reference split of one channel": {"channels": 1, "channel_split": "reference"},
    "shift by two": {"shift_size": 2, "channels": 7},
    "no shift": {"shift_size": 0},
    "dense": {"sparsity": None},
    "3x1x3": {"kernel_size": [3, 1, 3]},
    "3x3x1": {"kernel_size": [3, 3, 1]},
    "3x3x3": {"kernel_size": [3, 3, 3]},
    "three levels": {"strides": TINY_STRIDES[:3], "features_per_stage": TINY_WIDTHS[:3]},
    "six levels": {
        "strides": [[1, 1, 1], *[[1, 2, 2]] * 2, *[[2, 2, 2]] * 3],
        "features_per_stage": [4, 5, 6, 7, 8, 9],
    },
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_network_equals_an_independent_formulation(variant):
    network = tiny(deep_supervision=True, **variant).double()
    x = torch.randn(2, variant.get("channels", 4), 8, 32, 64, dtype=torch.double)
    with torch.no_grad():
        expected = slow_e2enet(
            weights_of(network),
            x,
            network.strides,
            variant.get("kernel_size", (1, 3, 3)),
            variant.get("shift_size", 1),
            variant.get("channel_split", "balanced"),
        )
        found = network(x)
    assert len(found) == len(expected) == len(network.strides) - 2
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_odd_patches_are_padded_with_zeros_at_their_end_and_cropped_back():
    network = tiny(deep_supervision=True).double()
    x = torch.randn(1, 4, 7, 13, 18, dtype=torch.double)
    with torch.no_grad():
        expected = network(F.pad(x, [0, 6, 0, 3, 0, 1]))
        found = network(x)
    assert torch.equal(found[0], expected[0][:, :, :7, :13, :18])
    assert torch.equal(found[1], expected[1][:, :, :7, :6, :9])  # 6.5 is rounded to 6, as Python rounds


def test_samples_of_a_batch_do_not_see_each_other():
    network = tiny().double()
    x = torch.randn(3, 4, 8, 16, 16, dtype=torch.double)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(sample[None]) for sample in x])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=1e-12)


def test_training_and_evaluation_mode_compute_the_same(monkeypatch):
    monkeypatch.setenv("nnUNet_ext_packed", "0")
    network, x = tiny(), torch.randn(1, 4, 8, 16, 16)
    with torch.no_grad():
        assert torch.equal(network.train()(x), network.eval()(x))


def test_every_weight_has_a_gradient_that_is_not_zero():
    network = tiny(sparsity=None, deep_supervision=True)
    sum(output.sin().mean() for output in network(torch.randn(2, 4, 8, 16, 16))).backward()
    assert [n for n, p in network.named_parameters() if p.ndim > 1 and not p.grad.abs().sum() > 0] == []


def test_initial_weights_are_kaiming_normal_and_biases_zero():
    network = paper(sparsity=None)
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            weight = module.weight.detach()
            fan_in = weight[0].numel()  # torch's convention, for transposed convolutions too
            expected = (2 / (1 + 0.01**2) / fan_in) ** 0.5
            # The deviation of n normal numbers is known to 1 / sqrt(2 n); 5 of these over 52 tensors.
            assert weight.std().item() == pytest.approx(expected, rel=5 / (2 * weight.numel()) ** 0.5), name
            assert module.bias is None or module.bias.eq(0).all()


# what is refused, with the sentence

GOOD = {"strides": TINY_STRIDES, "features_per_stage": TINY_WIDTHS}


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"strides": [[1, 1], [2, 2], [2, 2], [2, 2]]}, "E2ENet is a 3D method: every stride needs three numbers"),
        ({"strides": [[1, 1, 1], [2, 2, 2]]}, "E2ENet needs at least 3 levels, the plan has 2"),
        ({"strides": [[1, 1, 1]]}, "E2ENet needs at least 3 levels, the plan has 1"),
        ({"strides": [[2, 2, 2], *TINY_STRIDES[1:]]}, r"The first stride must be \[1, 1, 1\]"),
        ({"strides": [*TINY_STRIDES[:3], [2, 0, 2]]}, "all must be positive"),
        ({"strides": [*TINY_STRIDES[:3], [2, -2, 2]]}, "all must be positive"),
        *[({"sparsity": s}, "sparsity must lie strictly between 0 and 1") for s in (0, 1, -1, 1.5, True, float("nan"))],
        ({"sparsity": "0.8"}, "sparsity must lie strictly between 0 and 1 .* found '0.8'"),
        ({"kernel_size": [3, 3, 5]}, r"kernel_size must be one of \(\[1, 3, 3\], .* found \[3, 3, 5\]"),
        ({"kernel_size": [1, 1, 3]}, "kernel_size must be one of"),
        ({"kernel_size": [3, 3]}, "kernel_size must be one of"),
        ({"features_per_stage": [4, 4, 4]}, r"features_per_stage must be 4 positive integers, one a stride, found \[4"),
        ({"features_per_stage": [4, 4, 0, 4]}, "features_per_stage must be 4 positive integers"),
        ({"features_per_stage": [4, 4, 4.5, 4]}, "features_per_stage must be 4 positive integers"),
        ({"density_overrides": {"out": 0.2}}, "density_overrides maps a number of output channels to a density"),
        ({"density_overrides": {"5": 0}}, "density_overrides maps a number of output channels to a density"),
        ({"density_overrides": {"5": 1.5}}, "density_overrides maps a number of output channels to a density"),
        ({"density_overrides": {"5": "0.2"}}, "density_overrides maps a number of output channels to a density"),
        ({"density_overrides": {"48": 0.2}}, r"names 48 output channels, but the fusion has \[5, 6, 7\]"),
        ({"density_overrides": {"5": 0.2}, "sparsity": None}, "density_overrides needs a sparsity"),
        *[({"shift_size": m}, "shift_size must be an integer of at least 0") for m in (-1, 1.5, True)],
        ({"channel_split": "chunk"}, "channel_split must be 'balanced' or 'reference', found 'chunk'"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(bad, sentence):
    E2ENet(1, 2, **GOOD)
    with pytest.raises(ConfigurationError, match=sentence):
        E2ENet(1, 2, **{**GOOD, **bad})


def test_a_patch_with_one_voxel_at_the_lowest_level_is_refused():
    with torch.device("meta"):
        network = paper()
    with pytest.raises(ConfigurationError, match=r"Patch \[32, 32, 32\] is too small .* Use a larger patch"):
        network.check_patch_size([32, 32, 32])
    network.check_patch_size([64, 32, 32])
    with pytest.raises(ConfigurationError, match="too small"):
        network(torch.empty(1, 1, 32, 32, 32, device="meta"))


def test_a_patch_of_32_works_with_an_anisotropic_first_stride():
    network = E2ENet(1, 2, strides=[[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 4], features_per_stage=[4] * 6)
    with torch.no_grad():
        assert network(torch.randn(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)


def test_masks_are_uniform_over_all_kernels():
    """Each kernel is drawn with the density's probability: over 2000 masks no position is off by 5 sigma."""
    torch.manual_seed(0)
    module = MaskedConv3d(4, 6, (1, 1, 1), density=0.25)
    counts = torch.zeros(6, 4)
    for _ in range(2000):
        module.draw_kernels(torch.ones(6, 4, 1, 1, 1))
        counts += module.kernel_mask
    assert counts.sum() == 2000 * 6
    assert (counts - 500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_all_variants_of_the_formulation_are_really_different():
    """So that the comparison above compares something: each shift rule and kernel gives its own output."""
    x = torch.randn(1, 4, 8, 16, 16)
    options = [{}, {"channel_split": "reference"}, {"shift_size": 0}, {"kernel_size": [3, 1, 3]}]
    with torch.no_grad():
        outputs = [tiny(**option)(x) for option in options]
    assert not any(torch.allclose(a, b) for a, b in itertools.combinations(outputs, 2))
