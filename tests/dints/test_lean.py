"""Convolutions that compute their input again: the same numbers, and less that is kept."""

import pytest
import torch
import torch.nn.functional as F
from dints.ranks import gradients_on_one_rank, networks, patches
from dints.small import CUBES, random_code
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_ext.costs.complexity import kept_elements
from nnunet_ext.dints import cells, network
from nnunet_ext.dints.cells import normed
from nnunet_ext.dints.lean import lean_convolution
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet

CODE = random_code(layers=3).settings()


def plain_convolution(conv, before, *inputs):
    return conv(before(*inputs))


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("frozen", [(), ("conv",), ("input",), ("conv", "input", "norm")])
def test_outputs_and_gradients_are_those_of_the_plain_convolution(dimensions, cast, frozen):
    torch.manual_seed(0)
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions](4, 3, 3, padding=1, stride=2)
    norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimensions](4, affine=True)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, *[8] * dimensions, requires_grad="input" not in frozen)
    for module, name in ((conv, "conv"), (norm, "norm")):
        module.requires_grad_(name not in frozen)
    results = []
    for call in (plain_convolution, lean_convolution):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            y = call(conv, lambda *z: F.relu(normed(norm, *z)), x, norm.weight, norm.bias)
        results.append([y])
        wanted = [t for t in (x, *conv.parameters(), *norm.parameters()) if t.requires_grad]
        if wanted:
            results[-1] += torch.autograd.grad(y.float().square().sum(), wanted)
    for plain, lean in zip(*results, strict=True):
        assert plain.dtype == lean.dtype and torch.equal(plain, lean)
    assert len(results[0]) == 6 - len(frozen) - sum(name != "input" for name in frozen)


def test_only_the_inputs_are_kept():
    conv, x = nn.Conv3d(4, 3, 1), torch.randn(1, 4, 4, 4, 4, requires_grad=True)
    seen = []

    def keep(tensor):
        seen.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lean_convolution(conv, lambda x: F.relu(cells.enlarge(x, (2, 2, 2))), x)
    assert set(seen) == {x.data_ptr(), conv.weight.data_ptr()}


def test_a_second_derivative_is_refused():
    conv, x = nn.Conv3d(1, 1, 1), torch.randn(1, 1, 2, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(lean_convolution(conv, F.relu, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: DiNTSNet(1, 2, strides=CUBES, base_features=3, **CODE),
        lambda: DiNTSNet(1, 2, strides=CUBES, base_features=3, use_downsample=False, **CODE),
        lambda: DiNTSSearchNet(1, 2, strides=CUBES, base_features=3, num_layers=2, num_depths=3),
    ],
    ids=["net", "at full resolution", "supernet"],
)
def test_networks_compute_the_same_with_plain_convolutions(make, cast, monkeypatch):
    # At 2x2x2 voxels and less oneDNN leaves bfloat16 gradients of weights uninitialised on some processors.
    x, results = torch.randn(1, 1, *((64, 64, 32) if cast else (32, 32, 16))), []
    for lean in (True, False):
        if not lean:
            monkeypatch.setattr(cells, "lean_convolution", plain_convolution)
            monkeypatch.setattr(network, "lean_convolution", plain_convolution)
        torch.manual_seed(0)
        net = make()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            y = net(x)
        y.float().square().mean().backward()
        results.append([y, *(p.grad for p in net.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def unet(strides):
    """nnU-Net's U-Net as its planner makes it for a patch of 96^3."""
    levels = len(strides)
    return PlainConvUNet(
        1, levels, [min(32 * 2**level, 320) for level in range(levels)], nn.Conv3d, 3, strides, 2, 3, 2,
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip


def test_the_published_network_keeps_at_most_half_more_than_nnunets():
    patch = (96, 96, 96)
    with torch.device("meta"):
        ours, theirs = DiNTSNet(1, 3, strides=CUBES), unet([[1, 1, 1]] + [[2, 2, 2]] * 4)
        x = torch.empty(1, 1, *patch)
    assert ours.compute_conv_feature_map_size(patch) < 1.5 * kept_elements(theirs, x)


def test_a_checkpointed_search_keeps_less_than_a_gigabyte():
    """Of feature maps in fp32, at the paper's settings and one patch of 96^3; so a batch of 8 keeps less than 8 GB."""
    with torch.device("meta"):
        supernet = DiNTSSearchNet(1, 3, strides=CUBES, checkpoint_cells=True)
        x = torch.empty(1, 1, 96, 96, 96)
    assert 4 * kept_elements(supernet, x) < 1e9
    supernet.log_alpha_a.requires_grad_(), supernet.log_alpha_c.requires_grad_()
    assert 4 * kept_elements(supernet, x) < 1e9, "a step of the architecture"


def test_two_ranks_have_the_gradients_of_both_patches(tmp_path):
    """DDP adds up what lean convolutions give it, and ranks keep one architecture."""
    torch.multiprocessing.spawn(gradients_on_one_rank, (str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2))
    for k, net in enumerate(networks()):
        for rank in range(2):
            data, target = patches(rank)
            (F.cross_entropy(net(data), target) / 2).backward()
        alone = [p.grad for p in net.parameters() if p.requires_grad]
        for mine, theirs, expected in zip(one[k], other[k], alone, strict=True):
            assert torch.equal(mine, theirs)
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one[2], other[2], strict=True))
