"""Training options as they stand in `configurations.<name>.nnunet_ext` of a plans file: defaults, types, limits."""

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from nnunet_ext.errors import ConfigurationError

PLANS_KEY = "nnunet_ext"

Options = TypeVar("Options", bound="TrainingOptions")


def option(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, is_file: bool = False
) -> Any:
    """A dataclass field with a help text and inclusive limits, or that names a file."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "is_file": is_file})


@dataclass(frozen=True)
class TrainingOptions:
    """What every method's training can be told; a method's own options are a subclass. Defaults are nnU-Net's."""

    num_epochs: int = option(1000, "epochs of the training", low=1)
    num_iterations_per_epoch: int = option(250, "optimizer steps in an epoch", low=1)
    num_val_iterations_per_epoch: int = option(50, "validation batches in an epoch", low=1)
    initial_lr: float = option(0.01, "learning rate of the first epoch", low=1e-12)
    weight_decay: float = option(3e-5, "weight decay of the optimizer", low=0)
    mirroring: bool = option(True, "mirror patches in training and prediction; false for sides that differ")
    train_bfloat16: bool = option(False, "training steps in bfloat16 autocast on CPUs that have it")
    save_every: int = option(50, "epochs between two checkpoint_latest.pth", low=1)
    seed: int = option(0, "seed of weights and topology; fold f uses seed + f", low=0, high=2**31)

    @classmethod
    def from_plans(cls: type[Options], values: Mapping[str, Any] | None) -> Options:
        """The options from a plans file's dict; absent keys have their default.

        Raises:
            ConfigurationError: unknown key, wrong type, value out of its limits.
        """
        values = {} if values is None else values
        if not isinstance(values, Mapping):
            raise ConfigurationError(f"'{PLANS_KEY}' in the plans file must be a dict of options, found {values!r}.")
        known = {f.name: f for f in fields(cls)}
        refuse_unknown(values, known, f"training option of {cls.__name__}")
        hints = get_type_hints(cls)
        return cls(**{name: _checked(known[name], hints[name], value) for name, value in values.items()})

    @classmethod
    def files_in(cls, settings: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Option -> absolute path, for those of the settings that name files, seen from `folder`.

        Plans are read in other folders than they were made in.
        """
        names = [f.name for f in fields(cls) if f.metadata.get("is_file") and isinstance(settings.get(f.name), str)]
        return {name: str(folder / Path(settings[name]).expanduser()) for name in names}

    def of_length(self: Options, num_epochs: int) -> Options:
        """The same options for a training of so many epochs.

        Raises:
            ConfigurationError: the others do not allow it.
        """
        return replace(self, num_epochs=num_epochs)


def _checked(option_field: Field, kind: Any, value: Any) -> Any:
    kinds = get_args(kind) or (kind,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise ConfigurationError(f"Option '{option_field.name}' must be {expected}, found {value!r}.")
    low, high = option_field.metadata.get("low"), option_field.metadata.get("high")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigurationError(f"Option '{option_field.name}' must be a finite number, found {value!r}.")
        if (low is not None and value < low) or (high is not None and value > high):
            limits = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ConfigurationError(f"Option '{option_field.name}' must be {limits}, found {value!r}.")
    return value


def refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises a `ConfigurationError` that names the unknown keys and lists the known ones."""
    known = sorted(known)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigurationError(f"Unknown {what}: {', '.join(unknown)}. Known: {', '.join(known)}.")


def architecture_options(network_class: type) -> dict[str, Any]:
    """Names and defaults of the keyword-only arguments of a network's constructor, deep supervision aside."""
    parameters = inspect.signature(network_class).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "deep_supervision"}


def dotted_path(cls: type) -> str:
    """By which plans files name a class."""
    return f"{cls.__module__}.{cls.__name__}"
