"""Connections in blocks: counted by hand, equal to dense convolutions that are zero elsewhere, stored and refused."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from e2enet.small import active_in
from torch import nn

from nnunet_ext.costs.complexity import active_share, complexity_report, complexity_text, count_flops, count_parameters
from nnunet_ext.e2enet import rebuilding, shared_inputs
from nnunet_ext.e2enet.depth_shift import add_shifted, channel_shifts, gather_shifted, shifted_concat
from nnunet_ext.e2enet.masked import MaskedConv3d, MaskedConvTranspose3d, masked_modules
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.shared_inputs import (
    Read,
    SharedInputConv3d,
    SharedInputConvTranspose3d,
    block_of,
    fan_in_of,
)
from nnunet_ext.e2enet.topology import direction_shares
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.weights.transfer import transfer

FOUR = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
CUBES = [[1, 1, 1]] + [[2, 2, 2]] * 5


@pytest.fixture(params=["group by group", "at once"])
def way(request, monkeypatch):
    """Of the small volumes of these tests, without gradients on a CPU."""
    if request.param == "group by group":
        monkeypatch.setattr(shared_inputs, "AT_ONCE", 0)


def small(seed=0, channels=1, **options):
    torch.manual_seed(seed)
    options = {"strides": FOUR, "features_per_stage": [4, 6, 8, 9], "sparsity": 0.6, "connection_block": 2, **options}
    return E2ENet(channels, 3, deep_supervision=True, **options)


def shuffled(module):
    """The slots of each group in another order, as updates leave them."""
    with torch.no_grad():
        for values, inputs in zip(module.values, module.inputs, strict=True):
            order = torch.randperm(len(inputs))
            inputs.copy_(inputs[order])
            values.copy_(values[:, order])
    return module


# how many


@pytest.mark.parametrize(
    ("width", "asked", "block"),
    [(48, 16, 16), (320, 16, 16), (60, 16, 15), (58, 16, 29), (4, 16, 4), (47, 16, 47), (331, 16, 1), (48, 5, 6)]
    + [(48, 10, 12), (36, 32, 36), (96, 32, 32), (8, 4, 4)],
)
def test_a_block_is_the_divisor_of_the_width_that_is_nearest_by_ratio(width, asked, block):
    assert block_of(width, asked) == block


@pytest.mark.parametrize(
    ("channels", "density", "multiple", "fan_in"),
    [(96, 0.2, 1, 19), (96, 1 - 0.8, 8, 16), (96, 0.2, 16, 16), (240, 0.2, 1, 48), (240, 0.2, 16, 48), (48, 0.1, 1, 5)]
    + [
        (240, 0.1, 16, 32),
        (48, 0.1, 16, 16),
        (832, 0.2, 1, 166),
        (832, 0.2, 16, 160),
        (10, 0.9, 16, 10),
        (3, 0.01, 1, 1),
    ],
)
def test_the_fan_in_is_the_share_of_the_inputs_rounded_to_the_multiple_and_at_most_all(
    channels, density, multiple, fan_in
):
    assert fan_in_of(channels, density, multiple) == fan_in


# Of the paper's widths at S = 0.8: groups, fan-in of first convolutions, of second ones, and of up-convolutions.
PAPER = {0: (3, 19, 10, 19), 1: (6, 48, 19, 38), 2: (12, 96, 38, 64), 3: (20, 166, 64, 64), 4: (20, 192, 64, 64)}


def test_the_papers_network_in_blocks_of_16_has_these_groups_and_inputs():
    network = E2ENet(1, 16, strides=CUBES, sparsity=0.8, connection_block=16)
    active = 0
    for stage, nodes in enumerate(network.fusion, start=1):
        for level, node in enumerate(nodes):
            groups, first, second, up = PAPER[level]
            assert tuple(node.up.values.shape) == (groups, 16, up, 2, 2, 2)
            assert tuple(node.up.inputs.shape) == (groups, up)
            for block, fan_in in zip(node.convs, (first, second), strict=False):
                assert tuple(block.conv.values.shape) == (groups, 16, fan_in, 1, 3, 3)
                assert tuple(block.conv.inputs.shape) == (groups, fan_in)
                active += groups * 16 * fan_in * 9
            assert len(node.convs) == (2 if stage + level == 5 else 1)
            active += groups * 16 * up * 8
    dense = E2ENet(1, 16, strides=CUBES, sparsity=None)
    inactive = 18_067_200 - active  # of the paper's network what connections could be
    counts = count_parameters(network)
    assert counts["total"] == count_parameters(dense)["total"]
    assert counts["active"] == counts["trainable"] == counts["total"] - inactive
    assert counts["active"] == sum(p.numel() for p in network.parameters())


def test_every_group_holds_different_inputs_and_seeds_give_others():
    network, other = small(0), small(1)
    for _, module in masked_modules(network):
        assert (active_in(module).sum(1) == module.inputs.shape[1]).all()
        assert module.connection_block == block_of(module.out_channels, 2)
    assert any(
        not torch.equal(module.inputs, other.get_submodule(name).inputs) for name, module in masked_modules(network)
    )
    groups = [module.inputs for _, module in masked_modules(small(0, sparsity=0.5)) if module.inputs.shape[1] > 5]
    assert groups and not any(torch.equal(inputs[0], inputs[1]) for inputs in groups)


def test_inputs_are_drawn_uniformly():
    """Over 1000 draws of 4 from 12 no input is off by 5 sigma."""
    module, counts = SharedInputConv3d(12, 4, 1, density=1 / 3, connection_block=2), torch.zeros(2, 12)
    torch.manual_seed(0)
    for _ in range(1000):
        module.draw_kernels(torch.zeros(4, 12, 1, 1, 1))
        counts += active_in(module)
    assert (counts - 1000 / 3).abs().max() < 5 * (1000 * 2 / 9) ** 0.5


def test_a_single_kernel_is_the_default_and_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    plain = E2ENet(1, 3, strides=FOUR, features_per_stage=[4, 6, 8, 9], sparsity=0.6)
    one = small(connection_block=1)
    assert plain.connection_block == 1
    assert plain.state_dict().keys() == one.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), one.state_dict().values(), strict=True))
    assert {type(m) for _, m in masked_modules(plain)} == {MaskedConv3d, MaskedConvTranspose3d}


def test_density_overrides_hold_for_blocks():
    network = E2ENet(1, 2, strides=CUBES, sparsity=0.7, density_overrides={"48": 0.2}, connection_block=16)
    assert network.fusion[0][0].convs[0].conv.inputs.shape == (3, 19)
    assert network.fusion[0][0].up.inputs.shape == (3, 29)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"connection_block": 0}, "connection_block must be an integer of at least 1, found 0"),
        ({"connection_block": 2.0}, "connection_block must be an integer"),
        ({"connection_block": True}, "connection_block must be an integer"),
        ({"connection_block": "16"}, "connection_block must be an integer"),
        ({"fan_in_multiple": 0}, "fan_in_multiple must be an integer of at least 1, found 0"),
        ({"sparsity": None}, "connection_block needs a sparsity"),
        ({"connection_block": 1, "fan_in_multiple": 8}, "fan_in_multiple needs a connection_block above 1"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ConfigurationError, match=said):
        small(**options)


def test_a_stride_is_refused():
    with pytest.raises(ValueError, match="stride 1, found"):
        SharedInputConv3d(4, 4, 3, 2, connection_block=2)


# one layer against sums over its connections


def summed(module, x, transposed):
    """The output of `module`, one group, one output and one input after the other."""
    convolve = F.conv_transpose3d if transposed else F.conv3d
    rows = []
    for group, inputs in zip(module.values, module.inputs, strict=True):
        for kernels in group:
            terms = [convolve(x[:, c : c + 1], k[None, None], None, module.stride, module.padding)
                     for c, k in zip(inputs.tolist(), kernels, strict=True)]  # fmt: skip
            rows.append(sum(terms) + (0 if module.bias is None else module.bias[len(rows)]))
    return torch.cat(rows, 1)


LAYERS = {
    "1x3x3": (lambda **k: SharedInputConv3d(7, 6, (1, 3, 3), 1, (0, 1, 1), **k), False),
    "3x1x3": (lambda **k: SharedInputConv3d(7, 6, (3, 1, 3), 1, (1, 0, 1), **k), False),
    "3x3x3": (lambda **k: SharedInputConv3d(7, 6, (3, 3, 3), 1, (1, 1, 1), **k), False),
    "no bias": (lambda **k: SharedInputConv3d(7, 6, (1, 3, 3), 1, (0, 1, 1), bias=False, **k), False),
    "up": (lambda **k: SharedInputConvTranspose3d(7, 6, (1, 2, 2), **k), True),
    "up by three, no bias": (lambda **k: SharedInputConvTranspose3d(7, 6, (2, 3, 1), bias=False, **k), True),
}


def layer(name, **options):
    torch.manual_seed(0)
    build, transposed = LAYERS[name]
    module = build(**{"density": 0.5, "connection_block": 3, **options}).double()
    module.draw_kernels(torch.randn(module.dense_shape, dtype=torch.float64))
    return shuffled(module), transposed


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_sum_of_its_connections(name, gradients, batch, way):
    module, transposed = layer(name)
    x = torch.randn(batch, 7, 3, 4, 5, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        found = module(x)
    torch.testing.assert_close(found, summed(module, x, transposed), atol=1e-12, rtol=0)
    assert found.shape[1] == 6


@pytest.mark.parametrize("name", LAYERS)
def test_the_dense_weight_has_the_values_and_zeros_elsewhere(name):
    module, transposed = layer(name)
    weight = module.dense_weight()
    assert weight.shape == module.dense_shape and module.kernel_mask.shape == weight.shape[:2]
    assert torch.equal(weight.flatten(2).any(2), module.kernel_mask)
    assert int(module.kernel_mask.sum()) == module.count_active() == 6 * 4
    x = torch.randn(1, 7, 3, 4, 5, dtype=torch.float64)
    convolve = F.conv_transpose3d if transposed else F.conv3d
    dense = convolve(x, weight, module.bias, module.stride, module.padding)
    torch.testing.assert_close(module(x), dense, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("on_a_cpu", "at_once"), [(True, 0), (True, 4096), (False, 0)])
@pytest.mark.parametrize("channels", [(3, 4), (7,)])
@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, True), (True, False, False)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["1x3x3", "3x1x3", "3x3x3", "no bias"])
def test_the_gradients_of_a_layer_are_autograds(name, batch, wanted, channels, on_a_cpu, at_once, monkeypatch):
    """Also by the way that other devices take, through the concatenation, and that of small volumes."""
    monkeypatch.setattr(shared_inputs, "AT_ONCE", at_once)
    monkeypatch.setattr(shared_inputs, "_reads_sources", lambda x: on_a_cpu)
    module, _ = layer(name)
    sources = [torch.randn(batch, n, 3, 4, 5, dtype=torch.float64, requires_grad=True) for n in channels]
    shifts = channel_shifts(7, 1) if name != "3x3x3" else []
    y = module(sources, shifts)
    gradient = torch.randn_like(y)
    bias = [] if module.bias is None else [module.bias]
    expected = torch.autograd.grad(y, [*sources, module.values, *bias], gradient)
    with torch.no_grad():
        torch.testing.assert_close(module(sources, shifts), y)
        found = module.gradients(gradient, sources, shifts, module.values, wanted)
    assert [part is not None for part in found] == [*wanted[:2], wanted[2] and bool(bias)]
    parts = (expected[: len(channels)], *expected[len(channels) :])
    for part, theirs in zip(found, parts, strict=False):
        if part is not None:
            torch.testing.assert_close(part, list(theirs) if isinstance(part, list) else theirs)


@pytest.mark.parametrize("channels", [[7], [3, 1, 3], [2, 5]])
@pytest.mark.parametrize("shift", [0, 1, 2, 7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_channels_are_shifted_on_the_way_and_gradients_on_the_way_back(axis, shift, channels):
    """`depth_shift` of the concatenation, and autograd's gradient of it, also for shifts beyond the volume."""
    torch.manual_seed(0)
    sources = [torch.randn(2, n, 3, 4, 2, dtype=torch.float64, requires_grad=True) for n in channels]
    shifts = channel_shifts(7, shift, "reference") if shift else []
    wanted = torch.tensor([0, 2, 3, 6])
    expected = shifted_concat(sources, shifts, axis)[:, wanted]
    found = torch.full_like(expected, math.nan)
    with torch.no_grad():
        gather_shifted(sources, wanted, shifts, axis, found)
    assert torch.equal(found, expected)
    gradient = torch.randn_like(expected)
    grads = [torch.ones_like(source) for source in sources]
    add_shifted(grads, wanted, shifts, axis, gradient)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, sources, gradient), strict=True):
        torch.testing.assert_close(ours, theirs + 1)


