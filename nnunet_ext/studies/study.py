"""The study file: what is trained on which data set with which schedule. Reading it needs neither torch nor nnU-Net."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nnunet_ext.challenges.metrics import PLAIN_MEASURES
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS, Method, get_method, method_of_trainer
from nnunet_ext.planning.options import refuse_unknown
from nnunet_ext.planning.plans_files import check_plans_name

STOCK = "nnUNetTrainer"
STOCK_ITERATIONS = {"iterations": 250, "val_iterations": 50}  # fixed in nnU-Net's trainers
STOCK_PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
SCHEDULE = {
    "epochs": "num_epochs",
    "iterations": "num_iterations_per_epoch",
    "val_iterations": "num_val_iterations_per_epoch",
}
RESOURCES = ("mem_mb", "runtime", "threads")
DEVICES = ("auto", "cpu", "cuda", "mps")
_KEYS = {
    "dataset", "configuration", "folds", "device", "schedule", "methods", "baseline", "ensemble", "test", "measures",
    "tolerance", "resources",
}  # fmt: skip
_ENTRY_KEYS = {"name", "method", "preset", "trainer", "plans", "planner", "set", "configuration", "schedule"}
_TEST_KEYS = {"images", "labels", "parts"}


@dataclass(frozen=True)
class Entry:
    """One model of a study: what is trained on every fold.

    Attributes:
        name: in the study, on the page, and of derived plans.
        trainer, plans, configuration: as for nnU-Net's `-tr`, `-p` and `-c`.
        source: plans from which `plans` are derived; the same as `plans` where they are used as they are.
        planner: makes `source` where it is missing; None for plans that must be there.
        method: of ours, whose options the derived plans hold; None for other networks.
        presets: of the method, in order.
        settings: option -> JSON value, on top of the presets.
    """

    name: str
    trainer: str
    plans: str
    configuration: str
    source: str
    planner: str | None
    method: Method | None = None
    presets: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_derived(self) -> bool:
        """Whether the plans are made from others for this study."""
        return self.plans != self.source

    @property
    def model(self) -> str:
        """Name of the model folder."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"


@dataclass(frozen=True)
class TestImages:
    """Images to predict: a folder, labels to score with where there are some, and how many jobs share them."""

    images: Path
    labels: Path | None
    parts: int


@dataclass(frozen=True)
class Study:
    """A whole study file, with defaults filled in."""

    path: Path
    dataset: str
    folds: tuple[int, ...]
    device: str
    entries: tuple[Entry, ...]
    baseline: str | None
    ensemble: bool
    test: TestImages | None
    measures: tuple[str, ...]
    tolerance: float
    resources: Mapping[str, int]

    def entry(self, name: str) -> Entry:
        """The entry of that name."""
        return next(entry for entry in self.entries if entry.name == name)


def read_study(path: Path) -> Study:
    """Reads a study file and checks all that the file alone tells.

    Raises:
        ConfigurationError: in a sentence what is wrong with it, what was expected, and what to do.
    """
    content = _read_yaml(path)
    try:
        return _study(path, content)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


_MERGE = "tag:yaml.org,2002:merge"  # "<<: *other", which may be overridden


