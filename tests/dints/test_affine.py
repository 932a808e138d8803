"""Scales and shifts of all norms at once: the numbers that each norm has by itself, in a few launches."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_ext.dints import cells
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet
from nnunet_ext.dints.relaxation import relax

STRIDES = {2: [[1, 1], [2, 2], [2, 2], [2, 2]], 3: [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]}
SIZE = {2: (32, 16), 3: (8, 32, 16)}


def results(network, x, one_by_one, monkeypatch, logits=None):
    """Output and gradients, of the architecture's logits too where they are given."""
    network.zero_grad()
    with monkeypatch.context() as patch:
        if one_by_one:
            patch.setattr(type(network), "_affine", lambda *_: cells.affine)
        y = network(x) if logits is None else network(x, relax(*logits))
    leaves = [*(p for p in network.parameters() if p.requires_grad), *(logits or [])]
    return [y.detach(), *torch.autograd.grad(y.square().mean(), leaves, allow_unused=True)]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_published_network_is_the_same_to_the_last_bit(dimensions, batch, monkeypatch):
    torch.manual_seed(0)
    network = DiNTSNet(1, 2, strides=STRIDES[dimensions], base_features=4)
    torch.manual_seed(1)
    for norm in (module for module in network.modules() if hasattr(module, "eps")):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(batch, 1, *SIZE[dimensions])
    together, apart = (results(network, x, one_by_one, monkeypatch) for one_by_one in (False, True))
    assert len(together) > 100
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("checkpoint_cells", [False, True])
def test_a_supernet_multiplies_with_the_weights_of_the_operations(checkpoint_cells, monkeypatch):
    torch.manual_seed(0)
    network = DiNTSSearchNet(1, 2, strides=STRIDES[3], num_layers=3, base_features=4, checkpoint_cells=checkpoint_cells)
    network = network.double()
    for norm in (module for module in network.modules() if hasattr(module, "eps")):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    logits = [torch.randn_like(p).requires_grad_() for p in (network.log_alpha_a, network.log_alpha_c)]
    x = torch.randn(2, 1, *SIZE[3]).double()
    together, apart = (results(network, x, one_by_one, monkeypatch, logits) for one_by_one in (False, True))
    # Weights are float32, whose gradients are rounded in another order.
    for a, b in zip(together, apart, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


def test_parameters_are_not_multiplied_or_repeated_one_by_one():
    network = DiNTSSearchNet(1, 2, strides=STRIDES[3], num_layers=3, base_features=4).eval()
    norms = sum(len(list(cell.norms())) for cell in network.cells.values())
    with torch.no_grad(), Counting() as counting:
        network(torch.randn(2, 1, *SIZE[3]))
    skipped = sum("skip" in cell.names for cell in network.cells.values())
    assert norms > 100
    assert counting.names["aten::mul"] <= skipped + 30 and counting.names["aten::repeat"] <= 30