# the network


def with_dense_weights(network):
    """The same function by dense convolutions, whose weights are zero where `network` has no connection."""
    options = {"strides": network.strides, "features_per_stage": network.features_per_stage}
    first = network.fusion[-1][0].convs[0]
    dense = E2ENet(network.input_channels, network.num_classes, deep_supervision=True, sparsity=None,
                   kernel_size=first.conv.kernel_size, memory_efficient=False, **options)  # fmt: skip
    for ours, theirs in zip(dense.modules(), network.modules(), strict=True):
        if hasattr(ours, "shifts"):
            ours.shifts, ours.shift_axis = theirs.shifts, theirs.shift_axis
    state = network.state_dict()
    for name, module in masked_modules(network):
        state[f"{name}.weight"] = module.dense_weight().detach()
        del state[f"{name}.values"], state[f"{name}.inputs"]
    dense.to(next(network.parameters()).dtype).load_state_dict(state)
    return dense


CASES = {
    "default": ((1, 1, 8, 16, 32), {}),
    "batch of two": ((2, 3, 8, 16, 16), {}),
    "a multiple of four": ((1, 1, 8, 16, 16), {"fan_in_multiple": 4}),
    "nearly empty": ((1, 2, 8, 16, 16), {"sparsity": 0.95}),
    "blocks of all outputs": ((1, 2, 8, 16, 16), {"connection_block": 99}),
    "shift by two": ((1, 7, 8, 16, 24), {"shift_size": 2}),
    "no shift": ((1, 4, 8, 16, 16), {"shift_size": 0}),
    "3x1x3": ((2, 4, 8, 16, 16), {"kernel_size": [3, 1, 3]}),
    "3x3x1": ((1, 4, 8, 16, 16), {"kernel_size": [3, 3, 1]}),
    "3x3x3": ((1, 2, 8, 16, 16), {"kernel_size": [3, 3, 3]}),
    "a patch that strides do not divide": ((2, 4, 7, 13, 19), {}),
}


