"""MedDANetTrainer keeps the trainer contract; its phases, labels and ranks are tested here."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contract.on_request import thorough
from contract.trainer import (
    LABELS,
    REGIONS,
    STOCK_COMMANDS,
    STRIDES,
    TrainerContract,
    assert_equal,
    checkpoint,
)
from end_to_end.stock import Workspace, make_dataset, segmentations
from med_danet.ranks import train_one_rank
from med_danet.small import OPTIONS, TWO, Cases, arch_kwargs

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_danet.choice import ChoiceMetric, decision_loss, scaled_costs, slice_labels
from nnunet_ext.med_danet.routing import lowest_nearby
from nnunet_ext.trainers import med_danet as module
from nnunet_ext.trainers.whole_cases import tiles_of


class TestMedDANetTrainer(TrainerContract, on_request=STOCK_COMMANDS):
    trainer = "MedDANetTrainer"
    planner = "MedDANetPlanner"
    plans = "MedDANetPlans"
    arch_kwargs = arch_kwargs(STRIDES, TWO)
    options = OPTIONS
    graphs = (3, 3, 5)  # two candidates, of which one validates; both make labels, and what is chosen validates
    longer = {"bank_epochs": None, "leave_epoch": None}
    configurations = ("2d", "3d_fullres")

    test_killed_training_continues = None  # beside each border below

    def tiny(self, workspace, name="TinyPlans", **options):
        if "num_epochs" in options:  # the contract's other lengths, with the phases' own shares
            options = {"bank_epochs": None, "leave_epoch": None, **options}
        words = super().tiny(workspace, name, **{"save_every": 1, **options})
        plans = workspace.plans(name)
        planar = plans["configurations"].get("2d")
        if planar is not None:
            deep = plans["configurations"]["3d_fullres"]
            planar.update({"patch_size": [32, 32], "batch_size": 4, "nnunet_ext": deep["nnunet_ext"]})
            planar["architecture"] = {
                **deep["architecture"],
                "arch_kwargs": arch_kwargs([stride[1:] for stride in STRIDES], TWO),
            }
            workspace.write_plans(plans, name)
        return words

    def parts(self, trainer):
        network = trainer.net
        return [deepcopy(part.state_dict()) for part in (*network.candidates, network.decision)]

    def moved(self, trainer):
        """Which parts (candidates, then the decision network) the next epoch changes, running statistics included."""
        before = self.parts(trainer)
        self.run_epoch(trainer)
        after = self.parts(trainer)
        return [any(not torch.equal(a[k], b[k]) for k in a) for a, b in zip(before, after, strict=True)]

    @pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
    def test_each_phase_moves_its_parts_and_nothing_else(self, workspace, configuration):
        plans = self.handmade()
        planar = plans["configurations"]["2d"]
        planar.update(
            nnunet_ext=self.options,
            architecture={**self.architecture(), "arch_kwargs": arch_kwargs([s[1:] for s in STRIDES], TWO)},
        )
        trainer = self.build(plans, configuration=configuration)
        trainer.initialize()
        assert trainer.phases.leaving == [0]
        stay = [False, True]
        assert self.moved(trainer) == [True, True, False]
        assert self.moved(trainer) == [*stay, False]
        assert not trainer.net.routes
        assert self.moved(trainer) == [False, False, True]
        assert trainer.net.routes
        rows = json.loads((workspace.model_fold(trainer) / "med_danet_history.json").read_text())
        assert [row["phase"] for row in rows] == ["bank", "bank", "decision"]
        assert [loss is not None for loss in rows[1]["candidate_losses"]] == stay
        assert rows[0]["choices"] is None and sum(rows[2]["choices"]) == 2 * 2 * (8 if configuration != "2d" else 1)
        assert sum(rows[2]["labels"]) == 4 * 2 * (8 if configuration != "2d" else 1)

    def test_the_best_checkpoint_is_one_that_routes(self, workspace):
        trainer = self.build()
        trainer.initialize()
        fold = workspace.model_fold(trainer)
        for _ in range(2):
            self.run_epoch(trainer)
        trainer._best_ema = 2.0  # a Dice that no epoch can reach again
        assert not bool(checkpoint(fold, "checkpoint_best.pth")["network_weights"]["decision_trained"])
        self.run_epoch(trainer)
        best = checkpoint(fold, "checkpoint_best.pth")
        assert bool(best["network_weights"]["decision_trained"])
        means = trainer.logger.local_logger.my_fantastic_logging
        assert means["ema_fg_dice"][-1] == means["mean_fg_dice"][-1]
        assert trainer._best_ema == means["ema_fg_dice"][-1]

    def test_moments_that_nothing_reads_any_more_are_not_stored(self, workspace):
        """The bank's from the border on, all in the final checkpoint."""
        trainer = self.after(3, {"latest": 2, "best": 3, "final": 3})
        names = [name for name, _ in trainer.network.named_parameters()]
        for name, expected in (("latest", set()), ("best", {"decision"}), ("final", set())):
            state = checkpoint(Path(trainer.output_folder), f"checkpoint_{name}.pth")["optimizer_state"]["state"]
            assert {names[index].split(".")[0] for index in state} == expected, name

    def test_a_prolonged_training_keeps_its_border(self, workspace):
        whole = self.after(3, {"final": 3})  # bank, bank, decision
        resumed = self.continued(num_epochs=9, bank_epochs=None)  # whose border would be at 8
        resumed.load_checkpoint(f"{whole.output_folder}/checkpoint_final.pth")
        assert resumed.decides and resumed.options.decision_start == 2
        assert "The bank was finished after 2 epochs: that stays" in self.log_of(resumed)
        assert "This checkpoint has no moments of the optimizer: they start anew." in self.log_of(resumed)
        before = deepcopy(resumed.network.candidates.state_dict())
        self.run_epoch(resumed)
        assert all(torch.equal(before[key], value) for key, value in resumed.network.candidates.state_dict().items())
        again = self.method_state_after_saving(resumed, workspace)
        assert again.decides and again.options.decision_start == 2

    def method_state_after_saving(self, trainer, workspace):
        trainer.save_checkpoint(f"{workspace.root}/again.pth")
        again = self.continued(num_epochs=9, bank_epochs=None)
        again.load_checkpoint(f"{workspace.root}/again.pth")
        return again

    def test_a_bank_that_is_trained_on_gets_a_new_decision_network(self, workspace):
        whole = self.after(3, {"latest": 3})
        decision = deepcopy(whole.network.decision.state_dict())
        resumed = self.continued(num_epochs=9, bank_epochs=5)
        resumed.load_checkpoint(f"{whole.output_folder}/checkpoint_latest.pth")
        assert not resumed.decides and not resumed.net.routes
        assert "then the decision network starts anew" in self.log_of(resumed)
        fresh = self.build()
        fresh.initialize()
        fresh.net.restart_decision(fresh.seed)
        ours = resumed.network.decision.state_dict()
        assert any(not torch.equal(decision[key], value) for key, value in ours.items())
        assert all(torch.equal(value, ours[key]) for key, value in fresh.network.decision.state_dict().items())
        assert not any(parameter in resumed.optimizer.state for parameter in resumed.network.decision.parameters())
        assert np.isfinite(self.run_epoch(resumed)).all()

    def test_the_border_has_a_checkpoint_whatever_save_every_says(self, workspace):
        trainer = self.build()
        trainer.initialize()
        fold = workspace.model_fold(trainer)
        self.run_epoch(trainer)
        assert not (fold / "checkpoint_latest.pth").exists()
        self.run_epoch(trainer)
        assert checkpoint(fold, "checkpoint_latest.pth")["current_epoch"] == 2

    def test_one_epoch_trains_the_bank_only(self, workspace):
        trainer = self.build(self.handmade(num_epochs=1, bank_epochs=None, leave_epoch=None))
        trainer.initialize()
        assert self.moved(trainer) == [True, True, False]
        assert not trainer.net.routes
        assert (workspace.model_fold(trainer) / "checkpoint_best.pth").is_file()

    def test_pretrained_decisions_are_not_taken_over(self, workspace):
        trainer = self.build()
        trainer.initialize()
        trainer.net.decision_trained.fill_(True)
        self.run_epoch(trainer)
        assert not trainer.net.routes

    def test_rates_of_both_phases(self, workspace):
        trainer = self.build(self.handmade(decision_lr=0.5))
        trainer.initialize()
        rates = self.rates_of_steps(trainer)
        for _ in range(3):
            self.run_epoch(trainer)
        bank = [0.001 * min(1, (k + 1) / 4) * (1 - k / 8) ** 0.9 for k in range(8)]
        decision = [0.5 * min(1, (k + 1) / 4) * (1 - k / 4) ** 0.9 for k in range(4)]
        assert rates == pytest.approx(bank + decision)

    def test_candidates_in_turn_give_the_gradients_of_the_mean_loss(self, workspace):
        trainer = self.build()
        trainer.initialize()
        trainer.on_train_epoch_start()
        batch = self.batch(trainer, 0)
        torch.manual_seed(0)  # dropout
        trainer._bank_losses(batch["data"], batch["target"])
        found = [p.grad.clone() for p in trainer.net.candidates.parameters()]
        trainer.optimizer.zero_grad()
        x, target = batch["data"], batch["target"]
        torch.manual_seed(0)
        sum(trainer.loss(trainer.net.candidate(i, x), target) for i in range(2)).backward()
        assert_equal(found, [p.grad for p in trainer.net.candidates.parameters()])

    def in_decisions(self, workspace, **options):
        """A trainer at its first decision step."""
        trainer = self.build(self.handmade(**options))
        trainer.initialize()
        trainer.current_epoch = trainer.options.decision_start
        trainer.on_train_epoch_start()
        return trainer

    def test_metric_and_class_weights_of_the_options_reach_the_decisions(self, workspace, monkeypatch):
        metrics = []
        monkeypatch.setattr(module, "slice_labels", lambda *a, **told: metrics.append(a[3]) or slice_labels(*a, **told))
        told = {"softmax": "both", "score": "pooled", "label_views": 4}
        trainer = self.in_decisions(workspace, alpha=1.0, **told)
        trainer.train_step(self.batch(trainer, 3))
        labels = trainer._notes.row(True)["labels"]
        costs = scaled_costs(trainer.slice_costs.candidates)
        assert metrics == [ChoiceMetric(costs, 1.0, "both", None, "pooled", 4)]
        assert self.in_decisions(workspace, cost=0.25).metric == ChoiceMetric(costs, cost=0.25)
        assert sum(labels) > 0 and labels[2:] == [0] * len(labels[2:])  # cost alone: none but the cheapest
        given = []
        monkeypatch.setattr(module, "decision_loss", lambda *a: given.append(a[2]) or decision_loss(*a))
        trainer = self.in_decisions(workspace, class_weights=[0.5, 1.0, 9.0])
        trainer.train_step(self.batch(trainer, 3))
        assert given == [[0.5, 1.0, 9.0]]

    def test_costs_are_scaled_and_the_optimizer_is_the_authors_adam(self, workspace):
        trainer = self.in_decisions(workspace)
        macs = trainer.slice_costs.candidates
        assert trainer.metric.costs == scaled_costs(macs) != list(macs)
        assert type(trainer.optimizer) is torch.optim.Adam and trainer.optimizer.defaults["amsgrad"]
        assert trainer.optimizer.defaults["weight_decay"] == trainer.options.weight_decay

    def test_gradients_are_clipped_part_by_part(self, workspace, monkeypatch):
        trainer = self.build()
        trainer.initialize()
        trainer.on_train_epoch_start()
        norms = []
        backward = trainer._backward

        def enlarged(loss, part):
            result = backward(loss * 1e6, part)
            return result / 1e6

        monkeypatch.setattr(trainer, "_backward", enlarged)
        step = trainer.optimizer.step

        def measured():
            for part in trainer._learning():
                norms.append(torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None]).norm())
            step()

        monkeypatch.setattr(trainer.optimizer, "step", measured)
        trainer.train_step(self.batch(trainer, 1))
        assert len(norms) == 2 and [float(norm) for norm in norms] == pytest.approx([12, 12], rel=1e-3)

    TWO_EPOCHS = {"num_epochs": 2, "leave_epoch": 1, "bank_epochs": 1}

    def routing(self, workspace, configuration="3d_fullres", plans=None, **options):
        """A trainer after its whole training, an epoch a phase."""
        plans = self.handmade(**self.TWO_EPOCHS, **options) if plans is None else plans
        trainer = self.build(plans, configuration=configuration)
        trainer.initialize()
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # sets the axes that prediction mirrors
        towards_skip = torch.tensor([4.0, 0.0, 0.0])  # a network that would skip nearly all
        trainer.net.decision.register_forward_hook(lambda _, inputs, logits: logits + towards_skip)
        for _ in range(2):
            self.run_epoch(trainer)
        return trainer

    def with_2d(self):
        """Handmade plans that have both configurations."""
        plans = self.handmade(**self.TWO_EPOCHS)
        plans["configurations"]["2d"].update(
            nnunet_ext={**self.options, **self.TWO_EPOCHS},
            architecture={**self.architecture(), "arch_kwargs": arch_kwargs([s[1:] for s in STRIDES], TWO)},
        )
        return plans

    def test_the_rules_of_skipping_are_in_the_checkpoint(self, workspace):
        trainer = self.routing(workspace, skip_threshold=0.75)
        saved = checkpoint(workspace.model_fold(trainer), "checkpoint_best.pth")["network_weights"]
        assert (float(saved["skip_threshold"]), int(saved["skip_neighbours"])) == (0.75, 1)
        assert saved["mirror_axes"].tolist() == [True, True]
        assert "The bank's last losses: UNet-2" in self.log_of(trainer)
        trainer = self.build(self.handmade(skip_neighbours=0))
        trainer.initialize()
        trainer.inference_allowed_mirroring_axes = (2,)
        trainer.on_train_epoch_start()
        assert int(trainer.net.skip_neighbours) == 0 and trainer.net.mirror_axes.tolist() == [False, True]

    def test_neighbours_are_none_in_2d(self, workspace):
        plans = self.with_2d()
        trainer = self.routing(workspace, "2d", plans)
        assert int(trainer.net.skip_neighbours) == 0 and trainer.net.mirror_axes.tolist() == [True, True]
        plans["configurations"]["2d"]["nnunet_ext"] = {**self.options, "skip_neighbours": 1}
        with pytest.raises(ConfigurationError, match="slices one by one: 'skip_neighbours' must be 0 or null, found 1"):
            self.build(plans, configuration="2d")

    def test_every_step_keeps_the_slice_with_foreground(self, workspace):
        trainer = self.build(self.handmade(slices_per_step=4))
        trainer.initialize()
        trainer.on_train_epoch_start()
        batch = self.batch(trainer, 0)
        batch["target"] = torch.zeros_like(batch["target"])
        batch["target"][1, :, 3, 5, 5] = 1
        seen, losses = [], trainer._bank_losses
        trainer._bank_losses = lambda data, target: (seen.append(target), losses(data, target))[1]
        for _ in range(8):
            trainer.train_step(batch)
        assert {target.shape[2] for target in seen} == {2}
        assert all(target.any() for target in seen)

    def test_a_validation_asks_the_decision_network_once_a_batch(self, workspace):
        trainer = self.build()
        trainer.initialize()
        trainer.net.decision_trained.fill_(True)
        trainer.net.eval()
        trainer.on_validation_epoch_start()
        asked = []
        trainer.net.decision.register_forward_hook(lambda *_: asked.append(True))
        with torch.no_grad():
            for number in range(2):
                trainer.validation_step(self.batch(trainer, number))
        assert len(asked) == 2

    def test_the_threshold_skips_no_foreground_of_the_validation(self, workspace):
        trainer = self.routing(workspace)
        skip = torch.tensor([share for share, _ in trainer._notes.skips])
        holds = torch.tensor([foreground for _, foreground in trainer._notes.skips])
        assert len(skip) == 2 * 2 * 8 and holds.all()  # two batches of two patches of eight slices, all with some
        assert float(trainer.net.skip_threshold) == pytest.approx(max(0.5, float(skip.max() + (1 - skip.max()) / 1000)))
        assert trainer.net.skip_threshold > skip.max() > 0.5
        with torch.no_grad():
            batches = [self.batch(trainer, 1500 + i)["data"] for i in range(2)]
            expected = torch.cat([lowest_nearby(trainer.net.shares(x)[..., 0], 1).flatten() for x in batches])
        torch.testing.assert_close(skip, expected)
        assert float(self.routing(workspace, skip_risk=1.0).net.skip_threshold) == 0.5

    def test_statistics_of_the_decision_network_are_those_of_the_last_slices(self, workspace):
        trainer = self.routing(workspace)
        norm = trainer.net.decision.stem[1]
        slices = torch.cat([trainer.net.fold(self.batch(trainer, 1000 + i)["data"]) for i in range(4)])
        with torch.no_grad():
            mean = trainer.net.decision.stem[0](slices).mean((0, 2, 3))
        torch.testing.assert_close(norm.running_mean, mean)

    @pytest.mark.parametrize("planar", [False, True])
    def test_the_end_says_whether_routing_pays_and_sets_the_threshold(self, workspace, monkeypatch, planar):
        trainer = self.routing(workspace, "2d" if planar else "3d_fullres", self.with_2d())
        cases = Cases()
        monkeypatch.setattr(trainer, "get_tr_and_val_datasets", lambda: (None, cases))
        trainer.on_train_end()
        fold = workspace.model_fold(trainer)
        report = json.loads((fold / "med_danet_routing.json").read_text())
        saved = checkpoint(fold)["network_weights"]
        assert report["skip_threshold"] == float(saved["skip_threshold"])
        assert report["risk"]["skipped_with_foreground"] == 0
        patch = trainer.configuration_manager.patch_size
        tiles = [tile for name in cases.identifiers for tile in tiles_of(*trainer._case(cases, name), patch)]
        assert report["slices"] == sum(int(inside.sum()) for _, _, inside in tiles)
        holds = [trainer._foreground(true).flatten()[inside].sum() for _, true, inside in tiles]
        assert report["risk"]["slices_with_foreground"] == int(sum(holds)) > 0
        assert report["risk"]["empty_slices"] == report["slices"] - int(sum(holds)) > 0
        with torch.no_grad():
            shares = [trainer.net.shares(tile)[..., 0] for tile, _, _ in tiles]
        nearby = [lowest_nearby(share, int(not planar)).flatten() for share in shares]
        highest = max(
            float(torch.where(inside & trainer._foreground(true).flatten(), skip, 0).max())
            for skip, (_, true, inside) in zip(nearby, tiles, strict=True)
        )
        assert 0.5 < highest < float(saved["skip_threshold"]) == pytest.approx(highest + (1 - highest) / 1000)
        assert "slices with foreground were skipped" in self.log_of(trainer)

    @pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
    def test_labels_are_made_once_and_are_those_of_each_slice(self, workspace, monkeypatch, configuration):
        plans, options = self.with_2d(), {"num_epochs": 4, "labels": "once", "slices_per_step": 6}
        plans["configurations"][configuration]["nnunet_ext"] = {**self.options, **options}
        trainer = self.build(plans, configuration=configuration)
        trainer.initialize()
        cases, ended, asked, learned = Cases(), [], [], []
        monkeypatch.setattr(trainer, "get_tr_and_val_datasets", lambda: (cases, None))
        trainer.dataloader_train = SimpleNamespace(_finish=lambda: ended.append(True))
        for _ in range(2):
            self.run_epoch(trainer)
        assert trainer._labelled is None and not ended
        monkeypatch.setattr(module, "slice_labels", lambda *a, **told: asked.append(a[1]) or slice_labels(*a, **told))
        monkeypatch.setattr(module, "decision_loss", lambda *a: learned.append(a[1]) or decision_loss(*a))
        monkeypatch.setattr(trainer, "_losses_of_batch", None)  # no batch of nnU-Net's is looked at any more
        for _ in range(2):
            self.run_epoch(trainer)
        labelled = trainer._labelled
        assert ended == [True] and next(trainer.dataloader_train) == {}
        assert labelled.places[:, 1].tolist() == [*range(5)] * 2 + [*range(14)] * 2, "18 and 20 rows in windows of 16"
        assert max(map(len, asked)) == 6 and sum(map(len, asked)) == len(labelled.labels) == 38
        for (number, z, y, x), label in zip(labelled.places.tolist(), labelled.labels.tolist(), strict=True):
            image, target = (part[None, :, z, y : y + 16, x : x + 16] for part in trainer._case(cases, "ab"[number]))
            assert slice_labels(trainer.net.eval(), image, target, trainer.metric).tolist() == [label]
        size = trainer.batch_size if configuration == "2d" else 6
        assert [len(labels) for labels in learned] == [size] * 8
        assert all((labels[: size // 2] > 0).all() for labels in learned) and (torch.cat(learned) == 0).any()
        assert "Labels of 38 slices of the training cases, made once: skip " in self.log_of(trainer)

    @pytest.mark.parametrize("labels", ["batch", "once"])
    def test_decisions_that_are_stopped_and_continued_are_the_same(self, workspace, monkeypatch, labels):
        options = {"num_epochs": 4, "labels": labels, "save_every": 1}
        whole, resumed = self.build(self.handmade(**options)), self.continued(**options)
        for trainer in (whole, resumed):
            monkeypatch.setattr(trainer, "get_tr_and_val_datasets", lambda: (Cases(), None))
        whole.initialize()
        for _ in range(3):
            self.run_epoch(whole)
        resumed.load_checkpoint(f"{whole.output_folder}/checkpoint_latest.pth")
        assert resumed.current_epoch == 3
        for trainer in (whole, resumed):
            self.run_epoch(trainer)
        assert_equal(resumed.network.state_dict(), whole.network.state_dict())

    @pytest.mark.parametrize("labels", [LABELS, REGIONS])
    @pytest.mark.parametrize("epoch", [0, 2])
    def test_a_batch_without_annotation_teaches_nothing(self, workspace, epoch, labels):
        trainer = self.build(labels={**labels, "labels": {**labels["labels"], "ignore": 3}})
        trainer.initialize()
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        target = torch.full((2, 1, 8, 16, 16), 3.0)
        if trainer.label_manager.has_regions:  # masks of the regions, then of what is ignored
            target = torch.cat([torch.zeros(2, len(labels["regions_class_order"]), 8, 16, 16), target / 3], 1)
        before = self.parts(trainer)
        assert float(trainer.train_step({"data": torch.randn(2, 1, 8, 16, 16), "target": target})["loss"]) == 0
        assert_equal(self.parts(trainer), before)
        target[:, -1, 0, :8] = 0  # a part of one slice is annotated, as background
        target[:, :, 1, :8] = 1  # and some of another is foreground
        if trainer.label_manager.has_regions:
            target[:, -1, 1, :8] = 0
        trainer.train_step({"data": torch.randn(2, 1, 8, 16, 16), "target": target})
        moved = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in zip(before, self.parts(trainer), strict=True)]
        assert any(moved)

    def test_a_plan_of_one_level_is_refused_before_the_work(self, workspace):
        plans = self.handmade()
        architecture = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        architecture["strides"] = [[1, 1, 1]]
        with pytest.raises(ConfigurationError, match="a single level"):
            self.build(plans)
        assert list(workspace.results.iterdir()) == []

    def test_regions_train_through_both_phases(self, workspace):
        trainer = self.build(labels=REGIONS)
        trainer.initialize()
        losses = [self.run_epoch(trainer) for _ in range(3)]
        assert np.isfinite(losses).all()
        assert (trainer.net.skip.logits < 0).all()

    def test_3d_images_are_mirrored_and_rotated_in_the_plane_only(self, workspace):
        trainer = self.build()
        _, dummy_2d, size, _ = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        assert dummy_2d and size[0] == 8
        assert trainer.inference_allowed_mirroring_axes == (1, 2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"class_weights": [1.0] * 5}, "needs 3 numbers, for skip and 2 candidates"),
            ({"leaving_candidates": [5]}, "some of the 2 candidates"),
            ({"bank_epochs": 4}, "at most num_epochs"),
        ],
    )
    def test_options_that_do_not_fit_are_refused(self, workspace, options, message):
        with pytest.raises(ConfigurationError, match=message):
            self.build(self.handmade(**options))
        assert list(workspace.results.iterdir()) == []

    @pytest.mark.slow
    def test_two_ranks_stay_equal_across_both_borders(self, workspace):
        torch.multiprocessing.spawn(train_one_rank, (str(workspace.root), workspace.folders), nprocs=2)
        first, second = (torch.load(workspace.root / f"rank{rank}") for rank in (0, 1))
        for kind in ("batch", "once"):
            one, other = first[kind], second[kind]
            assert one["epochs"] == other["epochs"] == 3
            assert one["data"] != other["data"]
            for ours, theirs in zip(one["weights"], other["weights"], strict=True):
                assert_equal(ours, theirs)
            before, after = (weights.values() for weights in (one["weights"][0], one["weights"][2]))
            assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert_equal(first["once"]["labels"], second["once"]["labels"])
        assert len(first["once"]["labels"]) == 38, "each rank labels one of the two cases, and knows both"

    @pytest.mark.slow
    def test_2d_through_the_stock_commands(self, planned, tmp_path):
        words = self.tiny(planned)
        planned.train("2d", 0, *words)
        images = planned.raw / planned.dataset / "imagesTs"
        predicted, _ = planned.together(
            lambda: planned.predict(images, tmp_path / "out", *words, "-c", "2d", "-f", 0),
            lambda: planned.run(
                "nnunet_ext", "predict", "-i", images, "-o", tmp_path / "batched", "-d", planned.number, *words,
                "-c", "2d", "-f", 0, "-device", "cpu", "-npp", 0, "-nps", 0,
            ),
        )  # fmt: skip
        batched = segmentations(tmp_path / "batched")
        assert predicted and batched.keys() == predicted.keys()
        assert all(np.array_equal(batched[name], predicted[name]) for name in predicted)
        fold = planned.model(self.trainer, "TinyPlans", "2d") / "fold_0"
        saved = checkpoint(fold)
        assert bool(saved["network_weights"]["decision_trained"])
        spent = json.loads((fold / "validation" / "med_danet_spent.json").read_text())
        assert sum(spent["counts"]) == spent["slices"] >= 20 * 4  # slices of the case, four mirrored passes
        scored = json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]
        assert len(spent["cases"]) == len(scored)
        for case in spent["cases"]:
            assert len(case["votes"]) == len(case["foreground"]) and sum(case["foreground"]) > 0
            assert sum(map(sum, case["votes"])) == case["slices"]
        planned.run("nnunet_ext", "report", fold.parent)
        page = (fold.parent / "report.html").read_text()
        assert "Activation by content, fold 0" in page and "Does routing pay, fold 0" in page
        again = self.tiny(
            planned, "AgainPlans", bank_epochs=0, bank_weights=str(fold / "checkpoint_final.pth"), num_epochs=1
        )
        planned.train("2d", 0, *again)
        other = planned.model(self.trainer, "AgainPlans", "2d") / "fold_0"
        [row] = json.loads((other / "med_danet_history.json").read_text())[1:]
        assert row["phase"] == "decision"
        weights, new = saved["network_weights"], checkpoint(other)["network_weights"]
        same = {name: torch.equal(value, new[name]) for name, value in weights.items()}
        assert all(same[name] for name in same if name.startswith("candidates."))
        assert not all(same[name] for name in same if name.startswith("decision."))

    @pytest.mark.slow
    @thorough
    @pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
    def test_training_continues_after_kills_beside_the_borders(self, planned, configuration):
        """Small candidates leave at epoch 1, decisions begin at epoch 3; killed in epochs before and after."""
        phases = {"num_epochs": 5, "leave_epoch": 1, "bank_epochs": 3}
        words = self.tiny(planned, "KilledPlans", **phases, num_iterations_per_epoch=12)
        fold = planned.model(self.trainer, "KilledPlans", configuration) / "fold_0"
        for kill in range(4):
            planned.train_and_kill(kill, configuration, 0, *words, *(["--c"] if kill else []))
            assert not (fold / "checkpoint_final.pth").exists()
            if kill:
                saved = checkpoint(fold, "checkpoint_latest.pth")
                assert saved["current_epoch"] == kill and not saved["network_weights"]["decision_trained"]
        output = planned.train(configuration, 0, *words, "--c").stdout
        assert "Epoch 3" in output and "Epoch 2" not in output
        final = checkpoint(fold)
        assert final["current_epoch"] == 5 and bool(final["network_weights"]["decision_trained"])
        rows = json.loads((fold / "med_danet_history.json").read_text())
        assert [row["epoch"] for row in rows] == list(range(-1, 5))
        assert [row["phase"] for row in rows[1:]] == ["bank"] * 3 + ["decision"] * 2
        learned = [[loss is not None for loss in row["candidate_losses"]] for row in rows[1:]]
        assert learned == [[True, True], *[[False, True]] * 2, *[[False, False]] * 2]

    @pytest.mark.slow
    @thorough
    def test_2d_chooses_predicts_ensembles_exports_and_imports(self, trained, tmp_path):
        words = self.tiny(trained)
        trained.together(*(lambda f=f: trained.train("2d", f, *words, "--npz") for f in range(5)))
        trained.run("nnUNetv2_find_best_configuration", 7, *words, "-c", "2d", "3d_fullres", "-np", 1)
        found = json.loads((trained.results / trained.dataset / "inference_information.json").read_text())
        assert len(found["all_results"]) == 3  # both configurations and their ensemble
        images = trained.raw / trained.dataset / "imagesTs"
        flat, deep = (
            trained.predict(images, tmp_path / c, *words, "-c", c, "--save_probabilities") for c in ("2d", "3d_fullres")
        )
        trained.run(
            "nnUNetv2_ensemble", "-i", tmp_path / "2d", tmp_path / "3d_fullres", "-o", tmp_path / "both", "-np", 1
        )
        both = segmentations(tmp_path / "both")
        assert list(both) == ["case_005.nii.gz", "case_006.nii.gz"] == list(flat) == list(deep)
        for name, found in both.items():
            files = [tmp_path / c / name.replace("nii.gz", "npz") for c in ("2d", "3d_fullres")]
            assert np.array_equal(found, sum(np.load(file)["probabilities"] for file in files).argmax(0))
        archive = tmp_path / "model.zip"
        trained.run("nnUNetv2_export_model_to_zip", "-d", 7, "-o", archive, *words, "-c", "2d")
        other = Workspace(trained.root, results="imported_2d")
        other.run("nnUNetv2_install_pretrained_model_from_zip", archive)
        again = other.predict(images, tmp_path / "again", *words, "-c", "2d")
        assert all(np.array_equal(again[name], flat[name]) for name in flat)

    @pytest.mark.slow
    @thorough
    def test_2d_regions_and_ignore_label_through_all_folds_at_once(self, tmp_path):
        workspace = Workspace(tmp_path)
        make_dataset(workspace, cases=4, tests=1, channels=2, regions=True, ignore=True)
        workspace.plan(self.planner, "2d", "3d_fullres")
        words = self.tiny(workspace)
        workspace.train("2d", "all", *words)
        images = workspace.raw / workspace.dataset / "imagesTs"
        predicted = workspace.predict(images, tmp_path / "out", *words, "-c", "2d", "-f", "all")
        assert set(np.unique(predicted["case_004.nii.gz"])) <= {0, 1, 2}
        fold = workspace.model(self.trainer, "TinyPlans", "2d") / "fold_all"
        spent = json.loads((fold / "validation" / "med_danet_spent.json").read_text())
        assert set(spent["by_content"]) == {"no foreground", "whole", "inner"}
        rows = json.loads((fold / "med_danet_history.json").read_text())
        assert np.isfinite([row["train_loss"] for row in rows[1:]]).all()
