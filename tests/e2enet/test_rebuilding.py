"""Steps that keep convolutions' outputs alone: gradients of the plain formulation, with a third of what it keeps."""

import json
import os
import subprocess
import sys

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_ext.costs.complexity import kept_elements
from nnunet_ext.e2enet import rebuilding
from nnunet_ext.e2enet.blocks import ConvBlock
from nnunet_ext.e2enet.network import E2ENet

FOUR = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
CUBES = [[1, 1, 1]] + [[2, 2, 2]] * 5

# channels, batch, patch, options
RANDOM = {
    "default": (1, 2, (8, 32, 32), {}),
    "dense": (2, 1, (8, 16, 32), {"sparsity": None}),
    "nearly empty": (3, 1, (8, 16, 16), {"sparsity": 0.97}),
    "reference split": (5, 2, (8, 16, 16), {"channel_split": "reference"}),
    "shift by two": (7, 1, (8, 16, 24), {"shift_size": 2}),
    "no shift": (4, 1, (8, 16, 16), {"shift_size": 0}),
    "3x1x3": (4, 1, (8, 16, 16), {"kernel_size": [3, 1, 3]}),
    "3x3x3": (2, 1, (8, 16, 16), {"kernel_size": [3, 3, 3]}),
    "a patch that strides do not divide": (4, 2, (7, 13, 19), {}),
    "strides of three": (4, 1, (6, 36, 12), {"strides": [[1, 1, 1], [1, 3, 1], [2, 2, 2], [1, 2, 2]]}),
}


def pair(channels=1, seed=0, **options):
    """The same network in both ways, with norms and biases that differ from channel to channel."""
    made = []
    for memory_efficient in (True, False):
        torch.manual_seed(seed)
        options = {"strides": FOUR, "features_per_stage": [5, 6, 7, 8], "sparsity": 0.7, **options}
        network = E2ENet(channels, 3, deep_supervision=True, memory_efficient=memory_efficient, **options)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.5)
        made.append(network)
    return made


def outputs_and_gradients(network, x, autocast=False):
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = network(x)
        loss = sum((output.float() if autocast else output).sin().mean() for output in outputs)
    loss.backward()
    return outputs, {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


def assert_equal(found, expected, limit):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == gradient.dtype
        assert (found[name] - gradient).abs().max() <= limit * gradient.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("channels", "batch", "patch", "options"), RANDOM.values(), ids=RANDOM.keys())
def test_gradients_are_those_of_the_plain_formulation(channels, batch, patch, options, dtype):
    ours, plain = (network.to(dtype) for network in pair(channels, **options))
    x = torch.randn(batch, channels, *patch, dtype=dtype)
    found, expected = outputs_and_gradients(ours, x), outputs_and_gradients(plain, x)
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
    assert_equal(found[1], expected[1], 1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("name", ["default", "dense", "a patch that strides do not divide"])
def test_gradients_under_autocast_are_those_of_the_plain_formulation(name):
    channels, batch, patch, options = RANDOM[name]
    ours, plain = pair(channels, **options)
    x = torch.randn(batch, channels, *patch)
    found, expected = outputs_and_gradients(ours, x, True), outputs_and_gradients(plain, x, True)
    assert found[0][0].dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
    assert_equal(found[1], expected[1], 1e-6)


def test_gradients_reach_the_image_and_leave_out_what_is_frozen():
    ours, plain = pair(4)
    results = []
    for network in (ours, plain):
        for part in (network.backbone[0], network.fusion[0][0].up, network.fusion[1][0].convs[0].norm):
            part.requires_grad_(False)
        x = torch.randn(1, 4, 8, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        _, gradients = outputs_and_gradients(network, x)
        results.append({**gradients, "image": x.grad})
    assert "fusion.0.0.up.values" not in results[0]
    assert_equal(*results, 1e-6)


def test_two_backward_passes_over_one_graph_add_up():
    ours, plain = pair()
    for network in (ours, plain):
        loss = network(torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1)))[0].sin().mean()
        loss.backward(retain_graph=True)
        loss.backward()
    gradients = [{n: p.grad for n, p in network.named_parameters() if p.grad is not None} for network in (ours, plain)]
    assert_equal(*gradients, 1e-6)


def test_both_ways_have_the_same_state_dict_and_predict_the_same():
    ours, plain = pair()
    plain.load_state_dict(pair(seed=1)[0].state_dict())
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(ours.eval()(x), plain.eval()(x), strict=True))


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 1, 1)])
def test_the_pool_is_torchs_and_so_is_its_gradient(sizes):
    """Of many equal values, as bfloat16 has, the first in the order of D, H, W gets it."""
    torch.manual_seed(0)
    for shape, dtype in (((2, 3, 7, 8, 9), torch.float32), ((1, 4, 8, 6, 5), torch.bfloat16)):
        x = torch.randint(-2, 2, shape).to(dtype).requires_grad_()
        expected = torch.nn.functional.max_pool3d(x.float(), sizes, sizes).to(dtype)
        found = rebuilding._Maxima.apply(x, sizes)
        assert torch.equal(found, expected) and torch.equal(rebuilding._maxima(x, sizes), expected)
        gradient = torch.randn_like(expected)
        assert torch.equal(*(torch.autograd.grad(y, x, gradient)[0] for y in (found, expected)))
    with torch.no_grad():
        x[0, 1, 2, 3, 4] = float("nan")
    expected = torch.nn.functional.max_pool3d(x.float(), sizes, sizes).to(x.dtype)
    for y in (rebuilding._Maxima.apply(x, sizes), rebuilding._maxima(x, sizes)):
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