def outputs_and_gradients(network, x, autocast=False):
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = network(x)
    sum(output.to(x.dtype).sin().mean() for output in outputs).backward()
    return outputs, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def assert_close(found, expected, limit):
    """Relative to the largest of each parameter, where that is more than rounding (as behind a normalisation)."""
    assert found.keys() == expected.keys()
    floor = 1e-2 * max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= limit * max(gradient.abs().max(), floor), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("shape", "options"), CASES.values(), ids=CASES.keys())
def test_outputs_and_gradients_are_those_of_dense_convolutions_with_zeros(shape, options, dtype, way):
    """Lean and plain, with slots in any order; of the dense weights' gradients those of what is active."""
    network = small(channels=shape[1], **options).to(dtype)
    for _, module in masked_modules(network):
        shuffled(module)
    plain, dense = copy.deepcopy(network), with_dense_weights(network)
    for block in plain.modules():
        block.memory_efficient = False
    x = torch.randn(shape, dtype=dtype)
    expected = outputs_and_gradients(dense, x)
    for name, module in masked_modules(network):
        gradient = expected[1].pop(f"{name}.weight")
        kept = [module._by_output(gradient).unflatten(0, (-1, module.connection_block))[g][:, inputs]
                for g, inputs in enumerate(module.inputs)]  # fmt: skip
        expected[1][f"{name}.values"] = torch.stack(kept)
    limit = 1e-10 if dtype == torch.float64 else 2e-4
    for ours in (network, plain):
        outputs, gradients = outputs_and_gradients(ours, x)
        for a, b in zip(outputs, expected[0], strict=True):
            torch.testing.assert_close(a, b, atol=limit, rtol=limit)
        assert_close(gradients, expected[1], limit)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[0], expected[0][0], atol=limit, rtol=limit)


