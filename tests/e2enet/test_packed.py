"""Packed sparse prediction: equal to the masked network, never stale, and out of the way where it cannot run."""

import copy
import gc
import itertools
import weakref

import pytest
import torch
from torch import nn

from nnunet_ext.e2enet.masked import masked_modules
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.packed import dispatch, library
from nnunet_ext.e2enet.presets import PRESETS

ISOTROPIC = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]
TOLERANCE = 1e-4  # of the largest logit: float32, and what F(4,3) transforms add to its rounding


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(dispatch.SWITCH, raising=False)
    dispatch._said.clear()
    yield
    library.engine.cache_clear()


def build(channels=1, classes=3, seed=0, **kwargs):
    torch.manual_seed(seed)
    network = E2ENet(channels, classes, **{"strides": ISOTROPIC, "base_features": 6, **kwargs}).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:  # biases and affine norms that do something, negative scales too
            nn.init.normal_(parameter)
    return network


def with_torch(network, x):
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setenv(dispatch.SWITCH, "0")
        return network(x)


def with_engine(network, x):
    with torch.no_grad():
        logits = network(x)
    assert network in dispatch._packs, "the engine did not run"
    return logits


def assert_equal(network, x):
    """Against float64: torch's own float32 result is off by up to 2e-4 where a channel hardly varies."""
    expected, found = with_torch(copy.deepcopy(network).double(), x.double()), with_engine(network, x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"strides": ANISOTROPIC},
        {"strides": ANISOTROPIC, "kernel_size": [3, 1, 3]},
        {"strides": ANISOTROPIC, "kernel_size": [3, 3, 1]},
        {"shift_size": 0},
        {"shift_size": 2},
        {"shift_size": 7, "base_features": 16},
        {"shift_size": 3, "channel_split": "reference"},
        {"strides": [[1, 1, 1], [3, 3, 3], [2, 2, 2]]},
        {"strides": [[1, 1, 1], [1, 3, 1], [3, 1, 2]]},
        {"strides": [[1, 1, 1], [1, 1, 2], [2, 2, 1], [1, 2, 2], [1, 1, 1]]},
        {"strides": [[1, 1, 1], [4, 4, 4], [1, 2, 2]]},
        {"sparsity": None},
        {"sparsity": 0.1},
        {"sparsity": 0.95},
        {"density_overrides": {"6": 0.5}},
        {"features_per_stage": [5, 33, 17, 40]},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "batch, channels, size",
    [
        (1, 1, (32, 32, 32)),
        (2, 3, (20, 40, 24)),
        (1, 2, (2, 16, 20)),
        (3, 5, (11, 33, 47)),
        (1, 4, (1, 32, 32)),
        (1, 1, (3, 70, 9)),
    ],
    ids=str,
)
def test_logits_equal_torch(kwargs, batch, channels, size):
    assert_equal(build(channels, **kwargs), torch.randn(batch, channels, *size))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_equals_torch_or_names_why_not(preset, capsys):
    arch = {
        k: v for k, v in PRESETS[preset].items() if k in ("sparsity", "density_overrides", "kernel_size", "shift_size")
    }
    arch.pop("density_overrides", None)  # names the paper's widths
    network, x = build(**arch), torch.randn(1, 1, 16, 24, 24)
    if arch.get("kernel_size") == [3, 3, 3]:
        with torch.inference_mode():
            found = network(x)
        assert torch.equal(found, with_torch(network, x))
        assert "3x3x3" in capsys.readouterr().out
    else:
        assert_equal(network, x)


@pytest.mark.parametrize("size, width", [((40, 56, 40), 48), ((20, 160, 128), 16), ((32, 128, 144), 8)], ids=str)
def test_planned_patches(size, width):
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]] if size[0] == 20 else ISOTROPIC
    assert_equal(build(2, 14, strides=strides, base_features=width), torch.randn(1, 2, *size))


def test_outputs_without_connections_and_inputs_that_nobody_reads():
    network = build(sparsity=0.5)
    for _, module in masked_modules(network):
        module.kernel_mask[0].zero_()
        module.kernel_mask[:, 1].zero_()
        module.apply_mask()
    assert_equal(network, torch.randn(1, 1, 16, 16, 16))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_the_result(threads):
    network, x = build(strides=ANISOTROPIC), torch.randn(1, 1, 8, 40, 24)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_equal(network, x)
        first = with_engine(network, x)
        assert all(torch.equal(first, with_engine(network, x)) for _ in range(5))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("lanes", [4, 16])
def test_other_vector_widths(lanes, monkeypatch):
    """The portable path, and the path of 16 lanes, which the compiler can lower to any instruction set."""
    flags = library.instruction_set()[1] if lanes == 16 else []
    monkeypatch.setattr(library, "INSTRUCTION_SETS", {"portable": (lanes, flags)})
    library.engine.cache_clear()
    for strides, batch, size in itertools.product((ISOTROPIC, ANISOTROPIC), (1, 2), ((32, 32, 32), (3, 33, 47))):
        assert_equal(build(strides=strides), torch.randn(batch, 1, *size))
    assert library.engine().packed_lanes() == lanes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_spreads_as_in_torch(value):
    network, x = build(), torch.randn(2, 1, 16, 16, 16)
    x[1, 0, 3, 4, 5] = value
    expected, found = with_torch(network, x), with_engine(network, x)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.isfinite(found[0]).all()
    assert (found[0] - expected[0]).abs().max() <= TOLERANCE * expected[0].abs().max()


