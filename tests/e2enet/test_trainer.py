"""E2ENetTrainer keeps the trainer contract; what only E2ENet has is tested here too."""

import math

import numpy as np
import pytest
import torch
from contract.trainer import STOCK_COMMANDS, STRIDES, TrainerContract, checkpoint
from e2enet.small import active_in
from end_to_end.stock import Workspace, make_dataset, segmentations

from nnunet_ext.e2enet.masked import masked_modules
from nnunet_ext.errors import ConfigurationError


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
        before = {name: m.kernel_mask for name, m in masked_modules(trainer.network)}
        self.run_epoch(trainer)
        assert (trainer.topology.steps, trainer.topology.updates) == (4, 1)
        after = {name: m.kernel_mask for name, m in masked_modules(trainer.network)}
        assert any((before[name] != after[name]).any() for name in before)
        assert all(before[name].sum() == after[name].sum() for name in before)

    def test_frozen_topology_stays(self, workspace):
        trainer = self.build(self.handmade(freeze_topology=True))
        trainer.initialize()
        before = {name: m.kernel_mask for name, m in masked_modules(trainer.network)}
        self.run_epoch(trainer)
        assert all((before[name] == m.kernel_mask).all() for name, m in masked_modules(trainer.network))

    def test_the_folds_have_different_masks(self, workspace):
        def masks(fold):
            trainer = self.build(fold=fold)
            trainer.initialize()
            return [m.kernel_mask for _, m in masked_modules(trainer.network)]

        assert any((a != b).any() for a, b in zip(masks(0), masks(1), strict=True))

    def test_the_topology_follows_the_options_the_length_and_the_fold(self, workspace):
        options = {"num_epochs": 5, "drop_rate": 0.4, "final_drop_rate": 0.1, "update_every": 7, "seed": 3}
        topologies = []
        for fold in (0, 2, "all"):
            trainer = self.build(self.handmade(**options), fold=fold)
            trainer.initialize()
            topologies.append(trainer.topology)
        topology = topologies[1]
        assert (topology.total_steps, topology.update_every, topology.dynamic) == (20, 7, True)
        assert (topology.rate(0), topology.rate(20), topology.rate(10)) == pytest.approx((0.4, 0.1, 0.25))
        assert [t.seed for t in topologies] == [3, 5, 3]

    @pytest.mark.parametrize(("every", "said"), [(12, False), (13, True)])
    def test_masks_that_never_move_are_said(self, workspace, every, said):
        trainer = self.build(self.handmade(num_epochs=3, update_every=every))
        trainer.initialize()
        assert ("The masks never move" in self.log_of(trainer)) == said

    def test_rates_of_drops_go_down(self, workspace):
        with pytest.raises(ConfigurationError, match="'final_drop_rate' must be at most drop_rate"):
            self.build(self.handmade(drop_rate=0.1, final_drop_rate=0.2))

    def test_pretrained_masks_are_what_was_active_first(self, workspace):
        trainer, source = self.build(), self.build(self.handmade(seed=9))
        trainer.initialize()
        source.initialize()
        trainer.network.load_state_dict(source.network.state_dict())  # as nnU-Net's -pretrained_weights does
        for name, mask in trainer.topology.ever_active.items():
            assert torch.equal(mask, dict(masked_modules(source.network))[name].kernel_mask)
        self.run_epoch(trainer)
        seen = {name: mask.clone() for name, mask in trainer.topology.ever_active.items()}
        for name, module in masked_modules(source.network):
            assert (seen[name] & module.kernel_mask).sum() == module.kernel_mask.sum()
            new = int((seen[name] & ~module.kernel_mask).sum())
            assert new <= int(0.5 * module.kernel_mask.sum()) + 1  # grown in the one update, none of the constructor's

    def test_an_overflow_in_an_inactive_kernel_stays_out(self, workspace):
        trainer = self.build()
        trainer.initialize()
        module = dict(masked_modules(trainer.network)).popitem()[1]
        factor = torch.where(module.kernel_mask, 1.0, math.inf)[..., None, None, None]
        (module.dense_weight() * factor).sum().backward()
        assert module.values.grad.isfinite().all() and module.values.grad.shape == module.values.shape

    def test_a_checkpoint_of_dense_weights_goes_on_with_its_momentum(self, workspace):
        """As former versions wrote them: weights and moments in full, and masks."""
        trainer = self.build()
        trainer.initialize()
        self.run_epoch(trainer)
        path = f"{workspace.root}/old.pth"
        trainer.current_epoch -= 1  # save_checkpoint notes the next one
        trainer.save_checkpoint(path)
        trainer.current_epoch += 1
        checkpoint = torch.load(path, weights_only=False)
        weights, moments = checkpoint["network_weights"], checkpoint["optimizer_state"]["state"]
        places = {p: k for k, p in enumerate(trainer.network.parameters())}
        for name, layer in masked_modules(trainer.network):
            del weights[f"{name}.values"], weights[f"{name}.index"]
            weights[f"{name}.weight"], weights[f"{name}.kernel_mask"] = layer.dense_weight().detach(), layer.kernel_mask
            moment = moments[places[layer.values]]["momentum_buffer"]
            moments[places[layer.values]]["momentum_buffer"] = layer.dense_weight(moment).detach()
        torch.save(checkpoint, path)
        resumed = self.build()
        resumed.initialize()
        resumed.load_checkpoint(path)
        assert self.run_epoch(resumed) == self.run_epoch(trainer)
        ours, theirs = ({name: p.detach() for name, p in t.network.named_parameters()} for t in (resumed, trainer))
        for name, layer in masked_modules(resumed.network):
            other = trainer.network.get_submodule(name)
            ours[f"{name}.values"], theirs[f"{name}.values"] = layer.dense_weight(), other.dense_weight()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

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
        indices = [key for key in tuned if key.endswith(".index")]
        assert len(indices) == 8
        assert all(torch.equal(tuned[key], before[key]) for key in indices)
        assert any(not torch.equal(tuned[key], before[key]) for key in tuned if key.endswith("conv.weight"))


class TestE2ENetTrainerInBlocks(TrainerContract, on_request=STOCK_COMMANDS):
    """The same trainer, whose network has connections in blocks."""

    trainer = "E2ENetTrainer"
    planner = "E2ENetPlanner"
    plans = "E2ENetPlans"
    arch_kwargs = {"strides": STRIDES, "features_per_stage": [6, 6, 8], "sparsity": 0.6, "connection_block": 2}
    options = {**TestE2ENetTrainer.options}

    def test_inputs_move_on_schedule_and_every_block_keeps_as_many(self, workspace):
        trainer = self.build()
        trainer.initialize()
        before = {name: active_in(m) for name, m in masked_modules(trainer.network)}
        self.run_epoch(trainer)
        assert (trainer.topology.steps, trainer.topology.updates) == (4, 1)
        after = {name: active_in(m) for name, m in masked_modules(trainer.network)}
        assert any((before[name] != after[name]).any() for name in before)
        assert all(torch.equal(before[name].sum(1), after[name].sum(1)) for name in before)