def test_gradients_under_autocast_are_those_of_the_plain_formulation(way):
    network = small(features_per_stage=[8, 12, 16, 16], connection_block=4)
    plain = copy.deepcopy(network)
    for block in plain.modules():
        block.memory_efficient = False
    x = torch.randn(1, 1, 8, 32, 32)
    found, expected = outputs_and_gradients(network, x, True), outputs_and_gradients(plain, x, True)
    exact = outputs_and_gradients(plain, x)
    assert found[0][0].dtype == torch.bfloat16
    for name, gradient in exact[1].items():
        assert found[1][name].dtype == gradient.dtype
        if not name.endswith("conv.bias"):
            # Both are off by roundings to bfloat16, ours no more than what autograd computes.
            ours, theirs = ((g[1][name] - gradient).norm() for g in (found, expected))
            assert ours <= 1.5 * theirs + 1e-2 * gradient.norm(), name


def test_gradients_reach_the_image_and_leave_out_what_is_frozen():
    network = small()
    plain = copy.deepcopy(network)
    results = []
    for ours, lean in ((network, True), (plain, False)):
        for block in ours.modules():
            block.memory_efficient = lean
        for part in (ours.backbone[0], ours.fusion[0][0].up, ours.fusion[0][1].convs[0].conv):
            part.requires_grad_(False)
        x = torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        results.append({**outputs_and_gradients(ours, x)[1], "image": x.grad})
    assert "fusion.0.0.up.values" not in results[0] and "fusion.0.1.convs.0.conv.values" not in results[0]
    assert_close(*results, 2e-4)


