"""A method's network and options written into a copy of existing plans, and checked."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import Method
from nnunet_ext.planning.describe import CONFIGURATION_SETTINGS
from nnunet_ext.planning.options import PLANS_KEY, architecture_options, refuse_unknown
from nnunet_ext.planning.plain import with_configuration_settings
from nnunet_ext.planning.plans_files import check_plans_name

_WIDTH_RULE = ("base_features", "max_features")


def derive_plans(
    source: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    method: Method,
    *,
    name: str,
    settings: Mapping[str, Any] | None = None,
    configurations: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Plans with the method's network and options; `source` stays as it is, `data_identifier` is kept.

    Args:
        source: the plans to start from, stock or a method's.
        dataset_json: of the data set; says channels and labels.
        method: whose network and options are written.
        name: `plans_name` of the result.
        settings: option -> JSON value: training options, arch_kwargs of the network, `patch_size`, `batch_size`,
            `resampling`.
        configurations: only these; by default all that have an architecture of their own and that the method supports.
            Configurations that inherit follow the one that they inherit from.

    Raises:
        ConfigurationError: unknown or bad setting, unsuitable configuration, a network that cannot be built.
    """
    settings = dict(settings or {})
    settings.update(method.options_class().files_in(settings, Path.cwd()))
    check_plans_name(name)
    known = known_settings(method)
    refuse_unknown(settings, known, f"setting of {method.title}")
    plans = deepcopy(dict(source))
    plans["plans_name"] = name
    chosen = _chosen_configurations(plans, method, configurations)
    for configuration in chosen:
        plans["configurations"][configuration] = _configuration(
            plans["configurations"][configuration], method, settings, known
        )
    for configuration in _with_heirs(plans, chosen):
        _check_network(plans, dataset_json, method, configuration)
    return plans


def known_settings(method: Method) -> dict[str, str]:
    """Setting -> where it stands: "training", "architecture" or "configuration"."""
    known = dict.fromkeys(architecture_options(method.network_class()), "architecture")
    known.update(dict.fromkeys((f.name for f in fields(method.options_class())), "training"))
    known.update(dict.fromkeys(CONFIGURATION_SETTINGS, "configuration"))
    return known


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """`["sparsity=0.9", "kernel_size=[3,3,3]"]` -> `{"sparsity": 0.9, "kernel_size": [3, 3, 3]}`.

    Values are JSON (`null`, `true`, numbers, lists); what is not JSON is taken as text.

    Raises:
        ConfigurationError: no `=`, an empty key, or a key that is given twice.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigurationError(f"--set needs KEY=VALUE, for example --set num_epochs=100, found '{text}'.")
        if key in settings:
            raise ConfigurationError(f"--set {key} is given twice.")
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    return settings


def settings_words(settings: Mapping[str, Any]) -> list[str]:
    """The words of `nnunet_ext plan` that `parse_settings` reads back; values are JSON."""
    return [
        word
        for key, value in settings.items()
        for word in ("--set", f"{key}={json.dumps(value, separators=(',', ':'))}")
    ]


def _chosen_configurations(plans: dict[str, Any], method: Method, asked: Sequence[str] | None) -> list[str]:
    available = plans["configurations"]
    suitable = [name for name, values in available.items() if _is_suitable(values, method)]
    if asked is None:
        if not suitable:
            raise ConfigurationError(
                f"No configuration of these plans suits {method.title}. They have: {', '.join(available) or 'none'}."
            )
        return suitable
    refuse_unknown(asked, available, "configuration")
    for name in asked:
        if name in suitable:
            continue
        parent = available[name].get("inherits_from")
        if parent and "architecture" not in available[name]:
            raise ConfigurationError(
                f"Configuration '{name}' has no architecture of its own: it inherits from '{parent}'. "
                f"Use --configuration {parent}."
            )
        there = ", ".join(suitable) or "none"
        raise ConfigurationError(f"{method.title} does not support configuration '{name}'. Suitable: {there}.")
    return list(asked)


def _is_suitable(values: Mapping[str, Any], method: Method) -> bool:
    if "architecture" not in values or "patch_size" not in values:
        return False
    return len(values["patch_size"]) == 3 or method.network_class().supports_2d


def _with_heirs(plans: Mapping[str, Any], chosen: Sequence[str]) -> list[str]:
    """The chosen configurations and those that get their architecture from one of them."""

    def owner(name: str, seen: tuple[str, ...] = ()) -> str:
        values = plans["configurations"].get(name, {})
        parent = values.get("inherits_from")
        if "architecture" in values or parent is None or parent in seen:
            return name
        return owner(parent, (*seen, name))

    return [name for name in plans["configurations"] if owner(name) in chosen]


def _configuration(
    values: Mapping[str, Any], method: Method, settings: Mapping[str, Any], known: Mapping[str, str]
) -> dict[str, Any]:
    """One configuration with the method's architecture and options, and the settings applied."""
    by_place: dict[str, dict[str, Any]] = {"architecture": {}, "training": {}, "configuration": {}}
    for key, value in settings.items():
        by_place[known[key]][key] = value
    values = dict(values)
    before = values["architecture"]
    ours = before["network_class_name"] == method.network_path
    options = {**((values.get(PLANS_KEY) or {}) if ours else {}), **by_place["training"]}
    values[PLANS_KEY] = asdict(method.options_class().from_plans(options))
    patch_size = values["patch_size"]
    values = with_configuration_settings(values, by_place["configuration"])
    if ours:
        arch_kwargs = _at_patch(before["arch_kwargs"], method, patch_size, values["patch_size"])
    else:
        arch_kwargs = method.arch_kwargs_at(_strides(before, method), values["patch_size"])
    values["architecture"] = {
        "network_class_name": method.network_path,
        "arch_kwargs": _with_architecture_settings(arch_kwargs, by_place["architecture"], method),
        "_kw_requires_import": [],
    }
    return values


