"""What planning takes for the feature maps of a training step, against what autograd really keeps."""

import pytest
import torch

from nnunet_ext.e2enet.network import E2ENet

PLANS = {
    "three levels": ((32, 32, 32), [[1, 1, 1], [2, 2, 2], [2, 2, 2]], 1, {}),
    "anisotropic, two channels": ((20, 64, 48), [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]], 2, {}),
    "five levels, four channels": ((16, 64, 64), [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]], 4, {}),
    "cut short": ((38, 56, 40), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], 1, {}),
    "blocks": ((32, 32, 32), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], 1, {"connection_block": 3}),
    "no shift": ((32, 32, 32), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], 3, {"shift_size": 0}),
    "full kernels": ((32, 32, 32), [[1, 1, 1], [2, 2, 2], [2, 2, 2]], 1, {"kernel_size": [3, 3, 3]}),
}


def kept_bytes(network, x):
    """Bytes of all distinct storages that autograd saves, those of parameters and buffers aside."""
    storages = {}
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}

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
def test_what_planning_counts_is_what_autograd_keeps(name):
    patch_size, strides, channels, options = PLANS[name]
    network = E2ENet(channels, 5, strides=strides, base_features=6, deep_supervision=True, **options)
    kept = kept_bytes(network, torch.randn(1, channels, *patch_size))
    assert 4 * network.compute_conv_feature_map_size(patch_size) == pytest.approx(kept, rel=0.01)
