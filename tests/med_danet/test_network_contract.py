"""MedDANet keeps the network contract; its parts are trained one by one, so that gradients are tested part by part."""

import pytest
from contract.network import PATCH, NetworkContract, loss_of
from med_danet.small import arch_kwargs

from nnunet_ext.med_danet.network import MedDANet


class TestMedDANet(NetworkContract):
    network_class = MedDANet
    # Ranks average the gradients of the part that they train; test_trainer.py has the two ranks.
    test_two_ranks_make_one_identical_step = None

    @classmethod
    def arch_kwargs(cls, strides):
        return arch_kwargs(strides)

    @pytest.mark.parametrize("channels", [1, 4])
    @pytest.mark.parametrize("patch", [PATCH, (9, 17, 13)], ids=["divisible", "odd"])
    def test_every_trainable_parameter_gets_a_finite_gradient(self, channels, patch):
        network = self.build(input_channels=channels)
        x = self.image(patch, channels)
        for index, candidate in enumerate(network.candidates):
            loss_of(network.candidate(index, x)).backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in candidate.parameters())
        assert all(p.grad is None for p in network.decision.parameters())
        loss_of(network.decision(network.fold(x))).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