def test_a_step_builds_no_concatenation(monkeypatch):
    """Nothing that a lean step makes has as many channels as a node reads; the plain way does."""
    monkeypatch.setattr(shared_inputs, "AT_ONCE", 0)
    network = small(features_per_stage=[16, 18, 20, 22], connection_block=8)
    made = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.ndim == 5 and result.shape[2:] == (8, 16, 16):
                made.append(result.shape[1])
            return result

    x = torch.randn(1, 1, 8, 16, 16)
    with Watch(), torch.no_grad():
        network(x)
    assert made and max(made) == 16
    with Watch():
        small(features_per_stage=[16, 18, 20, 22], connection_block=8, memory_efficient=False)(x)
    assert max(made) >= 32


def test_what_no_group_reads_is_neither_up_convolved_nor_pooled(monkeypatch):
    """Counted over a step: each up-convolution and each pooling makes the channels that its convolution reads."""
    monkeypatch.setattr(shared_inputs, "AT_ONCE", 0)
    network = small(features_per_stage=[16, 18, 20, 22], sparsity=0.9, connection_block=8)
    made, read = [], []
    for module in network.modules():
        if isinstance(module, SharedInputConvTranspose3d):
            taps = module._taps
            monkeypatch.setattr(module, "_taps", lambda y, size, taps=taps: made.append(taps(y, size)) or made[-1])
    pool = rebuilding._maxima
    monkeypatch.setattr(rebuilding, "_maxima", lambda x, sizes: made.append(pool(x, sizes)) or made[-1])
    x = torch.randn(1, 1, 8, 16, 16, requires_grad=True)
    outputs = network(x)
    for node in (node for column in network.fusion for node in column):
        reads = node.convs[0].conv.inputs.unique()
        forward, up, _ = node.directions
        of_up, of_down = ((reads >= forward) & (reads < forward + up)).sum(), (reads >= forward + up).sum()
        read += [max(1, int(of_up))] + ([max(1, int(of_down))] if node.down is not None else [])
    assert (
        sum(part.shape[1] for part in made)
        == sum(read)
        < 0.6 * sum(sum(node.directions[1:]) for column in network.fusion for node in column)
    )
    plain = copy.deepcopy(network)
    for block in plain.modules():
        block.memory_efficient = False
    sum(output.sin().mean() for output in outputs).backward()
    found, x.grad = x.grad, None
    sum(output.sin().mean() for output in plain(x)).backward()
    torch.testing.assert_close(found, x.grad, atol=1e-6, rtol=1e-4)


def test_what_is_read_of_sources_that_are_made_for_a_convolution():
    module = SharedInputConv3d(9, 4, (1, 3, 3), 1, (0, 1, 1), density=0.22, connection_block=2)
    module.inputs.copy_(torch.tensor([[4, 0], [8, 4]]))
    read = Read.of(module, [3, 4, 2], [(3, -1), (3, 0), (3, 1)], [False, True, True])
    assert [None if rows is None else rows.tolist() for rows in read.rows] == [None, [1], [1]]
    assert read.inputs.tolist() == [[3, 0], [4, 3]] and list(read.shifts) == [(3, -1), (1, 0), (1, 1)]
    unread = Read.of(module, [5, 3, 1], [], [False, True, False])
    assert unread.rows[1].tolist() == [0] and unread.inputs.tolist() == [[4, 0], [6, 4]] and list(unread.shifts) == []


