"""The models that are compared: model folders of one data set, paired by fold and case."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.report.model_folder import ModelFolder, read_model_folder
from nnunet_ext.report.parts import counted
from nnunet_ext.report.scores import CaseScore


@dataclass(frozen=True)
class Model:
    """A model folder under the name that the page gives it."""

    name: str
    folder: ModelFolder

    @cached_property
    def scores(self) -> dict[str, dict[str, CaseScore]]:
        """Fold -> case -> its scores, of the cases on which the fold was not trained."""
        return {fold.fold: {case.case: case for case in fold.cases} for fold in self.folder.cross_validation}


@dataclass(frozen=True)
class Paired:
    """Models with their common folds, in which they predicted the same cases.

    Attributes:
        models: in the order of the page.
        baseline: the one of `models` that the others are compared with.
        folds: names of the folds that all models have.
        cases: name -> fold and case, for every case of these folds.
        notes: what a reader must know: folds that are missing or were left out.
    """

    models: list[Model]
    baseline: Model
    folds: list[str]
    cases: dict[str, tuple[str, str]]
    notes: list[str] = field(default_factory=list)

    @property
    def rivals(self) -> list[Model]:
        """All but the baseline."""
        return [model for model in self.models if model is not self.baseline]

    def score(self, model: Model, name: str) -> CaseScore:
        """A model's scores of one of `cases`."""
        fold, case = self.cases[name]
        return model.scores[fold][case]


def read_models(words: Sequence[str], baseline: str | None = None) -> Paired:
    """Reads the folders and pairs their cases.

    Args:
        words: model folders, or `NAME=FOLDER` to name them on the page.
        baseline: a name or folder of these; by default the first model of nnU-Net's own trainer, else the first.

    Raises:
        ConfigurationError: no model folder, one folder or name twice, or models that cannot be compared: of other data
            sets, classes, folds, cases or references.
    """
    given = [_name_and_folder(word) for word in words]
    folders = [read_model_folder(path) for _, path in given]
    names = [name or short for (name, _), short in zip(given, _short_names(folders), strict=True)]
    if len(folders) < 2:
        raise ConfigurationError(
            "A comparison needs at least two model folders. For one model: nnunet_ext report MODEL_FOLDER"
        )
    for what, seen in (("folder", [str(folder.path) for folder in folders]), ("name", names)):
        twice = [word for word, count in Counter(seen).items() if count > 1]
        if twice:
            raise ConfigurationError(
                f"The {what} {twice[0]} is given twice. Give each model once, with a name of its own: NAME=FOLDER"
            )
    models = [Model(name, folder) for name, folder in zip(names, folders, strict=True)]
    for model in models[1:]:
        _check_same_data(models[0], model)
    folds = _common_folds(models)
    for model in models[1:]:
        for fold in folds:
            _check_same_cases(models[0], model, fold)
    keys = [(fold, case) for fold in folds for case in models[0].scores[fold]]
    often = Counter(case for _, case in keys)
    cases = {case if often[case] == 1 else f"{case} (fold {fold})": (fold, case) for fold, case in keys}
    paired = Paired(models, _baseline(models, baseline), folds, cases, _notes(models, folds))
    if len(cases) > len(often):
        paired.notes.append(
            f"{counted(len(cases) - len(often), 'case')} of these folds stand in another fold too: tests and intervals "
            f"take them for independent."
        )
    return paired


def _name_and_folder(word: str) -> tuple[str, Path]:
    name, equals, folder = word.partition("=")
    if equals and not Path(word).exists():
        if not name.strip():
            raise ConfigurationError(f"'{word}' has no name before the '='. Give NAME=MODEL_FOLDER or MODEL_FOLDER.")
        return name.strip(), Path(folder)
    return "", Path(word)


def _short_names(folders: Sequence[ModelFolder]) -> list[str]:
    """Trainer and plans, and the configuration where there are several."""
    several = len({folder.configuration for folder in folders}) > 1
    return [
        " ".join([folder.trainer, folder.plans_name, *([folder.configuration] if several else [])])
        for folder in folders
    ]


