"""The engine with products of bfloat16: each kind of layer against a slow formulation, whole networks, the fallback."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnunet_ext.e2enet.blocks import ConvBlock, Sparse
from nnunet_ext.e2enet.depth_shift import shifted_concat
from nnunet_ext.e2enet.masked import MaskedConvTranspose3d
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.packed import dispatch, library, program

ISOTROPIC = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
SUMMATION = 2e-6  # of the largest output: the order of float32 sums, here of at most 99 * 9 products
ROUNDING = 2**-11  # of each output, which is stored in float16
# Winograd's F(2,3): G, the transposes of B and of A (Lavin and Gray, arXiv 1509.09308, section 4.1)
G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
B = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
A = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])

has_products = pytest.mark.skipif(
    not library.has_bfloat16_products(), reason="the processor has no products of bfloat16 in vectors of 16 floats"
)


@pytest.fixture(autouse=True)
def bf16(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "bf16")
    dispatch._said.clear()
    yield
    library._engines.clear()


def rounded(x):
    return x.to(torch.bfloat16).float()


class OneLayer(program.Program):
    """A program of one layer, whose result is what that layer stores: of a convolution the sums before the norm."""

    def __init__(self, module, channels, stride, x):
        network = nn.Module()
        network.backbone = nn.ModuleList([nn.ModuleList([module])])
        network.strides, network.features_per_stage, network.input_channels = [stride], [8], channels
        super().__init__(network, program.Weights(), len(x), x.shape[2:], 1, item=2)

    def _network(self, network):
        module = network.backbone[0][0]
        if isinstance(module, ConvBlock):
            return self._block(module, [self.input], self.strides[0])
        return self._pointwise(module, self.input, self.strides[0])


def assert_stored(found, expected):
    assert found.shape == expected.shape
    allowed = ROUNDING * expected.abs() + SUMMATION * expected.abs().max()
    assert ((found.float() - expected).abs() <= allowed).all()


def slow_convolution(x, weight, stride, axis):
    """The sums of a convolution of bfloat16 values: F(2,3) along the width, plain where it has a stride."""
    order = [axis, *(k for k in range(3) if k != axis)]  # (depth, height, width) of the engine
    back = [2 + order.index(k) for k in range(3)]
    x, weight = (t.permute(0, 1, *(2 + k for k in order)) for t in (x, weight))
    deep, high, wide = (stride[k] for k in order)
    width = x.shape[-1]
    if high > 1 or wide > 1 or width == 1:
        out = F.conv3d(rounded(x), rounded(weight), stride=(deep, high, wide), padding=(0, 1, 1))
    else:
        tiles = -(-width // 2)
        points = rounded(F.pad(x, (1, 1 + 2 * tiles - width)).unfold(-1, 4, 2) @ B.T)  # [B, C, D, H, tiles, 4]
        kernels = rounded(weight @ G.T)  # [C_out, C, 1, 3, 4]
        sums = [
            F.conv3d(points[..., j], kernels[..., j, None], stride=(deep, 1, 1), padding=(0, 1, 0)) for j in range(4)
        ]
        out = (torch.stack(sums, -1) @ A.T).flatten(-2)[..., :width]
    return out.permute(0, 1, *back)


def block_of(channels, outputs, stride, axis, density=None, shift=0):
    kernel = [1 if k == axis else 3 for k in range(3)]
    torch.manual_seed(0)
    return ConvBlock(channels, outputs, kernel, stride, shift, "balanced", density and Sparse(density)).eval()


def weight_of(conv):
    return (conv.dense_weight() if hasattr(conv, "dense_weight") else conv.weight).detach()


@has_products
@pytest.mark.parametrize("density", [None, 0.2, 0.9], ids=["dense", "sparse", "hardly sparse"])
@pytest.mark.parametrize(
    "stride, axis, size",
    [
        ((1, 1, 1), 0, (20, 9, 13)),
        ((1, 1, 1), 0, (3, 17, 1)),
        ((1, 1, 1), 0, (33, 8, 3)),
        ((1, 1, 1), 1, (10, 7, 6)),
        ((1, 1, 1), 2, (5, 2, 18)),
        ((1, 2, 2), 0, (5, 18, 10)),
        ((2, 2, 2), 0, (20, 6, 14)),
        ((2, 2, 2), 1, (34, 4, 4)),
        ((2, 1, 1), 0, (12, 5, 7)),
        ((4, 1, 2), 0, (12, 5, 8)),
        ((1, 3, 2), 0, (7, 12, 6)),
        ((3, 3, 3), 2, (9, 9, 9)),
    ],
    ids=str,
)
def test_a_convolution_sums_products_of_bfloat16(stride, axis, size, density, monkeypatch):
    monkeypatch.setattr(program, "width_segments", lambda *_: 1)
    for channels, outputs, batch in ((1, 3, 2), (33, 17, 1)):
        block = block_of(channels, outputs, stride, axis, density)
        x = torch.randn(batch, channels, *size)
        with torch.no_grad():
            found = OneLayer(block, channels, stride, x)(x)
            expected = slow_convolution(x.half().float(), weight_of(block.conv), stride, axis)
        assert_stored(found, expected)


@has_products
@pytest.mark.parametrize("density", [None, 0.2], ids=["dense", "sparse"])
def test_shifts_cross_lines_and_segments(density, monkeypatch):
    monkeypatch.setattr(program, "width_segments", lambda *_: 2)
    block = block_of(9, 5, (1, 1, 1), 0, density, shift=3)
    x = torch.randn(2, 9, 40, 5, 12)
    with torch.no_grad():
        found = OneLayer(block, 9, (1, 1, 1), x)(x)
        shifted = shifted_concat([x.half().float()], block.shifts, 0)
        assert_stored(found, slow_convolution(shifted, weight_of(block.conv), (1, 1, 1), 0))


@has_products
@pytest.mark.parametrize(
    "stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 3), (4, 2, 1), (3, 1, 2), (1, 1, 1)], ids=str
)
def test_an_up_convolution_sums_products_of_bfloat16(stride, monkeypatch):
    monkeypatch.setattr(program, "width_segments", lambda *_: 1)
    for channels, outputs, size in ((7, 5, (3, 5, 7)), (33, 4, (20, 2, 18))):
        torch.manual_seed(0)
        up = MaskedConvTranspose3d(channels, outputs, stride, stride, bias=False, density=0.4)
        up.shift_axis = 0
        x = torch.randn(2, channels, *size)
        with torch.no_grad():
            found = OneLayer(up, channels, stride, x)(x)
            expected = F.conv_transpose3d(rounded(x.half().float()), rounded(weight_of(up)), stride=stride)
        assert_stored(found, expected)


@has_products
def test_an_output_that_reads_nothing_is_zero():
    up = MaskedConvTranspose3d(3, 2, (2, 2, 2), (2, 2, 2), bias=False, density=0.5)
    up.shift_axis = 0
    mask = torch.tensor([[True, False], [True, False], [True, False]])
    up.set_kernels(torch.ones(up.dense_shape), mask)
    found = OneLayer(up, 3, (2, 2, 2), torch.ones(1, 3, 4, 4, 4))(torch.ones(1, 3, 4, 4, 4))
    assert (found[0, 0] == 3).all() and (found[0, 1] == 0).all()


# whole networks


def build(seed=0, **kwargs):
    torch.manual_seed(seed)
    network = E2ENet(1, 4, **{"strides": ISOTROPIC, "base_features": 16, **kwargs}).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network


def engine_on(network, x):
    with torch.no_grad():
        logits = network(x)
    assert network in dispatch._packs, "the engine did not run"
    return logits


def exact(network, x, monkeypatch):
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setenv(dispatch.SWITCH, "0")
        return copy.deepcopy(network).double()(x.double())


@has_products
def test_the_error_is_not_above_that_of_torch_under_autocast(monkeypatch, capsys):
    ours, theirs = [], []
    for seed, strides in enumerate((ISOTROPIC, [[1, 1, 1], [1, 2, 2], [2, 2, 2]])):
        network, x = build(seed, strides=strides, base_features=32), torch.randn(1, 1, 24, 32, 32)
        expected = exact(network, x, monkeypatch)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            theirs.append(float((network(x) - expected).norm() / expected.norm()))
        ours.append(float((engine_on(network, x) - expected).norm() / expected.norm()))
    assert "in bfloat16, volumes in float16" in capsys.readouterr().out
    assert sum(ours) <= sum(theirs)
    assert 1e-3 < max(ours) < 0.03


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_no_image_overflows_nor_drowns_another(scale, monkeypatch):
    network, x = build(), torch.randn(2, 1, 16, 16, 16)
    x[0] *= scale
    expected, found = exact(network, x, monkeypatch), engine_on(network, x)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.05 * other.norm()


def test_without_products_of_bfloat16_only_the_volumes_are_short(monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(library, "FLAGS", [flag for flag in library.FLAGS if flag != "-O3"])  # compiles faster
    library._engines.clear()
    network, x = build(base_features=8), torch.randn(1, 1, 16, 16, 16)
    expected, found = exact(network, x, monkeypatch), engine_on(network, x)
    assert not library.engine(2).packed_dots()
    kind = str(library.stored_type(2)).removeprefix("torch.")
    assert f"convolutions, volumes in {kind} (" in capsys.readouterr().out
    error = float((found - expected).norm() / expected.norm())
    assert 1e-5 < error < (0.004 if kind == "float16" else 0.03)
