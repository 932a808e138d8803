"""MedTuningNet keeps the network contract, on a ViT and on a Swin."""

import pytest
import torch
from contract.network import (
    CUBE,
    CUBE_STRIDES,
    FLAT,
    FLAT_STRIDES,
    MINUTES,
    ODD,
    PATCH,
    PLANNED,
    STRIDES,
    NetworkContract,
    tensors,
)
from med_tuning.tiny import TINY_SWIN, TINY_VIT, FixedStatistics

from nnunet_ext.med_tuning.network import MedTuningNet

# A network takes images up to the size for which it is built.
OF_STRIDES = {str(STRIDES): (9, 17, 16), str(CUBE_STRIDES): CUBE, str(FLAT_STRIDES): FLAT}
for patch, strides in [*PLANNED.items(), *ODD.items()]:
    before = OF_STRIDES.get(str(strides), patch)
    OF_STRIDES[str(strides)] = tuple(map(max, before, patch))


class Contract(NetworkContract, on_request=MINUTES):
    network_class = MedTuningNet
    tiny: dict

    @classmethod
    def arch_kwargs(cls, strides):
        return {"strides": strides, "patch_size": list(OF_STRIDES[str(strides)]), "dropout": 0.0, **cls.tiny}

    @pytest.mark.parametrize("patch", [(5, 40, 56), (64, 48)])
    def test_feature_maps_are_what_a_training_step_keeps(self, patch):
        """As the contract's, of a network built for the patch."""
        network = MedTuningNet(2, 3, patch_size=patch, **self.tiny).train()
        own = {tensor.untyped_storage().data_ptr() for tensor in tensors(network).values()}
        saved = {}

        def keep(tensor):
            if tensor.untyped_storage().data_ptr() not in own:
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = network(self.image(patch, batch=2))
        measured = sum(storage.nbytes() for storage in saved.values()) / 4 / 2
        for other in (patch, PATCH):
            built_for_another = MedTuningNet(2, 3, patch_size=other, **self.tiny)
            assert built_for_another.compute_conv_feature_map_size(patch) == pytest.approx(measured, rel=0.05)
        del outputs

    def test_two_ranks_make_one_identical_step(self):
        """With the batch norms' statistics fixed: nnU-Net synchronises those on GPUs."""
        contract = type(self)()
        contract.network_class = FixedStatistics
        NetworkContract.test_two_ranks_make_one_identical_step(contract)


class TestViT(Contract):
    tiny = TINY_VIT


class TestSwin(Contract):
    tiny = TINY_SWIN
    older_torch = {"aot_eager": "torch 2.6 takes the gradient of gelu for contiguous; with inductor it trains"}
    # The ViT's suffices.
    test_two_ranks_make_one_identical_step = None

    @pytest.mark.parametrize("classes", [1, 16])
    def test_logits_have_one_to_sixteen_channels(self, classes):
        super().test_logits_have_one_to_sixteen_channels(classes)


del Contract
