"""Plans files and dataset.json in a data set's folder of `$nnUNet_preprocessed`: found, read, written."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json, write_json

NNUNETS_FILES = ("dataset", "dataset_fingerprint", "splits_final")  # in the same folder, without .json


def check_plans_name(name: str) -> None:
    """Refuses names that nnU-Net could not take apart again (it joins trainer, plans and configuration by `__`).

    Raises:
        ConfigurationError: such a name, or that of a file that nnU-Net keeps beside the plans.
    """
    if name in NNUNETS_FILES:
        raise ConfigurationError(f"'{name}' is no plans name: {name}.json is nnU-Net's own file. Choose another.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or "__" in name or name.endswith(("_", ".json")):
        raise ConfigurationError(
            f"'{name}' is no plans name. Use letters, digits, '.', '-' and single '_', without .json, "
            f"for example E2ENetPlans_S90."
        )


def preprocessed_folder(dataset: str) -> Path:
    """The folder of a data set in `$nnUNet_preprocessed`; `dataset` is its id, name or DatasetXXX_Name.

    Raises:
        ConfigurationError: the variable is not set, or not exactly one folder matches.
    """
    return _dataset_folder("nnUNet_preprocessed", dataset, "and plan it first: nnUNetv2_plan_experiment -d ID")


def raw_folder(dataset: str) -> Path:
    """The same in `$nnUNet_raw`."""
    return _dataset_folder("nnUNet_raw", dataset, "with imagesTr, labelsTr and dataset.json as nnU-Net has them.")


def nnunet_variable(name: str) -> str:
    """One of nnU-Net's environment variables.

    Raises:
        ConfigurationError: it is not set.
    """
    value = os.environ.get(name)
    if not value:
        raise ConfigurationError(f"The environment variable {name} is not set. Set it as for nnU-Net's own commands.")
    return value


def _dataset_folder(variable: str, dataset: str, advice: str) -> Path:
    root = nnunet_variable(variable)
    if not Path(root).is_dir():
        raise ConfigurationError(f"{variable} is {root}, which is no folder.")
    folders = sorted(path for path in Path(root).iterdir() if path.is_dir() and re.match(r"Dataset\d+_", path.name))
    found = [path for path in folders if _is_named(path.name, dataset)]
    if len(found) != 1:
        there = ", ".join(path.name for path in found or folders) or "none"
        what = f"means several folders of {root}: {there}" if found else f"is none of {root}, which has: {there}"
        raise ConfigurationError(f"Data set '{dataset}' {what}. Give its id, name or DatasetXXX_Name, {advice}")
    return found[0]


def _is_named(folder: str, dataset: str) -> bool:
    """Whether `dataset` is the id, the name or the whole name of `DatasetXXX_Name`."""
    number, _, name = folder.removeprefix("Dataset").partition("_")
    if re.fullmatch("[0-9]+", dataset):
        return int(number) == int(dataset)
    return dataset in (name, folder)


def read_plans(folder: Path, name: str) -> dict[str, Any]:
    """`<folder>/<name>.json`.

    Raises:
        ConfigurationError: there is no such file (the existing plans are listed), or it is not a plans file.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        there = ", ".join(plans.stem for plans in _plans_files(folder)) or "none"
        raise ConfigurationError(f"{path} does not exist. Plans in this folder: {there}.")
    plans = _read_dict(path)
    if not isinstance(plans.get("configurations"), dict):
        raise ConfigurationError(f"{path} is not a plans file: it has no 'configurations'.")
    return plans


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """`<folder>/dataset.json`.

    Raises:
        ConfigurationError: it is missing or damaged.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        raise ConfigurationError(f"{path} does not exist. Preprocess the data set first.")
    return _read_dict(path)


def _plans_files(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.glob("*.json"))
        if '"configurations"' in path.read_text(encoding="utf-8", errors="replace")
    ]


def _read_dict(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold a JSON object.")
    return content


def write_plans(folder: Path, plans: Mapping[str, Any], *, overwrite: bool = False) -> str:
    """Writes `<folder>/<plans_name>.json` atomically.

    Returns:
        "written", "replaced", or "unchanged" where the file holds the same plans already.

    Raises:
        ConfigurationError: the file holds other plans and `overwrite` is False.
    """
    path = folder / f"{plans['plans_name']}.json"
    exists = path.exists()
    if exists:
        try:
            there = read_json(path)
            if there == json.loads(json.dumps(plans)):
                return "unchanged"
            if not isinstance(there, dict) or "configurations" not in there:
                raise ConfigurationError(f"{path} exists and is no plans file. Choose another --name.")
        except json.JSONDecodeError:
            pass  # a damaged file is a different file
        if not overwrite:
            raise ConfigurationError(
                f"{path} exists with other content. Choose another --name, or replace it with --overwrite."
            )
    write_json(path, plans)
    return "replaced" if exists else "written"
