"""DiNTSSearchTrainer keeps the trainer contract as far as it fits; what only a search does is tested here too."""

import json
import os
import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from contract.trainer import LABELS, STRIDES, TrainerContract, assert_equal, checkpoint
from dints.equation_11 import equation_11
from dints.small import preprocess_cases
from end_to_end.stock import Workspace, handmade_plans, shrink, stock_architecture
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_ext.costs.complexity import count_flops
from nnunet_ext.demo.phantoms import generate_case
from nnunet_ext.dints.code_file import read_code
from nnunet_ext.dints.network import DiNTSNet
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.weights.random_state import random_state


class Stopped(Exception):
    """What a test stops a training with."""


class TestDiNTSSearchTrainer(TrainerContract):
    keeps_random_numbers = True
    trainer = "DiNTSSearchTrainer"
    planner = "DiNTSSearchPlanner"
    plans = "DiNTSSearchPlans"
    options = {
        "num_epochs": 3,
        "weight_epochs": 1,
        "warmup_iterations": 2,
        "num_iterations_per_epoch": 4,
        "num_val_iterations_per_epoch": 2,
        "save_every": 1,
    }
    graphs = (0, 0, 0)  # not compiled
    arch_kwargs = {"strides": STRIDES, "num_layers": 3, "num_depths": 2, "base_features": 3}

    # The final network's tests go through all folds; a search is one fold, and its own test kills it twice.
    test_five_folds_choose_predict_ensemble_export_and_import = None
    test_validation_can_be_repeated = test_pretrained_weights_arrive = test_killed_training_continues = None
    test_compiled_prediction_is_the_same = test_cascade = None
    test_regions_and_ignore_label_through_all_folds_at_once = None
    # What the base class does alone is tested with the other trainers.
    test_an_interrupted_write_leaves_the_old_checkpoint = test_a_truncated_checkpoint_is_refused = None
    test_a_checkpoint_of_another_trainer_is_refused = test_a_missing_environment_variable_is_named = None
    test_training_learns_something_and_writes_its_history = None

    @pytest.mark.slow
    def test_a_search_killed_in_each_phase_ends_in_a_code_that_trains_and_predicts(self, planned, tmp_path):
        words = self.tiny(
            planned, "KilledPlans", num_iterations_per_epoch=8, num_epochs=6, weight_epochs=3, warmup_iterations=8
        )
        fold = planned.model(self.trainer, "KilledPlans", "3d_fullres") / "fold_0"
        resume, halves = [], set()
        for epoch in (1, 4):  # weights only in epochs 0 to 2
            planned.train_and_kill(epoch, "3d_fullres", 0, *words, *resume)
            assert checkpoint(fold, "checkpoint_latest.pth")["current_epoch"] >= epoch
            assert (fold / "architecture.json").exists() == (epoch == 4)
            halves.add((fold / "search_halves.json").read_text())
            resume = ["--c"]
        output = planned.train("3d_fullres", 0, *words, "--c").stdout
        assert "Epoch 0" not in output and "the architecture moves from epoch 3 on" in output
        assert "A search ends without a validation of whole cases" in output and not (fold / "validation").exists()
        halves.add((fold / "search_halves.json").read_text())
        assert len(halves) == 1
        assert checkpoint(fold)["nnunet_ext"]["state"]["iterations"] == 48
        history = json.loads((fold / "dints_search_history.json").read_text())
        assert [row["epoch"] for row in history] == list(range(-1, 6))
        found = read_code(fold / "architecture.json")
        assert found.meta["iterations"] == 48
        assert abs(found.meta["memory_ratio_of_code"] - found.meta["sigma"]) <= 0.15  # three layers of two scales

        planned.run("nnUNetv2_plan_experiment", "-d", 7, "-pl", "DiNTSPlanner")
        words = ["--code", fold / "architecture.json", "--name", "SearchedPlans"]
        said = planned.run("nnunet_ext", "plan", 7, "--method", "dints", *words).stdout
        assert "From DiNTSPlans:" in said and "-tr DiNTSTrainer -p SearchedPlans" in said
        assert "a training step keeps" in said and "planned were" in said
        schedule = {"num_epochs": 3, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 2}
        tiny = shrink(planned.plans("SearchedPlans"), schedule, {"strides": STRIDES, "base_features": 4})
        planned.write_plans(tiny, "FoundPlans")
        words = ["-tr", "DiNTSTrainer", "-p", "FoundPlans"]
        planned.train("3d_fullres", 0, *words)
        model = planned.model("DiNTSTrainer", "FoundPlans", "3d_fullres")
        weights = checkpoint(model / "fold_0")["network_weights"]
        cells = {tuple(map(int, name.split(".")[1].split("_"))) for name in weights if name.startswith("cells.")}
        active = {(i, e) for i, row in enumerate(found.code.active) for e, on in enumerate(row) if on}
        assert cells and cells <= active  # a skip on one scale has no weights
        images = planned.raw / planned.dataset / "imagesTs"
        predicted = planned.predict(images, tmp_path / "out", *words, "-c", "3d_fullres", "-f", 0)
        assert list(predicted) == ["case_005.nii.gz", "case_006.nii.gz"]
        page = tmp_path / "report.html"
        planned.run("nnunet_ext", "report", model, "-o", page)
        assert "Topology" in page.read_text()
        planned.run("nnunet_ext", "report", fold.parent, "-o", page, "--overwrite")
        assert "Architecture search" in page.read_text()

    def batch(self, trainer, number):
        """A batch of each half; in the stock run it is the loaders that pair them."""
        batch = super().batch(trainer, number)
        if trainer.is_joint:
            batch["architecture"] = super().batch(trainer, number + 10_000)
        return batch

    def test_resuming_keeps_logits_adam_clock_and_random_numbers(self, workspace):
        trainer = self.build()
        trainer.initialize()
        for _ in range(2):
            self.run_epoch(trainer)
        trainer.save_checkpoint(f"{workspace.root}/border.pth")
        state = self.snapshot(trainer)
        torch.rand(3)
        np.random.rand(3)
        other = self.build()
        other.initialize()
        other.load_checkpoint(f"{workspace.root}/border.pth")
        assert other.iterations == 8
        assert_equal(self.snapshot(other), state)
        assert len(other.architecture.adam.state_dict()["state"]) == 2

    def test_logits_rest_in_the_first_phase_and_move_in_the_second(self, workspace):
        trainer = self.build()
        trainer.initialize()
        start = [logits.clone() for logits in trainer.architecture.logits]
        self.run_epoch(trainer)
        assert all(torch.equal(a, b) for a, b in zip(start, trainer.architecture.logits, strict=True))
        assert not (workspace.model_fold(trainer) / "architecture.json").exists()
        weight = next(p for p in trainer.network.parameters() if p.requires_grad)
        before = weight.detach().clone()
        self.run_epoch(trainer)
        assert not torch.equal(weight, before)
        for a, b in zip(start, trainer.architecture.logits, strict=True):
            assert (a != b).all()
            assert not b.requires_grad and b.grad is None
        in_weights = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert not in_weights & {id(logits) for logits in trainer.architecture.logits}

    def test_the_architecture_step_leaves_the_weights_alone(self, workspace):
        trainer = self.build()
        trainer.initialize()
        trainer.iterations = 5
        before = [p.detach().clone() for p in trainer.network.parameters() if p.requires_grad]
        batch = self.batch(trainer, 1)["architecture"]
        trainer.architecture.step(batch["data"], batch["target"], trainer.loss, 0.5)
        after = [p for p in trainer.network.parameters() if p.requires_grad]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert all(p.grad is None for p in after)

    def test_a_joint_iteration_is_the_papers(self, workspace):
        """SGD with momentum and weight decay on the first half's batch, then Adam on equation 11 on the second's.

        Written out with numbers, twice in a row, so that momentum is seen.
        """
        trainer = self.build(
            self.handmade(
                sigma=0.3, topology_weight=0.02, loss_floor=0.1, architecture_lr=0.05, initial_lr=0.02,
                weight_decay=0.1, warmup_iterations=2, halve_every=3,
            )
        )  # fmt: skip
        trainer.initialize()
        net, logits = trainer.net, trainer.architecture.logits
        with torch.no_grad():
            for values in logits:
                values.normal_(std=1.5, generator=torch.Generator().manual_seed(3))
        reference = deepcopy(net)
        weights = [p for p in reference.parameters() if p.requires_grad]
        velocity = [torch.zeros_like(p) for p in weights]
        a, c = reference.log_alpha_a, reference.log_alpha_c
        adam = torch.optim.Adam([a, c], 0.05)
        seen, step = [], trainer.architecture.adam.step
        trainer.architecture.adam.step = lambda: (seen.append([p.grad.clone() for p in logits]), step())
        trainer.iterations = 5  # of 12; the architecture moves from 4 on
        for iteration, rate in ((5, 0.04 / 2), (6, 0.04 / 2)):  # peak 0.02 for each of two patches, halved at 2 + 3
            batch = self.batch(trainer, iteration)
            loss = trainer.loss(reference(batch["data"]), deepcopy(batch["target"]))
            gradients = torch.autograd.grad(loss, weights)
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            with torch.no_grad():
                for p, v, g in zip(weights, velocity, gradients, strict=True):
                    v.mul_(0.9).add_(g * min(1.0, 12 / (norm + 1e-6)) + 0.1 * p)  # nnU-Net clips at 12
                    p.sub_(rate * v)
            a.requires_grad_(), c.requires_grad_()
            other = batch["architecture"]
            total = equation_11(
                reference, a, c, other["data"], deepcopy(other["target"]), trainer.loss, patch=(8, 16, 16),
                ramp=(iteration - 3) / 8, sigma=0.3, weight=0.02, floor=0.1,
            )  # fmt: skip
            a.grad, c.grad = torch.autograd.grad(total, (a, c))
            expected = [a.grad.clone(), c.grad.clone()]
            adam.step()
            trainer.train_step(deepcopy(batch))
            # the weights' float32 sums come in another order
            for ours, theirs in zip(seen[-1], expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-5)
            a.requires_grad_(False), c.requires_grad_(False)
        for (name, ours), theirs in zip(net.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}")

    def test_the_ramp_and_the_rate_follow_the_iterations(self, workspace):
        plans = self.handmade(warmup_iterations=3, halve_every=4)
        plans["configurations"]["3d_fullres"]["batch_size"] = 8
        trainer = self.build(plans)
        trainer.initialize()
        ramps, rates = [], []
        for trainer.iterations in range(12):
            trainer._set_rate()
            ramps.append(trainer.search.ramp(trainer.iterations))
            rates.append(trainer.optimizer.param_groups[0]["lr"])
        assert ramps == pytest.approx([0] * 4 + [k / 8 for k in range(1, 9)])
        assert rates == pytest.approx([0.025, 0.025 + 0.175 / 3, 0.025 + 0.35 / 3] + [0.2] * 4 + [0.1] * 4 + [0.05])

    # data

    @pytest.fixture
    def cases(self, workspace, monkeypatch):
        """Eight preprocessed cases, six of them for training, whose every voxel says the number of the case."""
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        return preprocess_cases(workspace, 8)

    def test_weights_and_architecture_learn_from_their_own_halves(self, workspace, cases):
        trainer = self.build()
        trainer.initialize()
        halves = trainer.halves(trainer.do_split()[0])
        loader, _ = trainer.get_dataloaders()
        trainer.iterations = trainer.options.joint_start
        seen = [set(), set()]
        for _ in range(12):
            batch = next(loader)
            for k, part in enumerate((batch, batch["architecture"])):
                seen[k] |= set(part["keys"])
        assert [sorted(keys) for keys in seen] == [sorted(half) for half in halves]
        loader.finish()

    def test_the_second_loader_comes_with_the_second_phase(self, workspace, cases):
        trainer = self.build()
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        assert "architecture" not in next(loader) and loader.architecture is None
        trainer.iterations = trainer.options.joint_start
        assert "architecture" in next(loader) and loader.architecture is not None

    def stop_before(self, trainer, epoch):
        """Runs nnU-Net's own loop until that epoch, of which a checkpoint is there."""
        start = trainer.on_epoch_start

        def on_epoch_start():
            if trainer.current_epoch == epoch:
                raise Stopped
            start()

        trainer.on_epoch_start = on_epoch_start
        with pytest.raises(Stopped):
            trainer.run_training()

    @pytest.mark.parametrize("epoch", [1, 2])
    def test_a_search_that_is_stopped_and_continued_is_the_same_to_the_last_bit(self, workspace, cases, epoch):
        """With nnU-Net's loop and loaders: before the architecture moves, and after."""
        results = []
        for stopped in (False, True):
            torch.manual_seed(1), np.random.seed(1), random.seed(1)
            trainer = self.build()
            if stopped:
                for old in workspace.model_fold(trainer).iterdir():
                    old.unlink()
                self.stop_before(trainer, epoch)
                halves = json.loads((workspace.model_fold(trainer) / "search_halves.json").read_text())
                torch.manual_seed(2), np.random.seed(2), random.seed(2)
                trainer = self.continued()
                trainer.initialize()
                trainer.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
                assert trainer.current_epoch == epoch
            trainer.run_training()
            results.append((trainer.network.state_dict(), trainer.optimizer.state_dict(), trainer.method_state(),
                            random_state(), read_code(f"{trainer.output_folder}/architecture.json").code))  # fmt: skip
        assert halves == json.loads((workspace.model_fold(trainer) / "search_halves.json").read_text())
        assert_equal(*results)

    def test_halves_are_those_of_the_file_where_a_search_goes_on(self, workspace, cases):
        trainer = self.build()
        keys = sorted(trainer.do_split()[0])
        first, second = trainer.halves(keys)
        path = workspace.model_fold(trainer) / "search_halves.json"
        path.write_text(json.dumps({"train1": second, "train2": first}))
        resumed = self.continued()
        resumed.current_epoch = 1
        assert resumed.halves(keys) == (second, first)
        assert resumed.halves([*keys, "new"]) == ([*second, "new"], first)
        assert "The cases of this fold have changed" in self.log_of(resumed)

    def test_a_batch_of_one_has_foreground_by_chance(self, workspace, cases):
        """nnU-Net's rule, the last third of a batch, would give none."""
        plans = self.handmade()
        plans["configurations"]["3d_fullres"]["batch_size"] = 1
        trainer = self.build(plans)
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        np.random.seed(0)
        forced = [loader.weights.data_loader.get_do_oversample(0) for _ in range(200)]
        assert 0.2 < np.mean(forced) < 0.45
        assert not self.build().probabilistic_oversampling

    def test_codes_and_history_are_written(self, workspace):
        trainer = self.build()
        trainer.initialize()
        for _ in range(3):
            self.run_epoch(trainer)
        fold = workspace.model_fold(trainer)
        assert sorted(path.name for path in fold.glob("architecture*")) == ["architecture.json"]
        file = read_code(fold / "architecture.json")
        assert (file.code.num_layers, file.code.depth, file.use_downsample) == (3, 2, True)
        facts = file.meta
        assert (facts["iterations"], facts["sigma"], facts["fold"], facts["epoch"]) == (12, 0.8, 0, 2)
        assert set(facts["versions"]) >= {"nnunet-ext", "nnunetv2", "torch"}
        assert np.shape(facts["edge_probabilities"]) == (3, 4)
        rows = json.loads((fold / "dints_search_history.json").read_text())
        assert [row["iterations"] for row in rows] == [4, 8, 12]
        assert file.code == trainer.architecture.decode().code, "the code is that of the logits at the end"
        last = rows[-1]
        terms = trainer.architecture.regularisers(trainer.net.relaxed())
        for key, value in (("L_alpha", terms.alpha), ("L_eta", terms.eta), ("L_tp", terms.topology),
                           ("memory_ratio", terms.memory_ratio)):  # fmt: skip
            assert last[key] == pytest.approx(float(value), rel=1e-12)
        assert rows[0]["L_eta"] != last["L_eta"]
        log = self.log_of(trainer)
        assert "L_tp" in log and "Time left: about" in log and "(budget 0.8), G" in log

    def test_the_code_follows_the_logits(self, workspace):
        trainer = self.build(self.handmade(sigma=0.4))
        trainer.initialize()
        codes = set()
        for seed in range(4):
            with torch.no_grad():
                for logits in trainer.architecture.logits:
                    logits.normal_(generator=torch.Generator().manual_seed(seed))
            trainer.on_validation_epoch_start()
            codes.add(trainer.snapshot.found.code)
        assert len(codes) == 4

    def test_the_time_left_is_that_of_both_phases(self, workspace, monkeypatch):
        """A step of the architecture is tried in the first epoch, so that the first estimate knows of it."""
        trainer = self.build()
        trainer.initialize()
        self.run_epoch(trainer)
        assert trainer.pace.step > 0
        pace = trainer.pace.seconds[False][0]
        expected = 8 * (pace + trainer.pace.step)
        assert trainer.pace.left(4).total_seconds() == round(expected)
        self.run_epoch(trainer)
        assert trainer.pace.left(8).total_seconds() == round(4 * trainer.pace.seconds[True][0])

    def test_halves_are_disjoint_seeded_and_saved(self, workspace):
        trainer = self.build()
        keys = [f"case_{k}" for k in range(9)]
        first, second = trainer.halves(keys)
        assert sorted(first + second) == keys and abs(len(first) - len(second)) == 1
        saved = json.loads((workspace.model_fold(trainer) / "search_halves.json").read_text())
        assert saved == {"train1": first, "train2": second}
        assert self.build().halves(keys) == (first, second)
        assert self.build(self.handmade(seed=1)).halves(keys) != (first, second)
        with pytest.raises(ConfigurationError, match="at least two training cases"):
            trainer.halves(["case_0"])

    def test_plans_of_the_final_network_are_refused_with_what_to_do(self, workspace):
        plans = self.handmade()
        plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = (
            "nnunet_ext.dints.network.DiNTSNet"
        )
        with pytest.raises(ConfigurationError, match="those of DiNTS .*-pl DiNTSSearchPlanner"):
            self.build(plans)

    def test_an_architecture_that_never_moves_is_refused(self, workspace):
        with pytest.raises(ConfigurationError, match="'weight_epochs' must be below num_epochs"):
            self.build(self.handmade(weight_epochs=3))

    def test_whole_cases_are_not_predicted_at_the_end(self, workspace):
        trainer = self.build()
        trainer.initialize()
        trainer.perform_actual_validation()
        assert "its result is the code in architecture.json" in self.log_of(trainer)
        assert not (workspace.model_fold(trainer) / "validation").exists()


