"""E2ENet keeps the network contract."""

from contract.network import NetworkContract

from nnunet_ext.e2enet.network import E2ENet


class TestE2ENet(NetworkContract):
    network_class = E2ENet
    prediction_tolerance = 1e-4  # packed convolutions

    @classmethod
    def arch_kwargs(cls, strides):
        return {"strides": strides, "features_per_stage": [4] * len(strides), "sparsity": 0.5}
