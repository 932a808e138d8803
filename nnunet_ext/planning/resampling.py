"""Which resampling functions a plans file names: nnU-Net's, or ours that are equal to them."""

from collections.abc import Mapping
from typing import Any

from nnunet_ext.errors import ConfigurationError

FUNCTIONS = {"nnunet": "resample_data_or_seg_to_shape", "separable": "resample_separable"}
KEYS = ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")
SETTING = "resampling"


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
