"""Which resampling functions a plans file names: nnU-Net's, or ours that are equal to them."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.planning.options import refuse_unknown
from nnunet_ext.planning.plans_files import check_plans_name

FUNCTIONS = {"nnunet": "resample_data_or_seg_to_shape", "separable": "resample_separable"}
KEYS = ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")
SETTING = "resampling"
WITHOUT_METHOD = (SETTING, "batch_size")  # what can be set in plans of any network


def with_resampling(values: Mapping[str, Any], choice: Any) -> dict[str, Any]:
    """A configuration of a plans file with the functions of `choice`, "nnunet" or "separable"; their arguments stay.

    Raises:
        ConfigurationError: an unknown choice, or the configuration names other functions, with arguments of their own.
    """
    if choice not in FUNCTIONS:
        raise ConfigurationError(f"{SETTING} must be {' or '.join(FUNCTIONS)}, found {choice!r}.")
    others = {key: values[key] for key in KEYS if values.get(key) not in FUNCTIONS.values()}
    if others:
        found = ", ".join(f"{key}={name}" for key, name in others.items())
        raise ConfigurationError(f"{SETTING}={choice} replaces nnU-Net's default functions only; these are {found}.")
    return {**values, **dict.fromkeys(KEYS, FUNCTIONS[choice])}


def derive_resampling(
    source: Mapping[str, Any], *, name: str, settings: Mapping[str, Any], configurations: Sequence[str] | None = None
) -> dict[str, Any]:
    """Plans with any network and other resampling functions or batches; `source` stays, `data_identifier` is kept.

    Args:
        source: the plans to start from.
        name: `plans_name` of the result.
        settings: `resampling`, `batch_size`, or both.
        configurations: only these; by default all that do not inherit from another.

    Raises:
        ConfigurationError: another setting, an unknown configuration, functions that are not nnU-Net's default ones, a
            batch that is no number of samples.
    """
    check_plans_name(name)
    refuse_unknown(settings, WITHOUT_METHOD, "setting of plans without a method of ours")
    batch = settings.get("batch_size", 1)
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ConfigurationError(f"batch_size must be a positive integer, found {batch!r}.")
    plans = deepcopy(dict(source))
    plans["plans_name"] = name
    refuse_unknown(configurations or [], plans["configurations"], "configuration")
    own = [key for key, values in plans["configurations"].items() if "inherits_from" not in values]
    for key in configurations or own:
        values = plans["configurations"][key]
        if SETTING in settings:
            values = with_resampling(values, settings[SETTING])
        plans["configurations"][key] = {**values, **{k: v for k, v in settings.items() if k == "batch_size"}}
    return plans