def _check_same_data(first: Model, other: Model) -> None:
    ours, theirs = first.folder, other.folder
    if ours.dataset != theirs.dataset:
        raise ConfigurationError(
            f"{first.name} was trained on {ours.dataset} and {other.name} on {theirs.dataset}: only models of one data "
            f"set can be compared."
        )
    if ours.labels != theirs.labels:
        raise ConfigurationError(
            f"{first.name} and {other.name} were trained on other classes: {_classes(ours)}, and {_classes(theirs)}. "
            f"Compare models of the same dataset.json."
        )


def _classes(folder: ModelFolder) -> str:
    return ", ".join(f"{name} {'+'.join(map(str, values))}" for values, name in folder.labels.classes.items())


def _common_folds(models: Sequence[Model]) -> list[str]:
    for model in models:
        if not model.scores:
            raise ConfigurationError(
                f"{model.name} has no validation scores: none of its numbered folds has a validation/summary.json. "
                f"Validate one: nnUNetv2_train ... --val"
            )
    common = [fold for fold in models[0].scores if all(fold in model.scores for model in models)]
    if not common:
        there = "; ".join(f"{model.name} has {', '.join(model.scores)}" for model in models)
        raise ConfigurationError(f"No fold was validated by all models: {there}. Train a fold that all have.")
    return common


def _check_same_cases(first: Model, other: Model, fold: str) -> None:
    ours, theirs = first.scores[fold], other.scores[fold]
    for one, another, missing in ((first, other, ours.keys() - theirs), (other, first, theirs.keys() - ours)):
        if missing:
            raise ConfigurationError(
                f"Fold {fold} of {one.name} has {counted(len(missing), 'validation case')} that fold {fold} of "
                f"{another.name} has not (such as {min(missing)}): they were trained on other splits, or one was not "
                f"validated to the end. Compare models of one splits_final.json, or validate again with --val."
            )
    for case, score in ours.items():
        there = theirs[case].voxels
        differ = [name for name, voxels in score.voxels.items() if there.get(name, voxels) != voxels]
        if differ:
            raise ConfigurationError(
                f"The reference of {case} has {score.voxels[differ[0]]} voxels of {differ[0]} for {first.name} and "
                f"{there[differ[0]]} for {other.name}: the labels were changed between their validations. Validate "
                f"again with --val."
            )


def _baseline(models: Sequence[Model], asked: str | None) -> Model:
    if asked is None:
        return next((model for model in models if model.folder.trainer.startswith("nnUNetTrainer")), models[0])
    for model in models:
        if asked == model.name or Path(asked).resolve() == model.folder.path:
            return model
    raise ConfigurationError(
        f"The baseline '{asked}' is none of the models. Choose one of: {', '.join(model.name for model in models)}."
    )


def _notes(models: Sequence[Model], folds: Sequence[str]) -> list[str]:
    notes = []
    for model in models:
        missing = [*model.folder.missing, *(f.name for f in model.folder.folds if f.name != "all" and f.scores is None)]
        if missing:
            which = f"folds {', '.join(sorted(missing))} are" if len(missing) > 1 else f"fold {missing[0]} is"
            whose = "their" if len(missing) > 1 else "its"
            notes.append(f"{model.name}: {which} missing or not validated. Nothing on this page is of {whose} cases.")
        unpaired = [fold for fold in model.scores if fold not in folds]
        if unpaired:
            notes.append(
                f"{model.name}: {'folds' if len(unpaired) > 1 else 'fold'} {', '.join(unpaired)} "
                f"{'are' if len(unpaired) > 1 else 'is'} left out, because another model has no scores of "
                f"{'them' if len(unpaired) > 1 else 'it'}."
            )
        if any(fold.name == "all" for fold in model.folder.folds):
            notes.append(f"{model.name}: fold 'all' is left out: its cases were those of its training.")
        notes += [f"{model.name}: {note}" for note in model.folder.notes]
    return notes
