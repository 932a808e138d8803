"""What a study needs of this machine, asked before any job: data, trainers, options, plans, images, device."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json
from nnunet_ext.planning.derive import derive_plans, known_settings
from nnunet_ext.planning.describe import CONFIGURATION_SETTINGS
from nnunet_ext.planning.options import PLANS_KEY, refuse_unknown
from nnunet_ext.planning.plain import derive_plain
from nnunet_ext.planning.plans_files import read_dataset_json, read_plans
from nnunet_ext.studies.layout import Layout
from nnunet_ext.studies.steps import training_cases
from nnunet_ext.studies.study import STOCK, STOCK_PLANNERS, Entry

_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")  # that nnU-Net plans
_FOLDS = 5  # of nnU-Net's split


def check_study(layout: Layout) -> None:
    """Refuses a study that would fail.

    Raises:
        ConfigurationError: in a sentence what is wrong, and in which entry.
    """
    _check_data(layout)
    _check_test(layout)
    for entry in layout.study.entries:
        try:
            for check in (_check_trainer, _check_options, _check_plans):
                check(layout, entry)
        except ConfigurationError as error:
            raise ConfigurationError(f"{layout.study.path}: '{entry.name}': {error}") from error


def _check_data(layout: Layout) -> None:
    raw = layout.raw  # the data set, or a sentence
    for folder in (layout.preprocessed, layout.results):
        if not folder.parent.is_dir():
            raise ConfigurationError(f"{folder.parent} is no folder. Make it, or set nnU-Net's variables to others.")
    if not (raw / "dataset.json").is_file():
        raise ConfigurationError(f"{raw} has no dataset.json, and is no data set for nnU-Net.")
    cases = training_cases(raw)
    splits = layout.preprocessed / "splits_final.json"
    count = len(read_json(splits)) if splits.is_file() else _FOLDS
    if not splits.is_file() and len(cases) < _FOLDS:
        raise ConfigurationError(f"{raw} has {len(cases)} training cases, and nnU-Net's five folds need at least 5.")
    beyond = [str(fold) for fold in layout.study.folds if fold >= count]
    if beyond:
        raise ConfigurationError(
            f"{layout.study.path}: fold {', '.join(beyond)} is out of range: {layout.dataset} has the folds 0 to "
            f"{count - 1}. (nnU-Net would train on a random split there.)"
        )


def _check_test(layout: Layout) -> None:
    test = layout.study.test
    if test is None:
        return
    content = read_json(layout.raw / "dataset.json")
    ending = content.get("file_ending", ".nii.gz")
    if not test.images.is_dir():
        raise ConfigurationError(f"{layout.study.path}: the test images {test.images} are no folder.")
    names = {path.name.removesuffix(f"_0000{ending}") for path in test.images.glob(f"*_0000{ending}")}
    if not names:
        raise ConfigurationError(
            f"{test.images} holds no image that ends in _0000{ending}, as those of {layout.dataset} do."
        )
    if test.parts > len(names):
        raise ConfigurationError(
            f"{layout.study.path}: 'parts' is {test.parts}, and there are {len(names)} test cases. Take fewer parts."
        )
    if test.labels is None:
        return
    if not test.labels.is_dir():
        raise ConfigurationError(f"{layout.study.path}: the test labels {test.labels} are no folder.")
    without = sorted(name for name in names if not (test.labels / f"{name}{ending}").is_file())
    if without:
        raise ConfigurationError(
            f"{test.labels} has no {without[0]}{ending}, the label of a test image. Add it, or leave 'labels' out."
        )


def _check_trainer(layout: Layout, entry: Entry) -> None:
    """That nnU-Net finds the trainer; of ours the class is imported."""
    if entry.method is not None:
        return
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        recursive_find_trainer_class_by_name(entry.trainer)
    except Exception as error:  # nnU-Net raises RuntimeError; a module of the user's own may raise anything
        if entry.trainer.startswith(f"{STOCK}_") and "epoch" in entry.trainer:
            lengths = ", ".join(map(str, stock_lengths()))
            raise ConfigurationError(
                f"nnU-Net has no trainer {entry.trainer}: it has variants of its trainer with {lengths} epochs, each "
                f"of 250 iterations. Take one of these lengths, or 'schedule: own'."
            ) from error
        raise ConfigurationError(
            f"nnU-Net finds no trainer {entry.trainer} ({error}). Look at its name, and at nnUNet_extTrainer for one "
            f"of your own."
        ) from error


def stock_lengths() -> list[int]:
    """The lengths, in epochs, of nnU-Net's own trainer and its variants."""
    from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs

    numbers = [name.removeprefix(f"{STOCK}_").partition("epoch")[0] for name in vars(nnUNetTrainer_Xepochs)]
    return sorted({1000, *(int(number) for number in numbers if number.isdigit())})


