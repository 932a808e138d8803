"""E2ENet keeps the network contract, in both forms of its connections."""

from contract.network import MINUTES, NetworkContract

from nnunet_ext.e2enet.network import E2ENet


class TestE2ENet(NetworkContract, on_request=MINUTES):
    network_class = E2ENet
    prediction_tolerance = 1e-4  # packed convolutions

    @classmethod
    def arch_kwargs(cls, strides):
        return {"strides": strides, "features_per_stage": [4] * len(strides), "sparsity": 0.5}


class TestE2ENetInBlocks(NetworkContract, on_request=MINUTES):
    network_class = E2ENet
    training_tolerance = 2e-2  # compiled it is one convolution with groups, which rounds to bfloat16 elsewhere
    prediction_tolerance = 1e-5  # so it is in prediction, in float32

    @classmethod
    def arch_kwargs(cls, strides):
        return {
            "strides": strides,
            "features_per_stage": [8] * len(strides),
            "sparsity": 0.5,
            "connection_block": 4,
        }
