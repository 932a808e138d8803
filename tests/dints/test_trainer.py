"""DiNTSTrainer keeps the trainer contract; what only it has is tested here too."""

from pathlib import Path

import pytest
from contract.trainer import COMPILED, STOCK_COMMANDS, STRIDES, TrainerContract
from dints.small import random_code
from end_to_end.stock import shrink

from nnunet_ext.dints.architecture_code import CVPR_CODE
from nnunet_ext.dints.code_file import CodeFile
from nnunet_ext.dints.schedule import stepped_rate
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_json

CODE = random_code(2, layers=3)
SEARCH = {
    "num_epochs": 3,
    "weight_epochs": 1,
    "num_iterations_per_epoch": 4,
    "num_val_iterations_per_epoch": 2,
    "warmup_iterations": 2,
    "architecture_lr": 0.3,
}


class TestDiNTSTrainer(TrainerContract, on_request=(*STOCK_COMMANDS, COMPILED)):
    trainer = "DiNTSTrainer"
    planner = "DiNTSPlanner"
    plans = "DiNTSPlans"
    arch_kwargs = {"strides": STRIDES, "base_features": 4, **CODE.settings()}
    options = {"num_epochs": 3, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 2, "save_every": 1}

    @pytest.fixture(scope="class")
    def planned(self, tmp_path_factory):
        """A data set planned by the planner and searched on fold 0; `tiny` plans then hold the code that was found."""
        workspace = self.plan_dataset(tmp_path_factory.mktemp(self.trainer))
        workspace.run("nnUNetv2_plan_experiment", "-d", 7, "-pl", "DiNTSSearchPlanner")
        small = {"num_layers": 3, "num_depths": 3, "base_features": 2}
        workspace.write_plans(shrink(workspace.plans("DiNTSSearchPlans"), SEARCH, small), "SearchPlans")
        workspace.train("3d_fullres", 0, "-tr", "DiNTSSearchTrainer", "-p", "SearchPlans")
        fold = workspace.model("DiNTSSearchTrainer", "SearchPlans", "3d_fullres") / "fold_0"
        code = fold / "architecture.json"
        said = workspace.run(
            "nnunet_ext", "plan", 7, "--method", "dints", "--code", code, "--name", "DiNTSPlans_searched"
        ).stdout
        assert "From DiNTSPlans:" in said and "-tr DiNTSTrainer -p DiNTSPlans_searched" in said
        assert "a training step keeps" in said and "planned were" in said
        return workspace

    def tiny(self, workspace, name="TinyPlans", **options):
        words = super().tiny(workspace, name, **options)
        if (workspace.preprocessed / workspace.dataset / "DiNTSPlans_searched.json").is_file():
            plans, found = (workspace.plans(n)["configurations"] for n in (name, "DiNTSPlans_searched"))
            searched = found["3d_fullres"]["architecture"]["arch_kwargs"]
            for key in ("arch_code_a", "arch_code_c"):
                plans["3d_fullres"]["architecture"]["arch_kwargs"][key] = searched[key]
            workspace.write_plans({**workspace.plans(name), "configurations": plans}, name)
        return words

    def log(self, trainer):
        with open(trainer.log_file) as file:
            return file.read()

    def test_the_code_of_the_plans_is_trained(self, workspace):
        trainer = self.build()
        trainer.initialize()
        assert trainer.network.code == CODE
        assert "of which they do not say where it comes from" in self.log(trainer)

    def test_stock_plans_train_the_published_code_and_say_so(self, workspace):
        plans = self.handmade()
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] = {"strides": STRIDES, "base_features": 1}
        trainer = self.build(plans)
        trainer.initialize()
        assert trainer.network.code == CVPR_CODE
        assert "no searched architecture: this is the code that the authors" in self.log(trainer)

    def test_plans_of_a_search_are_refused_with_what_to_do(self, workspace):
        plans = self.handmade()
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        architecture["network_class_name"] = "nnunet_ext.dints.network.DiNTSSearchNet"
        with pytest.raises(ConfigurationError, match="those of DiNTS search .*-pl DiNTSPlanner"):
            self.build(plans)

    def test_the_log_tells_where_the_code_comes_from(self, workspace):
        meta = {"dataset": "Dataset004_Hippocampus", "fold": 1, "sigma": 0.5, "iterations": 9, "seed": 1}
        trainer = self.build(self.handmade(code_origin=CodeFile(CODE, meta=meta).origin()))
        trainer.initialize()
        assert "searched on Dataset004_Hippocampus, fold 1, with a budget of sigma 0.5" in self.log(trainer)

    def test_one_code_for_all_folds(self, workspace):
        trainer = self.build()
        write_json(f"{trainer.output_folder_base}/plans.json", self.handmade())
        Path(trainer.output_folder, "checkpoint_best.pth").touch()
        self.build(fold=1)
        other = self.handmade()
        other["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(
            random_code(2, layers=3, seed=1).settings()
        )
        with pytest.raises(ConfigurationError, match="folds of another network .*arch_code_a.*nnunet_ext plan --name"):
            self.build(other, fold=1)

    def test_the_papers_recipe(self, workspace):
        recipe = {"schedule": "steps", "momentum": 0.9, "nesterov": False, "warmup_iterations": 2, "halve_every": 3}
        trainer = self.build(self.handmade(**recipe, initial_lr=0.2))
        trainer.initialize()
        rates = self.rates_of_steps(trainer)
        for _ in range(3):
            self.run_epoch(trainer)
        assert rates == pytest.approx([0.025, 0.1125] + [0.2] * 3 + [0.1] * 3 + [0.05] * 3 + [0.025])
        assert trainer.logger.get_value("lrs", step=None) == pytest.approx([rates[0], rates[4], rates[8]])
        assert trainer.optimizer.defaults["momentum"] == 0.9 and not trainer.optimizer.defaults["nesterov"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"schedule": "cosine"}, "one of poly, steps"),
            ({"momentum": 0.0}, "nesterov=false"),
            ({"halve_every": 0}, "'halve_every' must be at least 1"),
        ],
    )
    def test_bad_options_are_refused(self, workspace, options, message):
        with pytest.raises(ConfigurationError, match=message):
            self.build(self.handmade(**options))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"arch_code_a": [[0] * 4] * 3}, "Layer 1 .* has no active edge"),
            ({"arch_code_a": [[1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]}, "infeasible"),
            ({"arch_code_c": [[9] * 4] * 3}, "operations 0 to 4"),
            ({"arch_code_a": [[1] * 7] * 3}, "same shape"),
        ],
    )
    def test_bad_codes_are_refused_before_anything_is_written(self, workspace, settings, message):
        plans = self.handmade()
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(settings)
        with pytest.raises(ConfigurationError, match=message):
            self.build(plans)
        assert list(workspace.results.iterdir()) == []


def test_the_stepped_rate_is_the_papers():
    """Section 4.1: 0.025 to 0.2 in 1000 iterations, halved at 8k and 16k after them."""
    rates = {i: stepped_rate(i, 0.2, 0.025, 1000, 8000) for i in (0, 500, 1000, 8999, 9000, 16999, 17000)}
    assert list(rates.values()) == pytest.approx([0.025, 0.1125, 0.2, 0.2, 0.1, 0.1, 0.05])
    assert stepped_rate(0, 0.1, 0.1, 0, 10) == 0.1