def _check_options(layout: Layout, entry: Entry) -> None:
    """Presets, settings and dimensions, as far as no plans are needed."""
    method = entry.method
    if method is None:
        if entry.settings:
            refuse_unknown(entry.settings, CONFIGURATION_SETTINGS, f"setting of {entry.trainer}")
        return
    refuse_unknown(entry.presets, method.preset_settings(), f"preset of {method.title}")
    known = known_settings(method)
    refuse_unknown(entry.settings, known, f"setting of {method.title}")
    training = {key: value for key, value in entry.settings.items() if known[key] == "training"}
    method.options_class().from_plans(training)
    if entry.configuration == "2d" and not method.network_class().supports_2d:
        raise ConfigurationError(f"{method.title} is a 3D method and cannot train 2d. Use 3d_fullres or 3d_lowres.")


def _check_plans(layout: Layout, entry: Entry) -> None:
    """The plans to start from, and plans that were derived before."""
    if not layout.plans_file(entry.source).is_file():
        if entry.planner is None:
            there = ", ".join([*STOCK_PLANNERS, *sorted(layout.plans_to_make())])
            raise ConfigurationError(
                f"There are no plans {entry.source} in {layout.preprocessed}, and it is not known which planner makes "
                f"them. Make them, say 'planner', or take one of: {there}."
            )
        if entry.configuration not in _CONFIGURATIONS:
            raise ConfigurationError(
                f"nnU-Net plans no configuration '{entry.configuration}'; it plans {', '.join(_CONFIGURATIONS)}."
            )
        return
    source = read_plans(layout.preprocessed, entry.source)
    if entry.configuration not in source["configurations"]:
        raise ConfigurationError(
            f"The plans {entry.source} have no configuration '{entry.configuration}'. They have: "
            f"{', '.join(source['configurations'])}."
        )
    if not entry.is_derived:
        return
    wanted = _derived(layout, entry, source)
    if not layout.plans_file(entry.plans).is_file():
        return
    if _trained_by(read_plans(layout.preprocessed, entry.plans), entry) != _trained_by(wanted, entry):
        raise ConfigurationError(
            f"{layout.plans_file(entry.plans)} was made for other options than the study now has. Give the entry "
            f"another name; or, to go on with these plans and what was trained with them, replace them with: "
            f"{' '.join(layout.derive_words(entry))} --overwrite"
        )


def _trained_by(plans: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """What of derived plans the entry's trainings follow: one configuration, where options that are not said have their
    defaults, as in plans of before there was such an option."""
    values = dict(plans["configurations"].get(entry.configuration, {}))
    if entry.method is not None:
        with suppress(ConfigurationError):  # options that are none now: not equal to those of any study
            values[PLANS_KEY] = asdict(entry.method.options_class().from_plans(values.get(PLANS_KEY)))
    return {**plans, "configurations": values}


def _derived(layout: Layout, entry: Entry, source: dict[str, Any]) -> dict[str, Any]:
    """The plans that `nnunet_ext plan` would write."""
    if entry.method is None:
        plans = derive_plain(source, name=entry.plans, settings=entry.settings, configurations=[entry.configuration])
    else:
        settings: dict[str, Any] = {}
        for preset in entry.presets:
            settings.update(entry.method.preset_settings()[preset])
        plans = derive_plans(
            source,
            read_dataset_json(layout.preprocessed),
            entry.method,
            name=entry.plans,
            settings={**settings, **entry.settings},
            configurations=[entry.configuration],
        )
    return json.loads(json.dumps(plans))


def work_device(asked: str, profile: str | None, choose: Callable[[str], str]) -> str:
    """The device of all jobs.

    Args:
        asked: by the study.
        profile: where jobs run; None for this machine.
        choose: says what is here, as `chosen_device`.

    Raises:
        ConfigurationError: it is not here, or nobody can know what is there.
    """
    if profile is None:
        return choose(asked)
    if asked == "auto":
        raise ConfigurationError(
            "With --profile the jobs run on other machines, whose device is not known here. Say 'device: cuda' or "
            "'device: cpu' in the study."
        )
    return asked


def check_writable(work: Path) -> None:
    """Refuses a folder that cannot be made or written.

    Raises:
        ConfigurationError: so.
    """
    existing = next(place for place in (work, *work.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigurationError(f"{work} cannot be written. Choose another folder with -o.")
