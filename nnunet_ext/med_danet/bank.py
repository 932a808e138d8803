"""The candidates of a bank as the plans name them: type and width, or the class of any 2D network."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.planning.options import refuse_unknown
from nnunet_ext.weights.checkpoints import read_checkpoint

STRIDE = 8  # height and width of both built-in types are padded to a multiple of this
EMBEDDING, HEADS, HIDDEN = 512, 8, 2048  # of TransBTS's Transformer
POSITION_SIZE = (128, 128)  # pixels for which TransBTS learns positions by default

# M1 to M4 of the paper (section 3.2).
PAPER_BANK: list[dict[str, Any]] = [
    {"type": "unet", "width": 12},
    {"type": "unet", "width": 16},
    {"type": "transbts", "width": 16, "layers": 1},
    {"type": "transbts", "width": 16, "layers": 4},
]
_KNOWN = {"unet": ("type", "width"), "transbts": ("type", "width", "layers", "embedding", "heads", "hidden")}
_CLASS_KEYS = ("type", "kwargs", "kw_requires_import")


@dataclass(frozen=True)
class Candidate:
    """One candidate. `type` is "unet", "transbts", or a dotted class path, which alone uses the last two fields."""

    type: str
    width: int = 16
    layers: int = 0
    embedding: int = EMBEDDING
    heads: int = HEADS
    hidden: int = HIDDEN
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    kw_requires_import: Sequence[str] = ()

    @property
    def is_built_in(self) -> bool:
        """Whether `candidates.py` has it."""
        return self.type in _KNOWN

    @property
    def title(self) -> str:
        """What people read: "UNet-12", "TransBTS-16 L4", the name of a class."""
        if self.type == "unet":
            return f"UNet-{self.width}"
        if self.type == "transbts":
            return f"TransBTS-{self.width} L{self.layers}"
        return self.type.rpartition(".")[2]


def read_bank(values: Any) -> list[Candidate]:
    """The candidates of `arch_kwargs["candidates"]`, checked.

    Args:
        values: dicts `{"type": "unet", "width": 12}`, `{"type": "transbts", "width": 16, "layers": 4}` (and optionally
            embedding, heads, hidden), or `{"type": "package.module.Class", "kwargs": {...}, "kw_requires_import": []}`
            for a class that takes `input_channels`, `num_classes` and these kwargs and maps `[B, C, H, W]` to
            `[B, K, H, W]`; values of the kwargs named in kw_requires_import are dotted paths to import.

    Raises:
        ConfigurationError: what is wrong with which candidate.
    """
    if not isinstance(values, (list, tuple)) or not values:
        raise ConfigurationError(f"'candidates' must be a list of at least one candidate, found {values!r}.")
    return [_candidate(number, value) for number, value in enumerate(values, start=1)]


def _candidate(number: int, value: Any) -> Candidate:
    where = f"candidate {number}"
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise ConfigurationError(f'{where.capitalize()} must be a dict with a "type", found {value!r}.')
    kind = value["type"]
    if kind not in _KNOWN and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", kind):
        raise ConfigurationError(
            f"The type of {where} must be {', '.join(_KNOWN)}, or a dotted class path, found {kind!r}."
        )
    refuse_unknown(value, _KNOWN.get(kind, _CLASS_KEYS), f"option of {where} ({kind})")
    if kind not in _KNOWN:
        kwargs, imports = value.get("kwargs", {}), value.get("kw_requires_import", [])
        if not isinstance(kwargs, Mapping) or not set(imports) <= set(kwargs):
            raise ConfigurationError(f"{where.capitalize()}: 'kwargs' must be a dict that has all kw_requires_import.")
        return Candidate(kind, kwargs=dict(kwargs), kw_requires_import=tuple(imports))
    missing = {"unet": {"width"}, "transbts": {"width", "layers"}}[kind] - set(value)
    if missing:
        raise ConfigurationError(f"{where.capitalize()} ({kind}) needs {' and '.join(sorted(missing))}.")
    numbers = {key: item for key, item in value.items() if key != "type"}
    for key, item in numbers.items():
        if type(item) is not int or item < 1:
            raise ConfigurationError(f"'{key}' of {where} must be a positive integer, found {item!r}.")
    candidate = Candidate(kind, **numbers)
    if candidate.embedding % 4 or candidate.embedding % candidate.heads:
        raise ConfigurationError(
            f"'embedding' of {where} must be a multiple of 4 and of its {candidate.heads} heads, "
            f"found {candidate.embedding}."
        )
    return candidate


def token_grid(position_size: Sequence[int]) -> list[int]:
    """Height and width in tokens of slices of so many pixels."""
    return [math.ceil(side / STRIDE) for side in position_size]


def take_bank(network: Any, path: str) -> None:
    """Gives the candidates of a `MedDANet` the weights of those in a checkpoint.

    Raises:
        ConfigurationError: the file cannot be read, or its candidates are others.
    """
    prefix = "candidates."
    saved = read_checkpoint(Path(path).expanduser())["network_weights"]
    weights = {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
    own = network.candidates.state_dict()
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
        raise ConfigurationError(
            f"The candidates of bank_weights={path} are not those of the plans, or have other channels or classes: "
            f"take a checkpoint that was trained with the same arch_kwargs and data set."
        )
    network.candidates.load_state_dict(weights)