def _strides(architecture: Mapping[str, Any], method: Method) -> Any:
    strides = architecture.get("arch_kwargs", {}).get("strides")
    if strides is None:
        raise ConfigurationError(
            f"The architecture {architecture.get('network_class_name')} of these plans names no strides, "
            f"from which {method.title} could be derived. Start from nnUNetPlans."
        )
    return strides


def _at_patch(
    arch_kwargs: Mapping[str, Any], method: Method, before: Sequence[int], patch_size: Sequence[int]
) -> dict[str, Any]:
    """`arch_kwargs` of a plan whose patch was `before`: what followed it follows `patch_size`, the rest stays."""
    strides = _strides({"arch_kwargs": arch_kwargs}, method)
    old, new = (method.arch_kwargs_at(strides, patch) for patch in (before, patch_size))
    moved = {
        key: value for key, value in new.items() if value != old[key] and arch_kwargs.get(key, old[key]) == old[key]
    }
    return {**arch_kwargs, **moved}


def _with_architecture_settings(
    arch_kwargs: Mapping[str, Any], settings: Mapping[str, Any], method: Method
) -> dict[str, Any]:
    """`arch_kwargs` updated. A width rule (base, maximum) and explicit widths exclude each other: the new one wins."""
    result, settings = dict(arch_kwargs), dict(settings)
    rule = [key for key in _WIDTH_RULE if key in settings]
    if "features_per_stage" in settings:
        if rule:
            raise ConfigurationError(
                f"features_per_stage and {' and '.join(rule)} exclude each other: set one of them."
            )
        for key in _WIDTH_RULE:
            result.pop(key, None)
    elif rule:
        widths = result.pop("features_per_stage", None)
        if widths:
            result.setdefault("base_features", widths[0])
    return {**result, **settings}


def _check_network(
    plans: Mapping[str, Any], dataset_json: Mapping[str, Any], method: Method, configuration: str
) -> None:
    """Builds the network and asks it and its method whether the patch and the training options suit."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    network = planned_network(plans, dataset_json, method, configuration)
    resolved = PlansManager(deepcopy(dict(plans))).get_configuration(configuration)
    try:
        if hasattr(network, "check_patch_size"):
            network.check_patch_size(resolved.patch_size)
        method.check_plan(network, method.options_class().from_plans(resolved.configuration.get(PLANS_KEY)))
    except ConfigurationError as error:
        raise ConfigurationError(f"Configuration '{configuration}': {error}") from error


def planned_network(
    plans: Mapping[str, Any], dataset_json: Mapping[str, Any], method: Method, configuration: str
) -> Any:
    """The network as nnU-Net's training will build it, on torch's meta device: no memory, only what is checked.

    Raises:
        ConfigurationError: it cannot be built.
    """
    import torch
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(deepcopy(dict(plans)))
    resolved = manager.get_configuration(configuration)
    build = method.trainer_class().build_network_architecture  # what it imports is not made on the meta device
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that values are not initialised on the meta device
            return build(
                manager,
                resolved,
                determine_num_input_channels(manager, resolved, dataset_json),
                manager.get_label_manager(dataset_json).num_segmentation_heads,
            )
    except ConfigurationError as error:
        raise ConfigurationError(f"Configuration '{configuration}': {error}") from error
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigurationError(
            f"Configuration '{configuration}': {method.title} cannot be built from "
            f"{resolved.network_arch_init_kwargs} ({error})."
        ) from error
