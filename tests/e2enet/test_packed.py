"""Packed sparse prediction: equal to the masked network, never stale, and out of the way where it cannot run."""

import copy
import gc
import itertools
import multiprocessing
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from nnunet_ext.e2enet.masked import masked_modules
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.packed import dispatch, library, program
from nnunet_ext.e2enet.presets import PRESETS

ISOTROPIC = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]
TOLERANCE = 1e-4  # of the largest logit: float32, and what F(4,3) transforms add to its rounding


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(dispatch.SWITCH, raising=False)
    dispatch._said.clear()
    yield
    library._engines.clear()


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
        {"connection_block": 16, "strides": ANISOTROPIC},
        {"connection_block": 4, "sparsity": 0.6, "shift_size": 2},
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


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize(
    "kwargs, size",
    [
        ({"shift_size": 3}, (16, 16, 96)),
        ({"strides": ANISOTROPIC, "kernel_size": [3, 1, 3]}, (16, 10, 96)),
        ({"strides": ANISOTROPIC, "kernel_size": [3, 3, 1]}, (8, 96, 7)),
        ({"strides": [[1, 1, 1], [1, 3, 1], [3, 1, 4]]}, (5, 12, 48)),
    ],
    ids=str,
)
def test_logits_do_not_depend_on_the_segments(kwargs, size, segments, monkeypatch):
    monkeypatch.setattr(program, "width_segments", lambda *_: segments)
    assert_equal(build(2, **kwargs), torch.randn(2, 2, *size))


def test_reads_beyond_a_segment_stay_in_the_arena(monkeypatch):
    monkeypatch.setattr(program, "width_segments", lambda *_: 2)
    network = build(shift_size=3)
    assert_equal(network, torch.randn(1, 1, 72, 16, 32))
    made = dispatch._packs[network].program
    first = min(volume.start for _, sources, _, _ in made._layers for volume in sources)
    assert first >= 72 + 3  # the slice before the first one, in the segment before


def test_segments_fill_the_vectors():
    def chosen(size, vector, batch=1, strides=None):
        sizes = [size]
        for stride in strides or [[2, 2, 2]] * 5:
            sizes.append(tuple(n // s for n, s in zip(sizes[-1], stride, strict=True)))
        return program.width_segments(sizes, [48, 96, 192, 320, 320, 320], vector, batch)

    flat = [[1, 2, 2]] * 5
    assert chosen((4, 128, 128), 16, strides=flat) == 4  # 16 lanes instead of 4
    assert chosen((4, 128, 128), 8, strides=flat) == 2
    assert chosen((4, 128, 128), 4, strides=flat) == 1  # fills vectors of 4 as it is
    assert chosen((4, 128, 128), 16, batch=4, strides=flat) == 1  # so do four copies
    assert chosen((5, 128, 96), 16, strides=flat) == 3  # 15 of 16; four do not divide the narrowest level
    assert chosen((4, 128, 32), 16, strides=flat) == 1  # the narrowest level is one column
    assert chosen((20, 128, 128), 16, strides=[[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]) == 4


ARCHITECTURE = ("sparsity", "density_overrides", "kernel_size", "shift_size", "connection_block")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_equals_torch_or_names_why_not(preset, capsys):
    arch = {k: v for k, v in PRESETS[preset].items() if k in ARCHITECTURE}
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
        mask = torch.ones(module.dense_shape[:2], dtype=torch.bool)
        mask[0] = mask[:, 1] = False
        there = mask.flatten().nonzero().squeeze(1)
        mask.view(-1)[there[module.count_active() :]] = False
        module.set_kernels(torch.randn(module.dense_shape), mask)
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
    library._engines.clear()
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
        network.fusion[0][0].convs[0].conv.values.mul_(1.5)


def change_by_optimizer(network):
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def change_mask(network):
    _, module = next(masked_modules(network))
    module.index.copy_(module.kernels - 1 - module.index)


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


def change_data(network):
    network.backbone[1][0].conv.weight.data.mul_(-1)


def change_through_numpy(network):
    network.fusion[0][0].convs[0].norm.weight.detach().numpy()[0] += 1


def change_order(network):
    """The same values in another order."""
    weight = network.backbone[0][1].conv.weight.data
    weight.copy_(weight.flip(0))


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_by_optimizer,
        change_mask,
        change_by_loading,
        change_by_new_parameter,
        change_in_training_mode,
        change_data,
        change_through_numpy,
        change_order,
    ],
)
def test_changed_weights_are_never_served_stale(change):
    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    before = with_engine(network, x)
    change(network)
    assert_equal(network, x)
    assert not torch.allclose(with_engine(network, x), before)


def test_a_parameter_replaced_200_times_is_seen_each_time():
    """Memory that was freed is given out again, at the same address and with the same version."""
    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    conv = network.fusion[0][0].convs[0].conv
    for _ in range(200):
        values = conv.values.detach() * torch.empty(()).uniform_(0.5, 2)
        del conv.values
        conv.values = nn.Parameter(values)
        with torch.no_grad():
            found = network(x)
        expected = with_torch(network, x)
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_weights_made_in_inference_mode_are_served_and_their_changes_seen():
    with torch.inference_mode():
        network = build()
        x = torch.randn(1, 1, 16, 16, 16)
        before = with_engine(network, x)
        network.backbone[0][0].conv.weight.mul_(2)
        network.backbone[0][0].norm.weight.add_(1)
        after = with_engine(network, x)
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, with_torch(network, x), atol=1e-3, rtol=1e-3)


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


