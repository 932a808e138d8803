"""One run of the demo: its stages, its folder, its results."""

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.demo.raw_dataset import (
    TestCases,
    as_predicted,
    find_test_cases,
    labelled_test_cases,
    link,
    organs_of,
    read_volume,
    training_files,
)
from nnunet_ext.demo.schedule import augmentation_processes, demo_settings
from nnunet_ext.demo.stages import Stages, shown_command
from nnunet_ext.demo.summary import (
    Scores,
    cost_text,
    json_scores,
    mean_dice,
    read_scores,
    scores_table,
    shortened_text,
    times_table,
)
from nnunet_ext.discovery.commands import typed_command
from nnunet_ext.discovery.devices import cpus, device_words
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json, write_json
from nnunet_ext.methods import Method
from nnunet_ext.planning.derive import settings_words

MARKER = ".nnunet_ext_demo"  # a folder with this file was made by the demo, which may start over in it
OUTPUTS = (
    "nnUNet_raw",
    "nnUNet_preprocessed",
    "nnUNet_results",
    "test_cases",
    "predictions",
    "logs",
    "demo.json",
    "demo.png",
    "compare.html",
    "compare.json",
    "compare.csv",
)
PHANTOMS = "Dataset998_Phantoms"
CONFIGURATION = "3d_fullres"
FOLD = 0


