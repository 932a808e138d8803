"""What can be set in a method's plans: names, defaults, types, limits and meanings, read where they are declared."""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from nnunet_ext.methods import Method
from nnunet_ext.planning.options import architecture_options

CONFIGURATION_SETTINGS = {
    "patch_size": "voxels of a training patch along each axis, a list",
    "batch_size": "patches in a training step",
    "resampling": "nnunet or separable: nnU-Net's own functions, or ours that are equal to them and faster",
}


def kinds_text(option: Mapping[str, Any]) -> str:
    """Type and limits of one of `describe_options`, as "int, at least 1"; empty where it has no type."""
    kinds, low, high = option["type"], option.get("low"), option.get("high")
    limits = "" if low is None and high is None else f", {low} to {high}" if high is not None else f", at least {low}"
    return f"{kinds}{limits}" if kinds else ""


def short_json(value: object) -> str:
    """JSON without spaces, of what is long its beginning."""
    text = json.dumps(value, separators=(",", ":"))
    return text if len(text) <= 300 else f"{text[:297]}..."


def describe_options(method: Method) -> dict[str, list[dict[str, Any]]]:
    """By place ("training", "network", "configuration") the options with name, default, help, type and limits."""
    options = method.options_class()
    hints = get_type_hints(options)
    training = [
        {
            "name": field.name,
            "default": field.default,
            "type": _kinds(hints[field.name]),
            "low": field.metadata["low"],
            "high": field.metadata["high"],
            "help": field.metadata["help"],
        }
        for field in fields(options)
    ]
    network_class = method.network_class()
    meanings = argument_meanings(network_class.__doc__ or "")
    network = [
        {"name": name, "default": _json(default), "type": "", "help": meanings.get(name, "")}
        for name, default in architecture_options(network_class).items()
    ]
    configuration = [
        {"name": name, "default": None, "type": "", "help": text} for name, text in CONFIGURATION_SETTINGS.items()
    ]
    return {"training": training, "network": network, "configuration": configuration}


def argument_meanings(docstring: str) -> dict[str, str]:
    """Argument -> what the "Args:" section of a docstring says of it; several may share an entry ("a, b: ...")."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(docstring), re.S | re.M)
    found: dict[str, str] = {}
    if section is None:
        return found
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", section[1], re.S | re.M):
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found


def _kinds(kind: Any) -> str:
    kinds = get_args(kind) or (kind,)
    return " or ".join("null" if k is type(None) else k.__name__ for k in kinds)


def _json(default: Any) -> Any:
    return None if default is inspect.Parameter.empty else list(default) if isinstance(default, tuple) else default
