"""Plans with any network, nnU-Net's own above all, and another patch, batch or resampling."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import method_of
from nnunet_ext.planning.describe import CONFIGURATION_SETTINGS
from nnunet_ext.planning.options import refuse_unknown
from nnunet_ext.planning.patches import total_strides
from nnunet_ext.planning.plans_files import check_plans_name
from nnunet_ext.planning.resampling import SETTING, with_resampling


def with_configuration_settings(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of a plans file with `patch_size`, `batch_size` and `resampling`, as far as they are given.

    Raises:
        ConfigurationError: a patch that is not a number of voxels for each axis, a batch that is no number of samples,
            resampling functions that are unknown or not nnU-Net's default ones.
    """
    values, dimensions = dict(values), len(values["patch_size"])
    sizes = {key: value for key, value in settings.items() if key != SETTING}
    if SETTING in settings:
        values = with_resampling(values, settings[SETTING])
    patch_size = sizes.get("patch_size", [1] * dimensions)
    if not isinstance(patch_size, list) or len(patch_size) != dimensions or not all(map(_is_count, patch_size)):
        raise ConfigurationError(f"patch_size must be a list of {dimensions} positive integers, found {patch_size!r}.")
    if not _is_count(sizes.get("batch_size", 1)):
        raise ConfigurationError(f"batch_size must be a positive integer, found {sizes['batch_size']!r}.")
    return {**values, **sizes}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def derive_plain(
    source: Mapping[str, Any], *, name: str, settings: Mapping[str, Any], configurations: Sequence[str] | None = None
) -> dict[str, Any]:
    """Plans with the networks of `source` and other settings; `source` stays, `data_identifier` is kept.

    Args:
        source: the plans to start from.
        name: `plans_name` of the result.
        settings: some of `patch_size`, `batch_size` and `resampling`.
        configurations: only these; by default all that do not inherit from another.

    Raises:
        ConfigurationError: another setting, an unknown configuration, a value as `with_configuration_settings` says,
            another patch for a network of ours, or one that the network's strides do not divide or leave one voxel of.
    """
    check_plans_name(name)
    refuse_unknown(settings, CONFIGURATION_SETTINGS, "setting of plans without a method of ours")
    plans = deepcopy(dict(source))
    plans["plans_name"] = name
    refuse_unknown(configurations or [], plans["configurations"], "configuration")
    own = [key for key, values in plans["configurations"].items() if "inherits_from" not in values]
    for key in configurations or own:
        plans["configurations"][key] = with_configuration_settings(plans["configurations"][key], settings)
        if "patch_size" in settings:
            _check_patch(key, plans["configurations"][key])
    return plans


def _check_patch(configuration: str, values: Mapping[str, Any]) -> None:
    architecture = values.get("architecture", {})
    owner = method_of(architecture.get("network_class_name"))
    if owner is not None:
        raise ConfigurationError(
            f"The network of {configuration} is {owner.title}'s and may depend on the patch. "
            f"Give --method {owner.name} and --configuration {configuration}."
        )
    strides = architecture.get("arch_kwargs", {}).get("strides")
    if strides is None:
        raise ConfigurationError(
            f"The network of {configuration} names no strides that say which patches it takes. Leave patch_size as "
            f"it is there, and set it in your planner."
        )
    patch, steps = values["patch_size"], total_strides(strides)[-1]
    if any(size % step for size, step in zip(patch, steps, strict=True)):
        raise ConfigurationError(
            f"patch_size of {configuration} must be multiples of {steps}, its strides multiplied, found {patch}."
        )
    if math.prod(patch) == math.prod(steps):
        raise ConfigurationError(
            f"patch_size {patch} leaves a single voxel at the lowest level of {configuration}, which cannot be "
            f"normalised. Take more than {steps}."
        )