@pytest.mark.parametrize("mean", [-1.0, 100.0])
def test_nearly_constant_images(mean):
    """InstanceNorm's variance must not drown in the mean."""
    x = mean + 0.01 * torch.randn(1, 2, 32, 32, 32)
    network = build(2)
    exact = with_torch(copy.deepcopy(network).double(), x.double())
    ours, theirs = ((logits - exact).abs().max() for logits in (with_engine(network, x), with_torch(network, x)))
    assert ours <= 10 * theirs + TOLERANCE * exact.abs().max()


# freshness


def change_in_place(network):
    with torch.no_grad():
        network.fusion[0][0].convs[0].conv.weight.mul_(1.5)


def change_by_optimizer(network):
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    apply_masks(network)


def apply_masks(network):
    for _, module in masked_modules(network):
        module.apply_mask()


def change_mask(network):
    _, module = next(masked_modules(network))
    module.kernel_mask.copy_(module.kernel_mask.flip(0))
    with torch.no_grad():
        module.weight.copy_(module.weight.flip(0))


def change_by_loading(network):
    network.load_state_dict(build(seed=1).state_dict())


def change_by_new_parameter(network):
    block = network.backbone[0][0]
    block.norm.weight = nn.Parameter(block.norm.weight.detach() + 1)


def change_in_training_mode(network):
    network.train()
    for parameter in network.parameters():
        parameter.data.mul_(1 + 0.1 * torch.randn(()))
    network.eval()


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_by_optimizer,
        change_mask,
        change_by_loading,
        change_by_new_parameter,
        change_in_training_mode,
    ],
)
def test_changed_weights_are_never_served_stale(change):
    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    before = with_engine(network, x)
    change(network)
    assert_equal(network, x)
    assert not torch.allclose(with_engine(network, x), before)


def test_results_are_new_tensors():
    network = build()
    a, b = torch.randn(2, 1, 1, 16, 16, 16)
    first = with_engine(network, a)
    kept = first.clone()
    with_engine(network, b)
    assert torch.equal(first, kept)
    first.zero_()
    assert torch.equal(with_engine(network, a), kept)


def test_another_size_and_back():
    network = build()
    for size in ((16, 16, 16), (24, 16, 40), (16, 16, 16)):
        assert_equal(network, torch.randn(1, 1, *size))


def test_buffers_go_with_training_mode_and_with_the_network():
    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    with_engine(network, x)
    memory = weakref.ref(dispatch._packs[network].program)
    network.train()
    gc.collect()
    assert memory() is None and network not in dispatch._packs
    network.eval()
    with_engine(network, x)
    memory = weakref.ref(dispatch._packs[network].program)
    del network
    gc.collect()
    assert memory() is None


def test_a_network_that_predicted_can_be_copied_and_stored():
    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    keys = set(network.state_dict())
    expected = with_engine(network, x)
    assert torch.equal(with_engine(copy.deepcopy(network), x), expected)
    assert set(network.state_dict()) == keys


def test_200_packs_leak_nothing():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    sizes = []
    for k in range(220):
        change_in_place(network)
        with_engine(network, x)
        if k in (19, 219):
            gc.collect()
            sizes.append(resident())
    one_pack = 4 * dispatch._packs[network].program._memory.numel()
    assert sizes[1] - sizes[0] < 5 * one_pack  # 200 leaks of anything would be more


# bfloat16


@pytest.mark.parametrize("strides, batch, size", [(ISOTROPIC, 1, (24, 32, 40)), (ANISOTROPIC, 3, (3, 33, 46))], ids=str)
def test_volumes_in_bfloat16_cost_two_digits(strides, batch, size, monkeypatch, capsys):
    network, x = build(strides=strides), torch.randn(batch, 1, *size)
    exact = with_torch(copy.deepcopy(network).double(), x.double())
    whole = with_engine(network, x)
    monkeypatch.setenv(dispatch.SWITCH, "bf16")
    half = with_engine(network, x)
    assert "volumes in bfloat16" in capsys.readouterr().out
    # 8 bits of mantissa, rounded once a layer: about 1 % of the logits' size, and not what float32 gives
    assert 1e-4 < (half - exact).norm() / exact.norm() < 0.03
    monkeypatch.setenv(dispatch.SWITCH, "1")
    assert torch.equal(with_engine(network, x), whole)


# where torch runs


def test_gradients_training_lists_and_half_precision_stay_with_torch():
    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    network(x).sum().backward()
    with torch.inference_mode():
        network.train()(x)
        network.eval()
        network.deep_supervision = True
        network(x)
        network.deep_supervision = False
        with torch.autocast("cpu", torch.bfloat16):
            network(x)
        copy.deepcopy(network).double()(x.double())
    assert not dispatch._packs


@pytest.mark.parametrize("value, reason", [("0", "nnUNet_ext_packed=0"), ("yes", "none of 0, 1 and bf16")])
def test_the_switch(value, reason, monkeypatch, capsys):
    monkeypatch.setenv(dispatch.SWITCH, value)
    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(network(x), network(x))
    assert network not in dispatch._packs
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and reason in lines[0]


def test_one_line_says_that_it_runs(capsys):
    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    with_engine(network, x)
    with_engine(network, x)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "packed sparse" in lines[0]