@pytest.mark.parametrize("name", ["up", "up by three, no bias"])
@pytest.mark.parametrize("batch", [1, 2])
def test_some_outputs_of_an_up_convolution_are_those_of_all(name, batch):
    module, _ = layer(name, connection_block=2)
    x = torch.randn(batch, 7, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([0, 1, 5])  # of three groups the second gives none
    found, expected = module(x, rows=rows), module(x)[:, rows]
    torch.testing.assert_close(found, expected)
    gradient, leaves = torch.randn_like(expected), [x, *module.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(y, leaves, gradient) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["fusion.0.1.up", "fusion.0.1.convs.0.conv"])
def test_inputs_that_move_between_the_two_passes_are_noticed(name):
    network = small()
    loss = network(torch.randn(1, 1, 8, 16, 16))[0].sin().mean()
    module = network.get_submodule(name)
    module.inputs.copy_(module.inputs.flip(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_hooks_on_a_convolution_run_and_count():
    network = small()
    plain = copy.deepcopy(network)
    for block in plain.modules():
        block.memory_efficient = False
    results = []
    for ours in (network, plain):
        ours.fusion[0][0].convs[0].conv.register_forward_hook(lambda module, inputs, output: 0.5 * output)
        x = torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
        results.append(outputs_and_gradients(ours, x)[1])
    assert_close(*results, 2e-4)


# what it costs, and what is told


def test_a_layer_costs_its_active_kernels():
    module = SharedInputConv3d(7, 6, (1, 3, 3), 1, (0, 1, 1), density=0.4, connection_block=3)
    assert count_flops(module, 7, (4, 5, 6)) == 2 * 9 * (6 * 3) * (4 * 5 * 6)
    assert count_parameters(module) == {"total": 6 * 7 * 9 + 6, "trainable": 6 * 3 * 9 + 6, "active": 6 * 3 * 9 + 6}
    up = SharedInputConvTranspose3d(7, 6, (1, 2, 2), bias=False, density=0.4, connection_block=3)
    assert count_flops(up, 7, (4, 5, 6)) == 2 * (6 * 3) * (4 * 10 * 12)


@pytest.mark.parametrize("options", [{}, {"kernel_size": [3, 3, 3]}])
def test_both_conventions_count_what_a_masked_network_of_as_many_kernels_costs(options):
    """Fan-ins that are exactly half, so that both forms have as many active kernels."""
    widths = {"features_per_stage": [4, 8, 12, 16], "sparsity": 0.5}
    blocks, masked = small(**widths, **options), small(**widths, connection_block=1, **options)
    ours, theirs = (complexity_report(network, 1, (8, 16, 16)) for network in (blocks, masked))
    assert ours == theirs and ours["density"] == 0.5


def test_the_report_states_the_density_after_rounding():
    network = small(sparsity=0.8, fan_in_multiple=4)
    active = sum(module.count_active() for _, module in masked_modules(network))
    share = active / sum(module.kernels for _, module in masked_modules(network))
    report = complexity_report(network, 1, (8, 16, 16))
    assert report["density"] == active_share(network) == share > 0.3
    assert f"Active kernels of the sparse convolutions: {100 * share:.2f}%" in complexity_text(report)
    assert "density" not in complexity_report(
        E2ENet(1, 2, strides=FOUR, base_features=4, sparsity=None), 1, (8, 16, 16)
    )


def test_the_network_on_the_meta_device_costs_the_same():
    with torch.device("meta"):
        shadow = small()
    assert complexity_report(shadow, 1, (8, 16, 16)) == complexity_report(small(), 1, (8, 16, 16))


def test_shares_of_directions_count_the_connections():
    network = small(sparsity=0.5)
    for node, share in direction_shares(network).items():
        stage, level = map(int, node.split(","))
        fused = network.fusion[stage - 1][level]
        inputs, first = fused.convs[0].conv.inputs, 0
        for width, value in zip(fused.directions, share.values(), strict=True):
            inside = (inputs >= first) & (inputs < first + width)
            assert value == pytest.approx(float(inside.float().mean()))
            first += width


# what is stored


def first(state, ending):
    return next(key for key in state if key.endswith(ending))


def test_weights_come_back_bit_for_bit():
    source, target = small(0), small(1)
    for _, module in masked_modules(source):
        shuffled(module)
    target.load_state_dict(source.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_only_active_kernels_are_stored_and_optimized():
    network = small()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    outputs_and_gradients(network, torch.randn(1, 1, 8, 16, 16))
    optimizer.step()
    for name, module in masked_modules(network):
        kernels = module.count_active()
        for tensor in (module.values, module.values.grad, optimizer.state[module.values]["momentum_buffer"]):
            assert tensor.numel() == kernels * math.prod(module.kernel_size), name
        assert not hasattr(module, "weight")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda inputs: inputs.index_copy(1, torch.tensor([1]), inputs[:, :1]), "names a kernel twice"),
        (lambda inputs: inputs - 10_000, "kernels that are not there"),
        (lambda inputs: inputs + 10_000, "kernels that are not there"),
        (lambda inputs: inputs.float(), "kernels that are not there"),
        (lambda inputs: inputs[:, :-1], "its connection_block or sparsity is another"),
        (lambda inputs: inputs[:-1], "its connection_block or sparsity is another"),
    ],
)
def test_damaged_inputs_are_refused(change, said):
    state = small().state_dict()
    key = first(state, "conv.inputs")
    state[key] = change(state[key])
    network = small(1)
    before = network.get_submodule(key.removesuffix(".inputs")).values.detach().clone()
    with pytest.raises(RuntimeError, match=said):
        network.load_state_dict(state)
    assert torch.equal(network.get_submodule(key.removesuffix(".inputs")).values, before)


@pytest.mark.parametrize("options", [{"connection_block": 4}, {"sparsity": 0.3}, {"fan_in_multiple": 8}])
def test_other_blocks_and_another_sparsity_are_refused(options):
    with pytest.raises(RuntimeError, match="its connection_block or sparsity is another"):
        small(**options).load_state_dict(small().state_dict())


def test_the_forms_are_not_loaded_into_each_other():
    single = small(connection_block=1)
    with pytest.raises(RuntimeError, match="its connections are single kernels, this network's are in blocks"):
        small().load_state_dict(single.state_dict())
    with pytest.raises(RuntimeError, match="its connections are in blocks, this network's are single kernels"):
        single.load_state_dict(small().state_dict())


def test_a_transfer_takes_values_and_inputs_of_the_same_form():
    source, target = small(0), small(1, channels=2)
    taken, new = transfer(source, target)
    assert set(new) == {"backbone.0.0.conv.weight", *(f"heads.seg_layers.{k}.weight" for k in range(2))}
    for name, module in masked_modules(source):
        assert torch.equal(target.get_submodule(name).inputs, module.inputs)
        assert torch.equal(target.get_submodule(name).values, module.values)
    _, new = transfer(source, small(1, strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]))
    assert new["fusion.0.0.up.values"] == "shape [6, 4, 1, 2, 2] in the source, [6, 4, 2, 2, 2] here"
    assert "fusion.0.0.up.inputs" in new


