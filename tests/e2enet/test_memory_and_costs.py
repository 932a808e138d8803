"""The planner's memory model against what autograd really keeps, and the command line's arithmetic against counting."""

import pytest
import torch

from nnunet_ext.costs.complexity import complexity_report
from nnunet_ext.e2enet.costs import cost_report
from nnunet_ext.e2enet.network import E2ENet

FULL = [[1, 1, 1]] + [[2, 2, 2]] * 5
PLANS = {
    "three levels": ((32, 32, 32), [[1, 1, 1], [2, 2, 2], [2, 2, 2]], 1, {}),
    "anisotropic, two channels": ((20, 64, 48), [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]], 2, {}),
    "five levels, four channels": ((16, 64, 64), [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]], 4, {}),
    "cut short": ((38, 56, 40), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], 1, {}),
    "no shift": ((32, 32, 32), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], 3, {"shift_size": 0}),
    "full kernels": ((32, 32, 32), [[1, 1, 1], [2, 2, 2], [2, 2, 2]], 1, {"kernel_size": [3, 3, 3]}),
}


def kept_bytes(network, x):
    """Bytes of all distinct storages that autograd saves, the parameters' aside."""
    storages = {}
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(x)  # keeps the graph, and so the storages, until they are summed up
    total = sum(storages.values())
    del output
    return total


@pytest.mark.parametrize("name", PLANS)
def test_the_estimate_is_within_15_percent_of_what_autograd_keeps(name):
    patch_size, strides, channels, options = PLANS[name]
    network = E2ENet(channels, 5, strides=strides, base_features=6, deep_supervision=True, **options)
    kept = kept_bytes(network, torch.randn(1, channels, *patch_size))
    assert 4 * network.compute_conv_feature_map_size(patch_size) == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize(
    ("channels", "classes", "patch_size", "arch_kwargs"),
    [
        (1, 16, (128, 128, 128), {"strides": FULL, "sparsity": 0.7, "density_overrides": {"48": 0.2}}),
        (4, 4, (128, 128, 128), {"strides": FULL, "sparsity": None}),
        (1, 16, (128, 128, 128), {"strides": FULL, "sparsity": 0.7, "kernel_size": [3, 3, 3]}),
        (1, 16, (64, 64, 64), {"strides": FULL, "base_features": 58, "shift_size": 0}),
        (2, 5, (33, 50, 48), {"strides": PLANS["five levels, four channels"][1], "base_features": 5}),
    ],
)
def test_costs_by_arithmetic_equal_those_counted_on_the_network(channels, classes, patch_size, arch_kwargs):
    network = E2ENet(channels, classes, **arch_kwargs)
    assert cost_report(channels, classes, patch_size, arch_kwargs) == complexity_report(network, channels, patch_size)