class Demo:
    """One method's run in the prepared folder `work`; several share their data and `stages` (`all_methods`)."""

    def __init__(
        self, method: Method, device: str, work: Path, dataset: Path | None, stages: Stages | None = None
    ) -> None:
        self.method, self.device, self.work = method, device, work
        self.name = PHANTOMS if dataset is None else dataset.resolve().name
        self.source = dataset
        self.number = str(int(self.name[7:10]))
        self.plans_name = f"{method.plans_name}_Demo"
        self.raw = work / "nnUNet_raw" / self.name
        self.preprocessed = work / "nnUNet_preprocessed" / self.name
        self.model = work / "nnUNet_results" / self.name / f"{method.trainer}__{self.plans_name}__{CONFIGURATION}"
        self.predictions = work / "predictions"
        self.stages = stages or new_stages(work, device, total=6)

    def run(self, epochs: int | None) -> None:
        """All stages, then the report."""
        start = time.monotonic()
        self.introduce(self.method.title)
        self.get_data()
        self.plan()
        settings = self.shorten(epochs)
        self.train(settings["num_epochs"])
        cases = find_test_cases(self.raw, self.preprocessed, self.work / "test_cases", FOLD)
        self.predict_and_evaluate(cases)
        self.report(cases, settings, time.monotonic() - start)

    def introduce(self, title: str) -> None:
        """Says what will happen where, and with which environment."""
        print(f"{title} on {self.name}, device {self.device}, in {self.work}")
        print("nnU-Net's own commands are run. To run them by hand, set first:")
        for line in self.stages.script.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            print(f"  {line}")

    def get_data(self, training: int = 10) -> None:
        """Generates the phantoms, so many for training, or links the user's data set into the demo's nnUNet_raw."""
        with self.stages.stage("Data"):
            if self.source is None:
                from nnunet_ext.demo.phantoms import generate_dataset

                generate_dataset(self.raw, training)
                print("  generated CT-like phantoms of ellipsoid organs")
            else:
                link(self.source.resolve(), self.raw)
            dataset_json = read_json(self.raw / "dataset.json")
            organs = ", ".join(organ.name for organ in organs_of(dataset_json))
            print(f"  {len(training_files(self.raw, dataset_json))} training cases; labels: {organs}")
            if not labelled_test_cases(self.raw, dataset_json):
                print(f"  no labelled test cases (imagesTs, labelsTs): the validation cases of fold {FOLD} are scored")

    def plan(self) -> None:
        """nnU-Net's planning and preprocessing with the method's planner."""
        command = ["nnUNetv2_plan_and_preprocess", "-d", self.number, "-pl", self.method.planner, "-c", CONFIGURATION]
        self.stages.run("Plan and preprocess", [*command, *processes_words()])

    def shorten(
        self, epochs: int | None, title: str = "Shorten the training", mirroring: bool = False
    ) -> dict[str, Any]:
        """Writes the demo's plans, with a short schedule and, on a CPU, a narrow network. Returns what it set."""
        from nnunet_ext.planning.derive import derive_plans
        from nnunet_ext.planning.plans_files import read_dataset_json, read_plans, write_plans

        with self.stages.stage(title):
            plans = read_plans(self.preprocessed, self.method.plans_name)
            if CONFIGURATION not in plans["configurations"]:
                raise ConfigurationError(
                    f"nnU-Net planned no {CONFIGURATION} for {self.name}; the demo needs 3D images."
                )
            planned = plans["configurations"][CONFIGURATION]
            phantoms = self.source is None
            settings = demo_settings(
                self.method, self.device, planned, phantoms=phantoms, epochs=epochs, mirroring=mirroring
            )
            self.stages.show(plan_command(self.number, self.method, self.plans_name, settings))
            demo_plans = derive_plans(
                plans,
                read_dataset_json(self.preprocessed),
                self.method,
                name=self.plans_name,
                settings=settings,
                configurations=[CONFIGURATION],
            )
            write_plans(self.preprocessed, demo_plans)
            print(
                f"  {shortened_text(self.method, *(p['configurations'][CONFIGURATION] for p in (plans, demo_plans)))}"
            )
        return settings

    def train(self, epochs: int, title: str = "Train") -> None:
        """nnU-Net's training of one fold, with its final validation."""
        self.stages.run(
            title,
            ["nnUNetv2_train", self.number, CONFIGURATION, str(FOLD), *self._network_flags()],
            environment=training_variables(self.device),
            epochs=epochs,
        )

    def _network_flags(self) -> list[str]:
        return ["-tr", self.method.trainer, "-p", self.plans_name, "-device", self.device]

    def predict_and_evaluate(self, cases: TestCases) -> None:
        """nnU-Net's prediction and scores of the test cases."""
        command = ["nnUNetv2_predict", "-i", str(cases.images), "-o", str(self.predictions), "-d", self.number]
        command += ["-c", CONFIGURATION, "-f", str(FOLD), *self._network_flags()]
        if self.device != "cuda":
            command += ["--disable_tta", "-npp", "0", "-nps", "0"]  # worker processes take longer to start than to work
        self.stages.run("Predict", command)
        command = ["nnUNetv2_evaluate_folder", str(cases.labels), str(self.predictions)]
        command += ["-djfile", str(self.raw / "dataset.json"), "-pfile", str(self.predictions / "plans.json")]
        self.stages.run("Evaluate", [*command, "-np", str(max(1, min(4, cpus() // 2)))])

    def report(self, cases: TestCases, settings: Mapping[str, Any], seconds: float) -> None:
        """Prints the tables, draws the figure, writes demo.json, and says where everything lies."""
        dataset_json = read_json(self.raw / "dataset.json")
        scores = read_scores(self.predictions / "summary.json", dataset_json)
        complexity = read_json(self.model / f"fold_{FOLD}" / "complexity.json")
        print(f"\nDice of {len(cases.names)} {cases.origin}\n{scores_table(scores)}")
        print(f"\n{cost_text(complexity)}")
        print(f"\nTime\n{times_table(self.stages.seconds, seconds)}")
        self.draw(cases, dataset_json, scores)
        write_json(
            self.work / "demo.json",
            {
                "method": self.method.name,
                "dataset": self.name,
                "device": self.device,
                "cases": cases.origin,
                "settings": dict(settings),
                "dice": json_scores(scores),
                "mean_dice": mean if math.isfinite(mean := mean_dice(scores)) else None,
                "complexity": complexity,
                "seconds": {**self.stages.seconds, "total": seconds},
            },
        )
        print(f"\nModel        {self.model}\nPredictions  {self.predictions}\nLogs         {self.work / 'logs'}")
        print(f"Figure       {self.work / 'demo.png'}")
        self.say_what_is_next()

    def say_what_is_next(self) -> None:
        """The commands for the user's own data, as they run on this machine."""
        words = ["-tr", self.method.trainer, "-p", self.method.plans_name, *device_words(self.device)]
        print("\nNext, on your data, with nnUNet_raw, nnUNet_preprocessed and nnUNet_results set:")
        for command in (
            ["nnUNetv2_plan_and_preprocess", "-d", "ID", "-pl", self.method.planner, "-c", CONFIGURATION],
            ["nnUNetv2_train", "ID", CONFIGURATION, "0", *words],
            ["nnUNetv2_predict", "-i", "IMAGES", "-o", "OUTPUT", "-d", "ID", "-c", CONFIGURATION, "-f", "0", *words],
        ):
            print(f"  {typed_command(command)}")
        only = typed_command(["nnUNetv2_plan_experiment", "-d", "ID", "-pl", self.method.planner])
        print(f"Where nnU-Net has preprocessed the data already, this instead of the first:\n  {only}")
        print(f"\nA page about the model: {typed_command(['nnunet_ext', 'report', str(self.model)])}")

    def draw(self, cases: TestCases, dataset_json: Mapping[str, Any], scores: Scores) -> None:
        """The picture of the first test case."""
        from nnunet_ext.report.figures.overlay import slices_png

        case = cases.names[0]
        ending = dataset_json["file_ending"]
        image, spacing = read_volume(cases.images / f"{case}_0000{ending}")
        truth, _ = read_volume(cases.labels / f"{case}{ending}")
        prediction, _ = read_volume(self.predictions / f"{case}{ending}")
        organs = organs_of(dataset_json)
        slices_png(
            self.work / "demo.png",
            image,
            as_predicted(truth, organs),
            prediction,
            spacing=spacing,
            classes={(organ.value,): organ.name for organ in sorted(organs, key=lambda organ: organ.value)},
            in_lps=True,
            title=f"{self.method.title}, {case}",
            scores={o.name: scores[o.name][case] for o in organs if math.isfinite(scores[o.name][case])},
        )


# folders


def prepare_work_dir(work: Path, dataset: Path | None = None) -> Path:
    """The absolute path of an empty-enough folder: what an earlier demo left in it is removed, nothing else ever.

    Raises:
        ConfigurationError: the folder has content but was not made by the demo, or holds the data set to be read.
    """
    work = work.resolve()
    if work.exists() and not work.is_dir():
        raise ConfigurationError(f"{work} is a file. Give a folder with --work-dir.")
    if work.is_dir() and any(work.iterdir()) and not (work / MARKER).is_file():
        raise ConfigurationError(
            f"{work} is not empty and was not made by the demo, which starts over in its folder. "
            f"Give another one with --work-dir."
        )
    if dataset is not None and dataset.resolve().is_relative_to(work):
        raise ConfigurationError(f"{dataset} lies in {work}, where the demo starts over. Give another --work-dir.")
    work.mkdir(parents=True, exist_ok=True)
    (work / MARKER).write_text(
        "Made by `nnunet_ext demo`, which removes its earlier outputs when it runs here again.\n"
    )
    for name in OUTPUTS:
        path = work / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)  # links inside are removed, not followed
        else:
            path.unlink(missing_ok=True)
    for name in OUTPUTS[:3]:
        (work / name).mkdir()
    return work


def new_stages(work: Path, device: str, total: int) -> Stages:
    """The stages of a run in the prepared folder `work`, with their logs."""
    (work / "logs").mkdir()
    return Stages(child_variables(work, device), work / "logs", total)


def processes_words() -> list[str]:
    """How many processes nnU-Net's preprocessing may take."""
    processes = str(min(4, cpus()))
    return ["-np", processes, "-npfp", processes]


def training_variables(device: str) -> dict[str, str]:
    """Further environment variables of a training."""
    return {"nnUNet_n_proc_DA": str(augmentation_processes(device))}


def child_variables(work: Path, device: str) -> dict[str, str]:
    """Environment variables for nnU-Net's commands."""
    variables = {name: str(work / name) for name in OUTPUTS[:3]}
    variables["nnUNet_def_n_proc"] = str(max(1, min(4, cpus() // 2)))
    variables["nnUNet_compile"] = "f"  # compiling takes longer than so short a training saves
    if device == "cpu":
        variables["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin for work are slow beside other busy processes
    return variables


def plan_command(dataset: str, method: Method, name: str, settings: Mapping[str, Any]) -> str:
    """The `nnunet_ext plan` command that writes the demo's plans."""
    words = ["nnunet_ext", "plan", dataset, "--method", method.name, "--from", method.plans_name, "--name", name]
    words += ["--configuration", CONFIGURATION]
    return shown_command([*words, *settings_words(settings)], {})