class _Loader(yaml.SafeLoader):
    """YAML without objects, in which a key that is given twice is an error and not the last one."""


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
    twice = [key for key, count in Counter(map(str, keys)).items() if count > 1]
    if twice:
        raise yaml.MarkedYAMLError(problem=f"the key '{twice[0]}' is given twice", problem_mark=node.start_mark)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ConfigurationError(f"{path} is not a file. Give a study file; docs/studies.md has one to start from.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigurationError(f"{path} is not valid YAML: {where}{error.problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigurationError(f"{path} is not valid YAML ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold keys and values, at least 'dataset' and 'methods'.")
    return content


def _study(path: Path, content: Mapping[str, Any]) -> Study:
    refuse_unknown(map(str, content), _KEYS, "key")
    for key in ("dataset", "methods"):
        if content.get(key) in (None, "", []):
            raise ConfigurationError(f"'{key}' is missing. A study names a data set and its methods.")
    dataset = content["dataset"]
    if not isinstance(dataset, (str, int)) or isinstance(dataset, bool):
        raise ConfigurationError(f"'dataset' must be an id, a name or DatasetXXX_Name, found {dataset!r}.")
    configuration = _text(content.get("configuration", "3d_fullres"), "configuration")
    schedule = _schedule(content.get("schedule"))
    device = content.get("device", "auto")
    if device not in DEVICES:
        raise ConfigurationError(f"'device' must be {_either(DEVICES)}, found {device!r}.")
    entries = _entries(content["methods"], configuration, schedule, path.resolve().parent)
    baseline = content.get("baseline")
    names = [entry.name for entry in entries]
    if baseline is not None and baseline not in names:
        raise ConfigurationError(f"'baseline' is {baseline!r}, which is none of the methods: {', '.join(names)}.")
    measures = content.get("measures", ["dice"])
    if not isinstance(measures, list) or not measures or not set(map(str, measures)) <= set(PLAIN_MEASURES):
        raise ConfigurationError(f"'measures' must be a list of {_either(PLAIN_MEASURES)}, found {measures!r}.")
    tolerance = content.get("tolerance", 1.0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < float("inf"):
        raise ConfigurationError(f"'tolerance' must be mm of at least 0, found {tolerance!r}.")
    ensemble = content.get("ensemble", True)
    if not isinstance(ensemble, bool):
        raise ConfigurationError(f"'ensemble' must be true or false, found {ensemble!r}.")
    return Study(
        path=path.resolve(),
        dataset=str(dataset),
        folds=_folds(content.get("folds", [0, 1, 2, 3, 4])),
        device=device,
        entries=entries,
        baseline=baseline,
        ensemble=ensemble,
        test=_test(content.get("test"), path.resolve().parent),
        measures=tuple(dict.fromkeys(["dice", *measures])),
        tolerance=float(tolerance),
        resources=_counts(content.get("resources"), "resources", RESOURCES),
    )


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}"


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"'{key}' must be a name, found {value!r}.")
    return value


def _folds(value: Any) -> tuple[int, ...]:
    folds = value if isinstance(value, list) else [value]
    for fold in folds:
        if not isinstance(fold, int) or isinstance(fold, bool) or fold < 0:
            raise ConfigurationError(
                f"'folds' must be a list of numbers from 0, found {fold!r}. (Fold 'all' has no cases to compare on.)"
            )
    if not folds or len(set(folds)) < len(folds):
        raise ConfigurationError(f"'folds' must name each fold once, found {folds!r}.")
    return tuple(sorted(folds))


def _counts(value: Any, key: str, known: Sequence[str]) -> dict[str, int]:
    """A mapping of positive integers with known keys; empty where it is absent."""
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise ConfigurationError(f"'{key}' must hold {_either(known)}, found {value!r}.")
    refuse_unknown(map(str, value), known, f"key of '{key}'")
    for name, number in value.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigurationError(f"'{name}' of '{key}' must be a positive integer, found {number!r}.")
    return value


def _schedule(value: Any) -> dict[str, int]:
    return _counts(value, "schedule", tuple(SCHEDULE))


def _test(value: Any, folder: Path) -> TestImages | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("images"), str):
        raise ConfigurationError("'test' must hold 'images', a folder, and may hold 'labels' and 'parts'.")
    refuse_unknown(map(str, value), _TEST_KEYS, "key of 'test'")
    labels = value.get("labels")
    parts = _counts({"parts": value.get("parts", 1)}, "test", ("parts",))["parts"]
    return TestImages(folder / value["images"], None if labels is None else folder / _text(labels, "labels"), parts)


def _entries(value: Any, configuration: str, schedule: Mapping[str, int], folder: Path) -> tuple[Entry, ...]:
    if not isinstance(value, list):
        raise ConfigurationError(f"'methods' must be a list of entries, each with a 'name', found {value!r}.")
    entries: list[Entry] = []
    for number, content in enumerate(value, start=1):
        if not isinstance(content, dict):
            raise ConfigurationError(f"Entry {number} of 'methods' must hold keys and values, found {content!r}.")
        name = content.get("name")
        if not isinstance(name, str):
            raise ConfigurationError(f"Entry {number} of 'methods' needs a 'name' of letters and digits.")
        try:
            _check_entry_name(name)
            entries.append(_entry(name, content, configuration, schedule, folder))
        except ConfigurationError as error:
            raise ConfigurationError(f"'{name}': {error}") from error
    names = [entry.name.lower() for entry in entries]
    twice = next((entry.name for entry in entries if names.count(entry.name.lower()) > 1), None)
    if twice is not None:
        raise ConfigurationError(f"Two entries are called '{twice}'. Give each a name of its own.")
    for entry in entries:
        same = [other.name for other in entries if other.model == entry.model]
        if len(same) > 1:
            raise ConfigurationError(
                f"{' and '.join(same)} are the same model, {entry.model}. Leave one out, or set something else in it."
            )
    return tuple(entries)


def _check_entry_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", name) or "__" in name or name == "best":
        raise ConfigurationError(
            "A name has letters, digits, '.', '-' and single '_', begins and ends with a letter or digit, and is not "
            "'best', which is nnU-Net's choice among all."
        )


