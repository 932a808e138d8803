"""DiNTSSearchTrainer keeps the trainer contract as far as it fits; what only a search does is tested here too."""

import json

import numpy as np
import pytest
import torch
from contract.trainer import LABELS, STRIDES, TrainerContract, assert_equal, checkpoint
from dints.small import random_code
from end_to_end.stock import Workspace, handmade_plans, shrink, stock_architecture

from nnunet_ext.costs.complexity import count_flops
from nnunet_ext.demo.phantoms import generate_case
from nnunet_ext.dints.architecture_code import ArchitectureCode
from nnunet_ext.dints.code_file import read_code
from nnunet_ext.dints.discretize import pattern_costs
from nnunet_ext.dints.network import DiNTSNet
from nnunet_ext.dints.options import DiNTSOptions, search_patch
from nnunet_ext.dints.search_space import patterns
from nnunet_ext.errors import ConfigurationError

SEARCH = {
    "search_layers": 3,
    "search_depths": 2,
    "search_base_features": 3,
    "search_warmup_iterations": 2,
    "search_weight_iterations": 2,
    "search_joint_iterations": 8,
}


class TestDiNTSSearchTrainer(TrainerContract):
    keeps_random_numbers = True
    test_a_patch_that_the_plans_do_not_say_is_refused = None  # the search has one of its own
    trainer = "DiNTSSearchTrainer"
    planner = "DiNTSPlanner"
    plans = "DiNTSPlans"
    options = {
        "num_epochs": 3,
        "num_iterations_per_epoch": 4,
        "num_val_iterations_per_epoch": 2,
        "save_every": 1,
        **SEARCH,
    }
    # Plans name the final network; the search makes its own from the options.
    arch_kwargs = {"strides": STRIDES, "base_features": 4, **random_code(2, layers=3).settings()}

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
            planned, "KilledPlans", num_iterations_per_epoch=8, search_warmup_iterations=8,
            search_weight_iterations=16, search_joint_iterations=24,
        )  # fmt: skip
        fold = planned.model(self.trainer, "KilledPlans", "3d_fullres") / "fold_0"
        resume, halves = [], set()
        for epoch in (1, 4):  # weights only until epoch 2
            planned.train_and_kill(epoch, "3d_fullres", 0, *words, *resume)
            assert checkpoint(fold, "checkpoint_latest.pth")["current_epoch"] >= epoch
            assert (fold / "architecture.json").exists() == (epoch == 4)
            halves.add((fold / "search_halves.json").read_text())
            resume = ["--c"]
        output = planned.train("3d_fullres", 0, *words, "--c").stdout
        assert "Epoch 0" not in output and "the architecture moves from iteration 24 of 48" in output
        halves.add((fold / "search_halves.json").read_text())
        assert len(halves) == 1
        assert checkpoint(fold)["nnunet_ext"]["state"]["iterations"] == 48
        history = json.loads((fold / "dints_search_history.json").read_text())
        assert [row["epoch"] for row in history] == list(range(-1, 6))
        found = read_code(fold / "architecture.json")
        assert found.meta["iterations"] == 48

        words = ["--code", fold / "architecture.json", "--name", "SearchedPlans"]
        said = planned.run("nnunet_ext", "plan", 7, "--method", "dints", *words).stdout
        assert "From DiNTSPlans:" in said and "-tr DiNTSTrainer -p SearchedPlans" in said
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

    def architecture(self):
        ours = f"{DiNTSNet.__module__}.{DiNTSNet.__name__}"
        return {**super().architecture(), "network_class_name": ours}

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

    def test_the_ramp_and_the_rate_follow_the_iterations(self, workspace):
        trainer = self.build(self.handmade(search_batch_size=8, search_warmup_iterations=3, search_halve_every=4))
        trainer.initialize()
        ramps, rates = [], []
        for trainer.iterations in range(13):
            trainer._set_rate()
            ramps.append(trainer.search.ramp(trainer.iterations))
            rates.append(trainer.optimizer.param_groups[0]["lr"])
        assert ramps == pytest.approx([0] * 5 + [k / 8 for k in range(1, 9)])
        assert rates == pytest.approx([0.025, 0.025 + 0.175 / 3, 0.025 + 0.35 / 3] + [0.2] * 4 + [0.1] * 4 + [0.05] * 2)

    def test_codes_and_history_are_written(self, workspace):
        trainer = self.build()
        trainer.initialize()
        for _ in range(3):
            self.run_epoch(trainer)
        fold = workspace.model_fold(trainer)
        for name in ("architecture", "architecture_best_continuous", "architecture_best_discrete"):
            file = read_code(fold / f"{name}.json")
            assert (file.code.num_layers, file.code.depth, file.use_downsample) == (3, 2, True)
        facts = read_code(fold / "architecture.json").meta
        assert (facts["iterations"], facts["sigma"], facts["fold"], facts["epoch"]) == (12, 0.8, 0, 2)
        assert np.shape(facts["edge_probabilities"]) == (3, 4)
        rows = json.loads((fold / "dints_search_history.json").read_text())
        assert [row["iterations"] for row in rows] == [4, 8, 12]
        assert rows[0]["discrete_dice"] is None and 0 <= rows[2]["discrete_dice"] <= 1
        assert all(np.isfinite([row[key] for key in ("L_alpha", "L_eta", "L_tp", "memory_ratio", "G")]).all()
                   for row in rows)  # fmt: skip
        with open(trainer.log_file) as file:
            log = file.read()
        assert "L_tp" in log and "Time left: about" in log and "(budget 0.8), G" in log

    def test_best_codes_are_those_of_the_best_epochs(self, workspace, monkeypatch):
        trainer = self.build(self.handmade(num_iterations_per_epoch=1, search_joint_iterations=3))
        trainer.initialize()
        trainer.iterations = trainer.options.search_joint_start
        discrete = iter([0.2, 0.6, 0.4])
        monkeypatch.setattr(trainer, "_mean_dice", lambda outputs: next(discrete))
        for _ in range(3):
            self.run_epoch(trainer)
        fold = workspace.model_fold(trainer)
        assert read_code(fold / "architecture_best_discrete.json").meta["epoch"] == 1
        assert read_code(fold / "architecture.json").meta["epoch"] == 2
        rows = json.loads((fold / "dints_search_history.json").read_text())
        best = max(rows, key=lambda row: row["dice"])
        assert read_code(fold / "architecture_best_continuous.json").meta["epoch"] == best["epoch"]

    def test_the_discrete_score_is_that_of_the_code_alone(self, workspace):
        trainer = self.build()
        trainer.initialize()
        self.run_epoch(trainer)
        self.run_epoch(trainer)
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            both = trainer.validation_step(self.batch(trainer, 1))
        network = DiNTSNet(1, 3, strides=STRIDES, base_features=3, **trainer.snapshot.decoded.code.settings()).eval()
        weights = trainer.network.state_dict()
        network.load_state_dict({key: weights[key] for key in network.state_dict()})
        batch = self.batch(trainer, 1)
        with torch.no_grad():
            loss = float(trainer.loss(network(batch["data"]), batch["target"]))
        assert float(both["discrete_loss"]) == pytest.approx(loss, rel=1e-4)
        assert float(both["loss"]) != pytest.approx(loss, rel=1e-3)

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

    def test_patch_and_batch_are_the_searchs_own_and_the_plans_stay(self, workspace):
        plans = self.handmade(search_patch_size=[4, 8, 12], search_batch_size=3)
        trainer = self.build(plans)
        assert trainer.configuration_manager.patch_size == [4, 8, 12]
        trainer.initialize()
        assert trainer.batch_size == 3
        kept = trainer.plans_manager.plans["configurations"]["3d_fullres"]
        assert (kept["patch_size"], kept["batch_size"]) == ([8, 16, 16], 2)
        with pytest.raises(ConfigurationError, match="needs 3 numbers"):
            self.build(self.handmade(search_patch_size=[8, 8]))


