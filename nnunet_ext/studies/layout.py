"""Where a study's files are, and the commands of its jobs: what the Snakefile and the jobs' steps share."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json
from nnunet_ext.planning.derive import settings_words
from nnunet_ext.planning.options import PLANS_KEY
from nnunet_ext.planning.plans_files import nnunet_variable, raw_folder
from nnunet_ext.studies.resources import training_resources
from nnunet_ext.studies.study import SCHEDULE, STOCK_ITERATIONS, Entry, Study

BEST = "best"  # nnU-Net's choice: a model or an ensemble of two, with its postprocessing
_CHECKPOINTS = ("checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Layout:
    """A study with its place.

    Attributes:
        study: the study.
        work: folder of its own files; models and plans are where nnU-Net has them.
        device: cpu, cuda or mps.
    """

    study: Study
    work: Path
    device: str

    @cached_property
    def raw(self) -> Path:
        """The data set in `$nnUNet_raw`."""
        return raw_folder(self.study.dataset)

    @property
    def dataset(self) -> str:
        """DatasetXXX_Name."""
        return self.raw.name

    @property
    def number(self) -> str:
        """The data set's number, which all of nnU-Net's commands take."""
        return str(int(self.dataset.removeprefix("Dataset").partition("_")[0]))

    @property
    def preprocessed(self) -> Path:
        """The data set in `$nnUNet_preprocessed`, which need not exist."""
        return Path(nnunet_variable("nnUNet_preprocessed")) / self.dataset

    @property
    def results(self) -> Path:
        """The data set in `$nnUNet_results`, which need not exist."""
        return Path(nnunet_variable("nnUNet_results")) / self.dataset

    # files

    def plans_file(self, name: str) -> Path:
        """A plans file."""
        return self.preprocessed / f"{name}.json"

    def model(self, entry: Entry) -> Path:
        """The model folder of an entry."""
        return self.results / entry.model

    def fold(self, entry: Entry, fold: int) -> Path:
        """The folder of one training."""
        return self.model(entry) / f"fold_{fold}"

    def summary(self, entry: Entry, fold: int) -> Path:
        """What nnU-Net writes last of a training: the scores of its validation."""
        return self.fold(entry, fold) / "validation" / "summary.json"

    def lock(self, entry: Entry, fold: int) -> Path:
        """Held while the training runs, by whichever study it was started."""
        return self.results / ".nnunet_ext" / f"{entry.model}__fold_{fold}.lock"

    def predictions(self, name: str) -> Path:
        """Predicted test images of an entry, or of `BEST`."""
        return self.work / "predictions" / name

    def scores(self, name: str) -> Path:
        """Scores of the test images."""
        return self.work / "scores" / f"{name}.json"

    def timing(self, entry: Entry, part: int) -> Path:
        """Seconds of one part of the prediction."""
        return self.work / "timing" / f"{entry.name}_{part}.json"

    def done(self, *words: Any) -> Path:
        """Says that a step was done whose files do not say it themselves."""
        return self.work / "done" / "_".join(map(str, words))

    def log(self, *words: Any) -> Path:
        """The output of a job."""
        return self.work / "logs" / f"{'_'.join(map(str, words))}.txt"

    @property
    def best(self) -> Path:
        """What nnU-Net found to be the best configuration."""
        return self.work / "best.json"

    @property
    def elsewhere(self) -> Path:
        """Is there where the study was last run on other machines, whose locks this one does not see."""
        return self.work / "elsewhere"

    @property
    def page(self) -> Path:
        """The comparison; of one model its report."""
        return self.work / ("compare.html" if len(self.study.entries) > 1 else "report.html")

    @property
    def scored_names(self) -> list[str]:
        """Whose test predictions are scored."""
        if self.study.test is None or self.study.test.labels is None:
            return []
        return [*(entry.name for entry in self.study.entries), BEST]

    # plans

    def plans_to_make(self) -> dict[str, str]:
        """Plans that nnU-Net's planning can make -> their planner."""
        return {entry.source: entry.planner for entry in self.study.entries if entry.planner is not None}

    def derive_words(self, entry: Entry) -> list[str]:
        """The command that derives an entry's plans from its source."""
        words = ["nnunet_ext", "plan", self.dataset, "--from", entry.source, "--name", entry.plans]
        words += ["--configuration", entry.configuration]
        if entry.method is not None:
            words += ["--method", entry.method.name]
        words += [word for preset in entry.presets for word in ("--preset", preset)]
        return words + settings_words(entry.settings)

    def configuration(self, entry: Entry) -> dict[str, Any]:
        """The entry's configuration in its plans, with what it inherits.

        Raises:
            FileNotFoundError: there are no such plans yet.
        """
        values: dict[str, Any] = {}
        configurations = read_json(self.plans_file(entry.plans))["configurations"]
        name: str | None = entry.configuration
        while name is not None:
            values = {**configurations[name], **values}
            name = configurations[name].get("inherits_from")
        return values

    def schedule(self, entry: Entry, configuration: Mapping[str, Any]) -> dict[str, int]:
        """Epochs, iterations and validation iterations; the trainer's own where nothing says otherwise."""
        if entry.method is None:
            number = entry.trainer.partition("_")[2].partition("epoch")[0]
            return {"epochs": int(number) if number.isdigit() else 1000, **STOCK_ITERATIONS}
        options, defaults = configuration.get(PLANS_KEY) or {}, entry.method.options_class()()
        return {key: options.get(option, getattr(defaults, option)) for key, option in SCHEDULE.items()}

    def training_resources(self, entry: Entry) -> dict[str, int]:
        """What a training asks of a cluster, by its plans and the study file.

        Raises:
            FileNotFoundError: there are no such plans yet; Snakemake asks again.
        """
        configuration = self.configuration(entry)
        dataset_json = read_json(self.raw / "dataset.json")
        channels = len(dataset_json.get("channel_names") or dataset_json["modality"])
        schedule = self.schedule(entry, configuration)
        return {**training_resources(configuration, channels, self.device, **schedule), **self.study.resources}

    # commands

    def train_words(self, entry: Entry, fold: int) -> list[str]:
        """The training as it stands: from the beginning, continued, or its validation alone."""
        words = ["nnUNetv2_train", self.number, entry.configuration, str(fold), "-tr", entry.trainer, "-p", entry.plans]
        words += ["-device", self.device, "--npz"]
        folder = self.fold(entry, fold)
        if (folder / "checkpoint_final.pth").is_file():
            return [*words, "--val"]
        return [*words, *(["--c"] if any((folder / name).is_file() for name in _CHECKPOINTS) else [])]

    def predict_words(self, entry: Entry, part: int) -> list[str]:
        """The prediction of one part of the test images."""
        test = self._test()
        words = ["nnunet_ext", "predict", "-i", str(test.images), "-o", str(self.predictions(entry.name))]
        words += ["-d", self.number, "-c", entry.configuration, "-tr", entry.trainer, "-p", entry.plans]
        words += ["-f", *map(str, self.study.folds), "-device", self.device]
        words += ["-num_parts", str(test.parts), "-part_id", str(part)]
        words += ["--continue_prediction", "--disable_progress_bar", "--timing", str(self.timing(entry, part))]
        return words + (["--save_probabilities"] if self.ensembles else [])

    @property
    def ensembles(self) -> bool:
        """Whether ensembles of two models are tried."""
        return self.study.ensemble and len(self.study.entries) > 1

    def score_words(self, name: str) -> list[str]:
        """The scoring of the test images."""
        test = self._test()
        words = ["nnunet_ext", "score", "plain", str(self.predictions(name)), str(test.labels)]
        words += ["-o", str(self.scores(name)), "--overwrite", "--dataset-json", str(self.raw / "dataset.json")]
        words += ["--measures", *self.study.measures]
        return words + (["--tolerance", str(self.study.tolerance)] if "nsd" in self.study.measures else [])

    def page_words(self) -> list[str]:
        """The page of what is there now; what is missing stands in its head.

        Raises:
            ConfigurationError: no training has scores yet.
        """
        study = self.study
        scored = [e for e in study.entries if any(self.summary(e, fold).is_file() for fold in study.folds)]
        if not scored:
            raise ConfigurationError("No training has come to its validation yet: there is nothing to compare.")
        if len(scored) == 1:
            page = str(self.work / "report.html")
            return ["nnunet_ext", "report", str(self.model(scored[0])), "-o", page, "--overwrite"]
        words = ["nnunet_ext", "compare", *(f"{entry.name}={self.model(entry)}" for entry in scored)]
        words += ["-o", str(self.work / "compare.html"), "--overwrite", "--measures", *study.measures]
        words += ["--tolerance", str(study.tolerance)]
        if study.baseline in [entry.name for entry in scored]:
            words += ["--baseline", str(study.baseline)]
        for entry in scored:
            for part in range(study.test.parts if study.test else 0):
                if self.timing(entry, part).is_file():
                    words += ["--timing", f"{entry.name}={self.timing(entry, part)}"]
        for name in self.scored_names:
            if self.scores(name).is_file():
                words += ["--test", f"{name}={self.scores(name)}"]
        return words + [word for note in [*self.missing_notes(), *self.best_notes()] for word in ("--note", note)]

    def best_notes(self) -> list[str]:
        """What nnU-Net chose on the validation cases; nothing before it did."""
        if not self.best.is_file():
            return []
        content = read_json(self.best)
        chosen, found = " and ".join(content["entries"]), content["best_model_or_ensemble"]
        what = f"the ensemble of {chosen}" if len(content["entries"]) > 1 else chosen
        return [
            f"nnU-Net's best configuration on the validation cases is {what}: Dice "
            f"{found['result_on_crossval_pre_pp']:.4f}, after its postprocessing "
            f"{found['result_on_crossval_post_pp']:.4f}. It was chosen on these cases, so that this number is "
            f"favourable to it{'' if not content['remark'] else '. ' + content['remark']}."
        ]

    def missing_notes(self) -> list[str]:
        """What of the study's trainings is missing, one sentence an entry."""
        notes = []
        for entry in self.study.entries:
            missing = [str(fold) for fold in self.study.folds if not self.summary(entry, fold).is_file()]
            if missing:
                which = "all folds" if len(missing) == len(self.study.folds) else f"fold {', '.join(missing)}"
                notes.append(f"The study is not complete: {entry.name} lacks {which}.")
        return notes

    def _test(self) -> Any:
        assert self.study.test is not None, "there are jobs of test images only where a study has some"
        return self.study.test