def _entry(
    name: str, content: Mapping[str, Any], configuration: str, schedule: Mapping[str, int], folder: Path
) -> Entry:
    refuse_unknown(map(str, content), _ENTRY_KEYS, "key of an entry")
    configuration = _text(content.get("configuration", configuration), "configuration")
    if "cascade" in configuration:
        raise ConfigurationError(
            f"'{configuration}' needs predictions of another configuration, which studies do not make. Train it with "
            f"nnU-Net's own commands, and compare it with nnunet_ext compare."
        )
    if "schedule" in content:  # the entry's own; "own" is that of the trainer or the plans
        schedule = {} if content["schedule"] == "own" else _schedule(content["schedule"])
    settings = content.get("set", {})
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigurationError(f"'set' must hold options and their values, found {settings!r}.")
    _check_json(settings)
    method, presets = _method_and_presets(content)
    if method is not None and "trainer" in content:
        raise ConfigurationError("Give either 'method' (or 'preset'), or 'trainer' and 'plans'.")
    if method is None and "trainer" not in content:
        raise ConfigurationError("Give 'method' or 'preset' for a method of ours, or 'trainer' and 'plans'.")
    if method is not None:
        trainer = method.trainer
    else:
        trainer = _text(content["trainer"], "trainer")
        method = method_of_trainer(trainer)
    if method is not None and not method.predicts:
        raise ConfigurationError(
            f"{method.title} trains no model that predicts. Search first, write plans with nnunet_ext plan --code, and "
            f"name these plans in the study."
        )
    source = _text(content.get("plans", method.plans_name if method else "nnUNetPlans"), "plans")
    planner = content.get("planner", _planner_of(source))
    if method is None:
        trainer = _stock_trainer(trainer, schedule)
    else:
        files = method.options_class().files_in(settings, folder)
        for key, file in files.items():
            if not Path(file).is_file():
                raise ConfigurationError(f"{key} {file} does not exist. Paths are those beside the study file.")
        settings = {**{SCHEDULE[key]: value for key, value in schedule.items()}, **settings, **files}
    plans = f"{source}_{name}" if settings or presets else source
    check_plans_name(plans)
    return Entry(name, trainer, plans, configuration, source, planner, method, presets, settings)


def _check_json(settings: Mapping[str, Any]) -> None:
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"'set' must hold numbers, texts, lists and true, false or null ({error}).") from error


def _method_and_presets(content: Mapping[str, Any]) -> tuple[Method | None, tuple[str, ...]]:
    """From `method: NAME` and `preset: NAME`, `METHOD/NAME` or a list of these."""
    given = content.get("preset", [])
    texts = [_text(text, "preset") for text in (given if isinstance(given, list) else [given])]
    pairs = [text.rpartition("/") for text in texts]
    names = {owner for owner, _, _ in pairs if owner}
    if "method" in content:
        names.add(_text(content["method"], "method"))
    if len(names) > 1:
        raise ConfigurationError(f"An entry has one method, found {', '.join(sorted(names))}.")
    if pairs and not names:
        raise ConfigurationError(f"'preset' needs its method: METHOD/{pairs[0][2]}, or 'method' beside it.")
    return (get_method(names.pop()) if names else None), tuple(preset for _, _, preset in pairs)


def _planner_of(plans: str) -> str | None:
    ours = {method.plans_name: method.planner for method in METHODS.values()}
    return {**STOCK_PLANNERS, **ours}.get(plans)


def _stock_trainer(trainer: str, schedule: Mapping[str, int]) -> str:
    """A trainer that is not ours, whose class holds its schedule; nnU-Net has variants of some lengths.

    Raises:
        ConfigurationError: the schedule cannot be had without changing nnU-Net.
    """
    if not schedule:
        return trainer
    if trainer != STOCK:
        raise ConfigurationError(
            f"The schedule of {trainer} stands in its class, so that this study's cannot be applied to it. Say "
            f"'schedule: own' in this entry to train it as it is."
        )
    for key, fixed in STOCK_ITERATIONS.items():
        if schedule.get(key, fixed) != fixed:
            raise ConfigurationError(
                f"nnU-Net's own trainer has {fixed} {key} an epoch in its class, and this study asks for "
                f"{schedule[key]}. Take {fixed} for all and fewer epochs, or a trainer of your own in a folder that "
                f"nnUNet_extTrainer names, with 'schedule: own'."
            )
    epochs = schedule.get("epochs", 1000)
    return STOCK if epochs == 1000 else f"{STOCK}_{epochs}epoch{'' if epochs == 1 else 's'}"
