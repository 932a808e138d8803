"""E2ENetTrainer keeps the trainer contract; what only E2ENet has is tested here too."""

from contract.trainer import STRIDES, TrainerContract

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
