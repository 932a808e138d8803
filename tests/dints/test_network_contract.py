"""Both networks keep the network contract."""

from contract.network import MINUTES, NetworkContract
from dints.small import depth_for, random_code

from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet


class TestDiNTSNet(NetworkContract, on_request=MINUTES):
    network_class = DiNTSNet

    @classmethod
    def arch_kwargs(cls, strides):
        code = random_code(depth_for(strides), layers=2, dimensions=len(strides[0]))
        return {"strides": strides, "base_features": 3, **code.settings()}


class TestDiNTSSearchNet(NetworkContract):
    network_class = DiNTSSearchNet

    @classmethod
    def arch_kwargs(cls, strides):
        return {"strides": strides, "base_features": 2, "num_layers": 2, "num_depths": min(3, depth_for(strides))}