def test_a_pool_of_other_windows_is_torchs_own():
    pools = [nn.MaxPool3d(3, 3), nn.MaxPool3d((2, 2, 3), (2, 2, 3)), nn.MaxPool3d(2, 1), nn.MaxPool3d(2)]
    assert [rebuilding._pools_by_maxima(pool, torch.empty(1)) for pool in pools] == [False, False, False, True]


# memory


def unet():
    return PlainConvUNet(
        1, 6, [32, 64, 128, 256, 320, 320], nn.Conv3d, 3, CUBES, 2, 16, 2, conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )  # fmt: skip


@pytest.mark.parametrize("connection_block", [1, 16])
def test_the_papers_network_keeps_at_most_a_quarter_more_than_nnunets(connection_block):
    def kept(network):
        return kept_elements(network, torch.empty(1, 1, 64, 64, 64, device="meta")) / 64**3

    options = {"strides": CUBES, "deep_supervision": True, "connection_block": connection_block}
    ours, plain = (E2ENet(1, 16, memory_efficient=efficient, **options) for efficient in (True, False))
    assert kept(ours) <= 1.25 * kept(unet())
    assert kept(ours) < 0.3 * kept(plain)


def test_activations_are_not_kept():
    for network, kept in zip(pair(), (False, True), strict=True):
        activations, saved = [], []  # the tensors themselves, so that no other gets their memory
        for block in network.modules():
            if isinstance(block, ConvBlock):
                block.register_forward_hook(lambda *arguments, seen=activations: seen.append(arguments[2].detach()))

        def keep(tensor, saved=saved):
            saved.append(tensor.untyped_storage().data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.randn(1, 1, 8, 16, 16))
        assert len(activations) == 17
        assert {activation.untyped_storage().data_ptr() in saved for activation in activations} == {kept}


@pytest.mark.slow
@pytest.mark.parametrize("connection_block", [1, 4])
def test_a_compiled_network_keeps_as_little(connection_block):
    """By the partitioner that inductor uses; plain, it would keep three times as much."""
    torch._dynamo.reset()
    options = {"strides": FOUR, "base_features": 8, "sparsity": 0.8, "deep_supervision": True}
    options["connection_block"] = connection_block
    network, x = E2ENet(1, 3, **options), torch.randn(1, 1, 16, 64, 64)
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = torch.compile(network, backend="aot_eager_decomp_partition", fullgraph=True)(x)
    found = sum(storage.nbytes() for storage in saved.values()) / 4
    assert found <= 1.1 * kept_elements(network, x.to("meta"))
    del outputs


NARROW = {"strides": [[1, 1, 1]] + [[2, 2, 2]] * 3, "base_features": 24, "deep_supervision": True}
PEAK = """
import json, sys, torch
from nnunet_ext.e2enet.network import E2ENet
def largest():  # of this process alone: what getrusage says begins with the parent's
    return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
torch.set_num_threads(1)
network, x = E2ENet(1, 2, **json.loads(sys.argv[1])), torch.randn(1, 1, 64, 64, 64)
before = largest()
sum(output.square().mean() for output in network(x)).backward()
print(largest() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_of_a_step_falls_by_what_is_not_kept():
    def peak(efficient):  # large blocks go back to the system at once, so that the process is as large as its tensors
        words = [sys.executable, "-c", PEAK, json.dumps({**NARROW, "memory_efficient": efficient})]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
        return int(subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout)

    def kept(efficient):
        with torch.device("meta"):
            network = E2ENet(1, 2, **NARROW, memory_efficient=efficient)
            return 4 * kept_elements(network, torch.empty(1, 1, 64, 64, 64))

    saved = kept(False) - kept(True)
    # what a backward pass makes again is there while the gradient of it is computed
    assert 0.75 * saved < peak(False) - peak(True) < saved
    assert peak(True) < 0.6 * peak(False)


# what was put on or into the network


def test_hooks_on_a_convolution_run_and_count():
    """The block then computes as it is written."""
    ours, plain = pair()
    results = []
    for network in (ours, plain):
        for part in (
            network.fusion[0][0].convs[0].conv,
            network.fusion[1][0].convs[0].norm,
            network.backbone[0][0].act,
        ):
            part.register_forward_hook(lambda module, inputs, output: 0.5 * output)
        network.heads.seg_layers[0].register_forward_hook(lambda module, inputs, output: output - 1)
        x = torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
        results.append(outputs_and_gradients(network, x)[1])
    assert_equal(*results, 1e-6)


@pytest.mark.parametrize("change", [lambda y: y.mul_(0.5), lambda y: 0.5 * y])
def test_activations_that_a_hook_changes_are_read_as_changed(change):
    ours, plain = pair()
    results = []
    for network, halve in ((ours, change), (plain, lambda y: 0.5 * y)):  # in place, the plain formulation refuses
        for block in (network.backbone[0][1], network.fusion[0][1].convs[0]):
            block.register_forward_hook(lambda module, inputs, output, halve=halve: halve(output))
        x = torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
        results.append(outputs_and_gradients(network, x)[1])
    assert_equal(*results, 1e-6)


def test_another_norm_or_activation_is_computed_as_it_is():
    ours, plain = pair()
    results = []
    for network in (ours, plain):
        network.fusion[0][0].convs[0].act = nn.GELU()
        network.fusion[0][1].convs[0].norm = nn.InstanceNorm3d(6)
        x = torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
        results.append(outputs_and_gradients(network, x)[1])
    assert_equal(*results, 1e-6)


@pytest.mark.parametrize("name", ["fusion.0.1.up", "fusion.0.1.convs.0.conv"])
def test_a_topology_that_moves_between_the_two_passes_is_noticed(name):
    ours, _ = pair()
    loss = ours(torch.randn(1, 1, 8, 16, 16))[0].sin().mean()
    module = ours.get_submodule(name)
    module.index.copy_(module.index.flip(0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