def test_large_plans_are_searched_on_a_patch_of_the_papers_size():
    cubes = [[1, 1, 1]] + [[2, 2, 2]] * 5
    assert search_patch(DiNTSOptions(), [128, 128, 128], cubes) == [96, 96, 96]
    assert search_patch(DiNTSOptions(), [40, 56, 40], cubes) == [40, 56, 40]
    flat = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]
    patch = search_patch(DiNTSOptions(), [20, 320, 256], flat)
    assert patch[0] == 20 and 20 * 192 * 192 <= np.prod(patch) <= 96**3


def search(sigma, seed):
    """A short search on phantoms; the trainer at its end, and the likeliest edges of each layer before it."""
    from nnunet_ext.trainers.dints_search import DiNTSSearchTrainer

    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    plans = handmade_plans(
        stock_architecture(strides), patch_size=(8, 16, 16), strides=strides, sigma=sigma, seed=seed,
        search_layers=4, search_depths=3, search_base_features=2, search_batch_size=1, search_architecture_lr=0.13,
        search_warmup_iterations=4, search_weight_iterations=4, search_joint_iterations=30,
    )  # fmt: skip
    trainer = DiNTSSearchTrainer(plans, "3d_fullres", 0, dict(LABELS), torch.device("cpu"))
    trainer.initialize()
    costs = pattern_costs(trainer.architecture.logits[0].detach().numpy())
    start = [list(patterns(3)[k]) for k in costs.argmin(1)]

    def batch(number):
        image, labels, _ = generate_case(seed, number, (8, 16, 16))
        data = torch.from_numpy(image.astype(np.float32) / 300)[None, None]
        return {"data": data, "target": torch.from_numpy(labels.clip(0, 2).astype(np.float32))[None, None]}

    for number in range(38):
        trainer.train_step({**batch(number), "architecture": batch(1000 + number)})
    trainer.on_validation_epoch_start()
    return trainer, start


