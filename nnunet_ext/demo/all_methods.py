"""The demo of all methods: nnU-Net's U-Net and each of ours, trained shortly on the same cases, on one page."""

import time
from pathlib import Path

from nnunet_ext.demo.run import CONFIGURATION, FOLD, Demo, new_stages, processes_words, training_variables
from nnunet_ext.demo.schedule import short_stock, stock_trainer
from nnunet_ext.demo.summary import models_table, times_sign
from nnunet_ext.discovery.devices import device_words
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json
from nnunet_ext.methods import METHODS

TRAINING_CASES = 20  # of the phantoms, so that four are validated
STOCK = "nnU-Net"
STOCK_PLANS = "nnUNetPlans"
CAUTION = (
    "A demonstration: narrow networks, minutes of training, one fold and few cases. It shows that everything runs and "
    "what the page looks like. It does not show which method is better."
)


class DemoOfAll:
    """Trains all methods with nnU-Net's commands in the prepared folder `work`, and compares them.

    Args:
        device, work, dataset: as for `Demo`.
    """

    def __init__(self, device: str, work: Path, dataset: Path | None) -> None:
        self.device, self.work = device, work
        methods = [method for method in METHODS.values() if method.demo_path]
        self.stages = new_stages(work, device, total=5 + 3 * len(methods))
        self.demos = [Demo(method, device, work, dataset, self.stages) for method in methods]
        self.first = self.demos[0]  # their data are the same

    def run(self, epochs: int | None) -> None:
        """All stages, then the table and the page."""
        start = time.monotonic()
        self.first.introduce(f"{STOCK}, {', '.join(demo.method.title for demo in self.demos)}")
        self.first.get_data(TRAINING_CASES)
        number = self.first.number
        command = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, *processes_words()]
        self.stages.run(f"{STOCK}: plan and preprocess", command)
        models = {}
        for demo in self.demos:
            title = demo.method.title
            self.stages.run(f"{title}: plan", ["nnUNetv2_plan_experiment", "-d", number, "-pl", demo.method.planner])
            settings = demo.shorten(epochs, f"{title}: shorten", mirroring=True)  # as nnU-Net's short trainers
            demo.train(settings["num_epochs"], f"{title}: train")
            models[title] = demo.model
            steps = settings["num_epochs"] * settings["num_iterations_per_epoch"]
        trainer, epochs = stock_trainer(steps)
        note = f"{CAUTION} {STOCK}'s U-Net had {250 * epochs} steps, the others {steps} each."
        self.compare({STOCK: self.train_stock(trainer, epochs), **models}, note)
        self.report(note, time.monotonic() - start)

    def train_stock(self, trainer: str, epochs: int) -> Path:
        """A training of nnU-Net's own U-Net; returns its model folder."""
        from nnunet_ext.planning.plans_files import read_plans, write_plans

        name = f"{STOCK_PLANS}_Demo"
        with self.stages.stage(f"{STOCK}: shorten"):
            plans = read_plans(self.first.preprocessed, STOCK_PLANS)
            if CONFIGURATION not in plans["configurations"]:
                raise ConfigurationError(f"nnU-Net planned no {CONFIGURATION}; the demo needs 3D images.")
            short = short_stock(plans["configurations"][CONFIGURATION], self.device)
            configurations = {**plans["configurations"], CONFIGURATION: short}
            write_plans(self.first.preprocessed, {**plans, "plans_name": name, "configurations": configurations})
            width = short["architecture"]["arch_kwargs"]["features_per_stage"][0]
            print(f"  {name}: patch {times_sign(short['patch_size'])}, {width} channels at the first level; {trainer}")
        words = [self.first.number, CONFIGURATION, str(FOLD), "-tr", trainer, "-p", name, *device_words(self.device)]
        variables = training_variables(self.device)
        self.stages.run(f"{STOCK}: train", ["nnUNetv2_train", *words], environment=variables, epochs=epochs)
        return self.first.model.with_name(f"{trainer}__{name}__{CONFIGURATION}")

    def compare(self, models: dict[str, Path], note: str) -> None:
        """The page, by the command that a user would type."""
        words = [f"{name}={folder}" for name, folder in models.items()]
        command = ["nnunet_ext", "compare", *words, "-o", str(self.work / "compare.html"), "--note", note]
        self.stages.run("Compare", command)

    def report(self, note: str, seconds: float) -> None:
        """Prints Dice, parameters and times, and where the page lies."""
        compared = read_json(self.work / "compare.json")
        times = {name: self.stages.seconds[f"{name}: train"] for name in (m["name"] for m in compared["models"])}
        print(f"\n{models_table(compared, times)}\n\n{note}")
        print(f"\nTotal  {seconds:.0f} s\nPage   {self.work / 'compare.html'}\nLogs   {self.work / 'logs'}")
