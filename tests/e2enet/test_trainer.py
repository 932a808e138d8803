"""E2ENetTrainer keeps the trainer contract; what only E2ENet has is tested here too."""

import numpy as np
import pytest
import torch
from contract.trainer import STRIDES, TrainerContract, checkpoint
from end_to_end.stock import Workspace, make_dataset, segmentations

from nnunet_ext.e2enet.masked import masked_modules


class TestE2ENetTrainer(TrainerContract):
    trainer = "E2ENetTrainer"
    planner = "E2ENetPlanner"
    plans = "E2ENetPlans"
    arch_kwargs = {"strides": STRIDES, "features_per_stage": [6, 6, 8], "sparsity": 0.6}
    options = {
        "num_epochs": 3,
        "num_iterations_per_epoch": 4,
        "num_val_iterations_per_epoch": 2,
        "update_every": 3,
        "save_every": 1,
    }

    def test_masks_move_on_schedule_and_keep_their_size(self, workspace):
        trainer = self.build()
        trainer.initialize()
        before = {name: m.kernel_mask.clone() for name, m in masked_modules(trainer.network)}
        self.run_epoch(trainer)
        assert (trainer.topology.steps, trainer.topology.updates) == (4, 1)
        after = {name: m.kernel_mask for name, m in masked_modules(trainer.network)}
        assert any((before[name] != after[name]).any() for name in before)
        assert all(before[name].sum() == after[name].sum() for name in before)

    def test_frozen_topology_stays(self, workspace):
        trainer = self.build(self.handmade(freeze_topology=True))
        trainer.initialize()
        before = {name: m.kernel_mask.clone() for name, m in masked_modules(trainer.network)}
        self.run_epoch(trainer)
        assert all((before[name] == m.kernel_mask).all() for name, m in masked_modules(trainer.network))

    def test_the_folds_have_different_masks(self, workspace):
        def masks(fold):
            trainer = self.build(fold=fold)
            trainer.initialize()
            return [m.kernel_mask for _, m in masked_modules(trainer.network)]

        assert any((a != b).any() for a, b in zip(masks(0), masks(1), strict=True))

    def test_a_new_topology_is_not_counted_as_ever_active_before_it_came(self, workspace):
        trainer = self.build()
        trainer.initialize()
        start = trainer.topology.summary()["ever_active"]
        self.run_epoch(trainer)
        assert trainer.topology.summary()["ever_active"] > start

    @pytest.mark.slow
    def test_packed_prediction_with_all_folds_is_that_of_torch(self, trained, tmp_path):
        def predict(target, **environment):
            words = ["-tr", self.trainer, "-p", "TinyPlans", "-c", "3d_fullres", "-d", 7, "-device", "cpu"]
            words += ["-npp", 1, "-nps", 1]
            images = trained.raw / trained.dataset / "imagesTs"
            said = trained.run("nnUNetv2_predict", "-i", images, "-o", target, *words, **environment).stdout
            return said, segmentations(target)

        said, packed = predict(tmp_path / "packed")
        assert said.count("predicts with packed sparse convolutions") == 1
        said, plain = predict(tmp_path / "torch", nnUNet_ext_packed="0")
        assert said.count("predicts with torch's dense convolutions: nnUNet_ext_packed=0") == 1
        for name in plain:  # another summation order may tip a voxel that lies on the fence
            assert np.mean(plain[name] == packed[name]) >= 0.9999

    @pytest.mark.slow
    def test_fine_tuning_with_a_frozen_topology_on_other_channels_and_classes(self, trained, tmp_path):
        target = Workspace(tmp_path, number=8)
        make_dataset(target, channels=2, slabs=6, seed=1)
        target.plan(self.planner)
        words = self.tiny(target, freeze_topology=True)

        pretrained = trained.model(self.trainer, "TinyPlans", "3d_fullres") / "fold_0" / "checkpoint_final.pth"
        fitted = tmp_path / "fitted.pth"
        said = target.run("nnunet_ext", "transfer", pretrained, 8, "--plans", "TinyPlans", "-o", fitted).stdout
        assert "backbone.0.0.conv.weight: shape [6, 1, 1, 3, 3] in the source, [6, 2, 1, 3, 3] here" in said
        target.train("3d_fullres", 0, *words, "-pretrained_weights", fitted)

        tuned = checkpoint(target.model(self.trainer, "TinyPlans", "3d_fullres") / "fold_0")["network_weights"]
        before = checkpoint(pretrained.parent)["network_weights"]
        masks = [key for key in tuned if key.endswith("kernel_mask")]
        assert len(masks) == 8
        assert all(torch.equal(tuned[key], before[key]) for key in masks)
        assert any(not torch.equal(tuned[key], before[key]) for key in tuned if key.endswith("conv.weight"))