@pytest.fixture(scope="module")
def budgets(tmp_path_factory):
    """By (seed, sigma): the trainer at the end of a short search, and the likeliest patterns before it."""
    with pytest.MonkeyPatch.context() as patch:
        results = {}
        for seed in range(3):
            for sigma in (0.2, 0.8):
                workspace = Workspace(tmp_path_factory.mktemp("budget"))
                for name, value in workspace.folders.items():
                    patch.setenv(name, value)
                data = workspace.preprocessed / workspace.dataset / "nnUNetPlans_3d_fullres"
                data.mkdir(parents=True)
                (data / "case_000.b2nd").touch()
                results[seed, sigma] = search(sigma, seed)
        return results


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_small_budget_gives_a_cheaper_network_than_a_large_one(budgets, seed):
    ratios, gmacs = {}, {}
    for sigma in (0.2, 0.8):
        trainer, _ = budgets[seed, sigma]
        ratios[sigma] = trainer.history_row()["memory_ratio"]
        network = DiNTSNet(1, 3, strides=trainer.net.strides, **trainer.snapshot.decoded.code.settings())
        gmacs[sigma] = count_flops(network, 1, (8, 16, 16)) / 2e9
    assert ratios == pytest.approx({0.2: 0.2, 0.8: 0.8}, abs=0.1)
    assert gmacs[0.2] < 0.7 * gmacs[0.8]


@pytest.mark.slow
def test_the_search_finds_what_it_did_not_start_with(budgets):
    for trainer, start in budgets.values():
        code = ArchitectureCode.of(
            *trainer.snapshot.decoded.code.settings().values()
        )  # which refuses what is infeasible
        assert [list(row) for row in code.active] != start
