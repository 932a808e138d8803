"""Both networks keep the network contract."""

import pytest
from contract.network import NetworkContract
from contract.on_request import thorough
from dints.small import depth_for, random_code

from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet


class TestDiNTSNet(NetworkContract):
    network_class = DiNTSNet

    @classmethod
    def arch_kwargs(cls, strides):
        code = random_code(depth_for(strides), layers=2, dimensions=len(strides[0]))
        return {"strides": strides, "base_features": 3, **code.settings()}

    @thorough
    @pytest.mark.slow
    def test_the_compiled_network_computes_the_same(self):
        """As the contract's, of which one method's is enough to see inductor go wrong."""
        super().test_the_compiled_network_computes_the_same()


class TestDiNTSSearchNet(NetworkContract):
    network_class = DiNTSSearchNet

    @classmethod
    def arch_kwargs(cls, strides):
        return {"strides": strides, "base_features": 2, "num_layers": 2, "num_depths": min(3, depth_for(strides))}