# 16 bits


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("strides, batch, size", [(ISOTROPIC, 1, (24, 32, 40)), (ANISOTROPIC, 3, (3, 33, 46))], ids=str)
def test_the_mode_of_16_bits_is_asked_for_and_less_exact(strides, batch, size, block, monkeypatch, capsys):
    network, x = build(strides=strides, connection_block=block), torch.randn(batch, 1, *size)
    exact = with_torch(copy.deepcopy(network).double(), x.double())
    whole = with_engine(network, x)
    monkeypatch.setenv(dispatch.SWITCH, "bf16")
    half = with_engine(network, x)
    assert "volumes in " in capsys.readouterr().out
    # 8 bits of mantissa, rounded in each layer: 1 to 2 % of the logits' size, and not what float32 gives
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


def pruned(network):
    prune.l1_unstructured(network.fusion[0][0].convs[0].conv, "values", 0.5)


def replaced(path, make):
    def change(network):
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, make(network.get_submodule(path)))

    return change


class Subclass(nn.Conv3d):
    pass


class OfASubclass(torch.Tensor):
    pass


def same_conv(kind):
    def make(conv):
        new = kind(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        new.load_state_dict(conv.state_dict())
        return new

    return make


def with_dropout(stage):
    return nn.Sequential(*stage, nn.Dropout3d(0.5))


def pass_on(module, *arguments):
    return None


def own_forward(network):
    act = network.backbone[0][0].act
    act.forward = lambda x: x


def own_weight(network):
    conv = network.backbone[0][0].conv
    conv.weight = nn.Parameter(torch.randn(conv.weight.shape).as_subclass(OfASubclass))


HEAD, BLOCK = "heads.seg_layers.0", "backbone.0.0"
OUTSIDE = {
    "head with bias": (replaced(HEAD, lambda m: nn.Conv3d(6, 3, 1)), "head"),
    "head as a sequence": (replaced(HEAD, lambda m: nn.Sequential(m, nn.Softplus())), "head"),
    "wider head": (replaced(HEAD, lambda m: nn.Conv3d(6, 3, 3, padding=1, bias=False)), "head"),
    "GELU": (replaced(f"{BLOCK}.act", lambda m: nn.GELU()), "act is a GELU"),
    "slope": (replaced(f"{BLOCK}.act", lambda m: nn.LeakyReLU(0.2)), "another slope"),
    "no norm": (replaced(f"{BLOCK}.norm", lambda m: nn.Identity()), "norm is a Identity"),
    "norm not affine": (replaced(f"{BLOCK}.norm", lambda m: nn.InstanceNorm3d(6)), "not affine"),
    "running statistics": (
        replaced(f"{BLOCK}.norm", lambda m: nn.InstanceNorm3d(6, affine=True, track_running_stats=True)),
        "running statistics",
    ),
    "BatchNorm": (replaced(f"{BLOCK}.norm", lambda m: nn.BatchNorm3d(6)), "BatchNorm3d"),
    "subclass": (replaced("backbone.1.1.conv", same_conv(Subclass)), "is a Subclass"),
    "circular": (
        replaced(
            "backbone.1.1.conv", lambda m: nn.Conv3d(12, 12, (1, 3, 3), padding=(0, 1, 1), padding_mode="circular")
        ),
        "padding of its own",
    ),
    "dilated": (
        replaced("backbone.1.1.conv", lambda m: nn.Conv3d(12, 12, (1, 3, 3), padding=(0, 2, 2), dilation=(1, 2, 2))),
        "dilation",
    ),
    "5x5": (
        replaced("backbone.1.1.conv", lambda m: nn.Conv3d(12, 12, (1, 5, 5), padding=(0, 2, 2))),
        "kernel of 1x5x5",
    ),
    "stride": (
        lambda network: (
            setattr(network.backbone[2][0].conv, "stride", (2, 2, 2)) or network.strides.__setitem__(2, [2, 2, 1])
        ),
        "a stride",
    ),
    "up with bias": (replaced("fusion.0.0.up", lambda m: nn.ConvTranspose3d(12, 6, 2, 2)), "has a bias"),
    "mean pooling": (replaced("fusion.0.1.down", lambda m: nn.AvgPool3d((2, 2, 2), (2, 2, 2))), "AvgPool3d"),
    "pooling with padding": (
        replaced("fusion.0.1.down", lambda m: nn.MaxPool3d((2, 2, 2), (2, 2, 2), ceil_mode=True)),
        "pools in another way",
    ),
    "dropout": (replaced("backbone.1", with_dropout), "not two blocks"),
    "further part": (lambda network: network.backbone[0][0].add_module("drop", nn.Dropout3d()), "further parts"),
    "forward hook": (lambda network: network.backbone[1].register_forward_hook(pass_on), "backbone.1 has a hook"),
    "pre hook": (
        lambda network: network.fusion[0][0].up.register_forward_pre_hook(pass_on),
        "fusion.0.0.up has a hook",
    ),
    "pruning": (pruned, "has a hook"),
    "weight norm": (lambda network: nn.utils.parametrizations.weight_norm(network.backbone[0][1].conv), "Parametrized"),
    "own forward": (own_forward, "act has a forward of its own"),
    "tensor subclass": (own_weight, "conv.weight is a OfASubclass"),
    "3x3x3": (lambda network: None, "kernels of 3x3x3"),
}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.filterwarnings("ignore")
def test_what_the_engine_does_not_know_stays_with_torch(name, capsys):
    change, reason = OUTSIDE[name]
    network = build(kernel_size=[3, 3, 3] if name == "3x3x3" else [1, 3, 3])
    change(network)
    network.eval()
    x = torch.randn(1, 1, 16, 16, 16)
    if name == "stride":
        network._total_stride = lambda level: [8, 8, 8]
    with torch.no_grad():
        try:
            network(x)
        except RuntimeError:  # of torch: the sizes no longer fit
            assert name in ("stride",)
    assert network not in dispatch._packs
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "torch's dense convolutions" in lines[0] and reason in lines[0]


def test_a_hook_on_all_modules_sees_them(capsys):
    network, seen = build(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        with torch.no_grad():
            network(torch.randn(1, 1, 16, 16, 16))
    finally:
        handle.remove()
    assert seen.count(nn.LeakyReLU) == sum(isinstance(m, nn.LeakyReLU) for m in network.modules())
    assert "a hook stands on all modules" in capsys.readouterr().out


def test_a_hook_on_the_network_itself_is_called_and_does_not_hinder():
    network, seen = build(), []
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with_engine(network, torch.randn(1, 1, 16, 16, 16))
    assert seen == [(1, 3, 16, 16, 16)]


@pytest.mark.parametrize("channels", [1, 3])
def test_another_number_of_channels_raises_as_in_torch(channels):
    with torch.no_grad(), pytest.raises(RuntimeError, match=f"to have 2 channels, but got {channels}"):
        build(2)(torch.randn(1, channels, 16, 16, 16))


def test_images_of_a_tensor_subclass_and_with_gradients_say_why(capsys):
    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert type(network(x.as_subclass(OfASubclass))) is OfASubclass
    network(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(x)
    subclass, gradients, autocast = capsys.readouterr().out.splitlines()
    assert "the image is a OfASubclass" in subclass
    assert "gradients are recorded" in gradients
    assert "autocast is on" in autocast


@pytest.mark.parametrize("default", ["meta", "cpu"])
def test_a_default_device_does_not_reach_the_engine(default):
    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    expected = with_engine(network, x)
    dispatch.release(network)
    with torch.device(default):
        assert torch.equal(with_engine(network, x), expected)


def test_two_networks_predict_at_the_same_time():
    """Each has its own lock: with one for all, the second would wait for the first."""
    first, second, x = build(), build(seed=1), torch.randn(1, 1, 16, 16, 16)
    expected = with_engine(second, x)
    with_engine(first, x)
    with dispatch._packs[first].lock, ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(with_engine, second, x).result(60), expected)


def test_threads_that_share_a_network_get_their_own_results():
    network = build()
    images = torch.randn(24, 1, 1, 16, 16, 16)
    expected = [with_engine(network, x) for x in images]
    with ThreadPoolExecutor(6) as pool:
        for found, wanted in zip(pool.map(lambda x: with_engine(network, x), images), expected, strict=True):
            assert torch.equal(found, wanted)


def test_a_child_forked_in_the_middle_of_a_prediction_predicts():
    network, x = build(), torch.randn(1, 1, 16, 16, 16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # torch's own thread pool does not survive a fork
    try:
        with_engine(network, x)
        context = multiprocessing.get_context("fork")
        with dispatch._packs[network].lock, dispatch._packs_lock, library._loading:
            child = context.Process(target=with_engine, args=(network, x))
            child.start()
            child.join(60)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(before)
        child.kill()


def test_moving_a_network_frees_its_buffers():
    network = build()
    with_engine(network, torch.randn(1, 1, 16, 16, 16))
    network.to("cpu")
    assert network not in dispatch._packs


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