def test_a_transfer_between_forms_is_refused():
    """Even where as many kernels are active: which blocks' inputs single kernels are is not said."""
    widths = {"features_per_stage": [4, 8, 12, 16], "sparsity": 0.5}
    single, blocks = small(connection_block=1, **widths), small(**widths)
    said = r"fusion\S+ has single connections in the source and connections in blocks of 2 outputs in the target"
    with pytest.raises(ConfigurationError, match=said):
        transfer(single, blocks)
    with pytest.raises(ConfigurationError, match="Give both the same connection_block"):
        transfer(blocks, single)
    with pytest.raises(ConfigurationError, match="blocks of 2 outputs in the source and .* blocks of 4 outputs"):
        transfer(blocks, small(**widths, connection_block=4))
    with pytest.raises(ConfigurationError, match="active kernels in the source"):
        transfer(blocks, small(**{**widths, "sparsity": 0.75}))


def test_nan_spreads_to_what_reads_it_alone():
    """A masked convolution multiplies it by zeros, and so spreads it everywhere."""
    module = SharedInputConv3d(4, 4, 1, density=0.5, connection_block=2)
    x = torch.ones(1, 4, 2, 2, 2)
    x[:, 3] = math.nan
    with torch.no_grad():
        module.inputs[1] = torch.tensor([3, 0])
        y = module(x)
    assert y[:, :2].isfinite().all() and y[:, 2:].isnan().all()


def test_it_works_inside_other_modules_with_a_prefix():
    source, target = (
        nn.Sequential(SharedInputConv3d(4, 6, 3, density=0.5, connection_block=3), nn.ReLU()) for _ in range(2)
    )
    source[0].draw_kernels(torch.randn(6, 4, 3, 3, 3))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source[0].dense_weight(), target[0].dense_weight())