@pytest.mark.parametrize(("given", "inside"), [("6", "3"), ("1", "1"), ("0", "0"), (None, None)])
def test_the_second_loader_gets_half_of_the_workers(given, inside, monkeypatch):
    from nnunet_ext.trainers.dints_search import _fewer_workers

    monkeypatch.setattr(os, "cpu_count", lambda: 12)  # nnU-Net takes no more
    if given is None:
        monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
        inside = str((get_allowed_n_proc_DA() + 1) // 2)
    else:
        monkeypatch.setenv("nnUNet_n_proc_DA", given)
    with pytest.raises(Stopped), _fewer_workers():
        assert os.environ["nnUNet_n_proc_DA"] == inside
        raise Stopped
    assert os.environ.get("nnUNet_n_proc_DA") == given


def search(sigma, seed):
    """A short search on phantoms; the trainer at its end."""
    from nnunet_ext.trainers.dints_search import DiNTSSearchTrainer

    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    plans = handmade_plans(
        stock_architecture(strides), patch_size=(8, 16, 16), strides=strides, sigma=sigma, seed=seed,
        num_epochs=38, weight_epochs=8, num_iterations_per_epoch=1, warmup_iterations=4, architecture_lr=0.13,
    )  # fmt: skip
    fullres = plans["configurations"]["3d_fullres"]
    fullres["batch_size"] = 1
    fullres["architecture"] = {
        "network_class_name": "nnunet_ext.dints.network.DiNTSSearchNet",
        "arch_kwargs": {"strides": strides, "num_layers": 4, "num_depths": 3, "base_features": 2},
        "_kw_requires_import": [],
    }
    trainer = DiNTSSearchTrainer(plans, "3d_fullres", 0, dict(LABELS), torch.device("cpu"))
    trainer.initialize()

    def batch(number):
        image, labels, _ = generate_case(seed, number, (8, 16, 16))
        data = torch.from_numpy(image.astype(np.float32) / 300)[None, None]
        return {"data": data, "target": torch.from_numpy(labels.clip(0, 2).astype(np.float32))[None, None]}

    for number in range(38):
        trainer.train_step({**batch(number), "architecture": batch(1000 + number)})
    trainer.on_validation_epoch_start()
    return trainer


@pytest.fixture(scope="module")
def budgets(tmp_path_factory):
    """By (seed, sigma): the trainer at the end of a short search."""
    with pytest.MonkeyPatch.context() as patch:
        results = {}
        for seed in range(3):
            for sigma in (0.2, 0.5, 0.8):
                workspace = Workspace(tmp_path_factory.mktemp("budget"))
                for name, value in workspace.folders.items():
                    patch.setenv(name, value)
                data = workspace.preprocessed / workspace.dataset / "nnUNetPlans_3d_fullres"
                data.mkdir(parents=True)
                (data / "case_000.b2nd").touch()
                results[seed, sigma] = search(sigma, seed)
        return results


@pytest.mark.slow
def test_the_code_that_is_retrained_meets_the_budget(budgets):
    for (seed, sigma), trainer in budgets.items():
        row = trainer.history_row()
        assert abs(row["memory_ratio_of_code"] - sigma) <= 0.05, (seed, sigma)
        assert trainer.snapshot.warning(sigma) is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_small_budget_gives_a_cheaper_network_than_a_large_one(budgets, seed):
    ratios, gmacs = {}, {}
    for sigma in (0.2, 0.8):
        trainer = budgets[seed, sigma]
        ratios[sigma] = trainer.history_row()["memory_ratio"]
        network = DiNTSNet(1, 3, strides=trainer.net.strides, **trainer.snapshot.found.code.settings())
        gmacs[sigma] = count_flops(network, 1, (8, 16, 16)) / 2e9
    assert ratios == pytest.approx({0.2: 0.2, 0.8: 0.8}, abs=0.1)
    assert gmacs[0.2] < 0.7 * gmacs[0.8]
