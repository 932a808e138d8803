"""Files of architecture codes: ours (JSON, versioned, axes named), and those of the reference implementation.

MONAI's .pt and .pth files are read without running code of theirs.
"""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.dints.architecture_code import CVPR_CODE, ArchitectureCode, rows_of
from nnunet_ext.dints.search_space import OPERATIONS, edges
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_json

FORMAT, VERSION = "dints-arch-code", 1
AXES = {2: "yx", 3: "zyx"}  # of nnU-Net's arrays, in which the operations of a network are named
PROVENANCE = (
    "dataset", "plans", "configuration", "fold", "sigma", "memory_ratio_of_code", "iterations", "seed", "source",
    "versions",
)  # fmt: skip


@dataclass(frozen=True)
class CodeFile:
    """What an architecture file holds: the code, how its network downsamples, and facts about the search."""

    code: ArchitectureCode
    use_downsample: bool = True
    dimensions: int = 3
    meta: Mapping[str, Any] | None = None

    def content(self) -> dict[str, Any]:
        """JSON values, schema version 1. Edges, operations and axes are named, so that no later order can corrupt it.

        Files without `axes` are ours of before they were written down, with the same axes.
        """
        return {
            "format": FORMAT,
            "version": VERSION,
            "num_layers": self.code.num_layers,
            "num_depths": self.code.depth,
            "use_downsample": self.use_downsample,
            "spatial_dims": self.dimensions,
            "axes": AXES[self.dimensions],
            "edges": [list(edge) for edge in edges(self.code.depth)],
            "ops": list(OPERATIONS[self.dimensions]),
            **self.code.settings(),
            "meta": dict(self.meta or {}),
        }

    def write(self, path: str | os.PathLike) -> None:
        """Writes the file atomically."""
        write_json(path, self.content())

    def origin(self) -> dict[str, Any]:
        """Where the code comes from, as far as the file says, with the code's digest; JSON values."""
        known = {key: self.meta[key] for key in PROVENANCE if key in self.meta} if self.meta else {}
        return {"code": digest(self.code), **known}


def digest(code: ArchitectureCode) -> str:
    """Twelve hexadecimal digits that say whether two codes are the same."""
    return hashlib.sha256(json.dumps(code.settings()).encode()).hexdigest()[:12]


def read_code(path: str | os.PathLike) -> CodeFile:
    """Reads our JSON, or a .pt or .pth file of the reference implementation.

    Raises:
        ConfigurationError: the file is missing or damaged, holds more than data, or no valid code.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(f"There is no architecture code {path}. A search writes fold_X/architecture.json.")
    try:
        if path.suffix in (".pt", ".pth"):
            return _from_reference(_read_reference(path), path.name)
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except ConfigurationError as error:
        raise ConfigurationError(f"{path} holds no usable architecture code: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"The architecture code {path} cannot be read ({error}).") from error


def _from_json(content: Any) -> CodeFile:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigurationError(f"'format' must be '{FORMAT}'; a search writes such a file.")
    if content.get("version") != VERSION:
        raise ConfigurationError(f"its version is {content.get('version')!r}; this release reads version {VERSION}.")
    missing = [key for key in CodeFile(CVPR_CODE).content() if key not in content and key not in ("meta", "axes")]
    if missing:
        raise ConfigurationError(f"it has no {', '.join(missing)}.")
    dimensions = content["spatial_dims"]
    if type(dimensions) is not int or dimensions not in OPERATIONS or type(content["use_downsample"]) is not bool:
        raise ConfigurationError("'spatial_dims' must be 2 or 3 and 'use_downsample' true or false.")
    meta = content.get("meta", {})
    if not isinstance(meta, dict):
        raise ConfigurationError(f"'meta' must be an object of facts about the search, found {str(meta)[:80]!r}.")
    axes = content.get("axes", AXES[dimensions])
    if axes not in (AXES[dimensions], AXES[dimensions][::-1]):
        raise ConfigurationError(
            f"'axes' must be '{AXES[dimensions]}' (nnU-Net's order) or '{AXES[dimensions][::-1]}', found {axes!r}."
        )
    code = _code_in_our_order(content, tuple(OPERATIONS[dimensions]))
    if axes != AXES[dimensions] and dimensions == 3:
        code = code.with_axes_reversed()
    return CodeFile(code, content["use_downsample"], dimensions, meta)


def _code_in_our_order(content: Mapping[str, Any], names: tuple[str, ...]) -> ArchitectureCode:
    """The code with edges and operations in the order of this release; both are named in the file."""
    active, operations = (rows_of(name, content[name]) for name in ("arch_code_a", "arch_code_c"))
    depth, layers, ops = content["num_depths"], content["num_layers"], content["ops"]
    for name, value in (("num_depths", depth), ("num_layers", layers)):
        if type(value) is not int:
            raise ConfigurationError(f"'{name}' must be a whole number, found {str(value)[:80]!r}.")
    ours, theirs = edges(depth), list(rows_of("edges", content["edges"]))
    if sorted(theirs) != sorted(ours):
        raise ConfigurationError(
            f"'num_depths' is {depth}, which has {len(ours)} edges, but 'edges' names {len(theirs)}, or other ones."
        )
    if not isinstance(ops, list) or not ops or any(name not in names for name in ops):
        raise ConfigurationError(f"'ops' names {str(ops)[:80]}; known are {', '.join(names)}.")
    for name, rows in (("arch_code_a", active), ("arch_code_c", operations)):
        if len(rows) != layers or any(len(row) != len(ours) for row in rows):
            raise ConfigurationError(
                f"{name} must have {layers} layers of {len(ours)} edges (num_depths {depth}), found {len(rows)} of "
                f"{sorted({len(row) for row in rows})}."
            )
    for row in operations:
        if any(not 0 <= value < len(ops) for value in row):
            raise ConfigurationError(f"arch_code_c holds operations 0 to {len(ops) - 1}; found {list(row)}.")
    order = [theirs.index(edge) for edge in ours]
    return ArchitectureCode(
        tuple(tuple(row[e] for e in order) for row in active),
        tuple(tuple(names.index(ops[row[e]]) for e in order) for row in operations),
    )


def _read_reference(path: Path) -> dict[str, Any]:
    """The dict in a file of the reference, read by torch's restricted unpickler: arrays and numbers, no code."""
    from nnunet_ext.weights.checkpoints import load_data, refused  # torch, which only these files need

    try:
        content = load_data(path)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"the file holds more than arrays and numbers, or is damaged; it was not opened.{refused(error)}"
        ) from error
    except (RuntimeError, EOFError, KeyError, IndexError, AttributeError, TypeError, ValueError, OSError) as error:
        raise ConfigurationError(f"the file is damaged ({str(error)[:200]}).") from error
    if not isinstance(content, dict):
        raise ConfigurationError("a reference file holds a dict with arch_code_a and arch_code_c.")
    return content


def _from_reference(content: Mapping[str, Any], file: str) -> CodeFile:
    """Both key sets that are in use; the stored node activation is not needed, it follows from the edges.

    The reference's axes are x, y, z.
    """

    def rows(*names: str) -> Any:
        for name in names:
            if name in content:
                values = content[name]
                if hasattr(values, "tolist"):
                    return (values + 0 if str(values.dtype).endswith("bool") else values).tolist()
                return values
        raise ConfigurationError(f"it has none of {', '.join(names)}; its keys are {', '.join(map(str, content))}.")

    code = ArchitectureCode.of(rows("arch_code_a", "code_a"), rows("arch_code_c", "code_c"))
    return CodeFile(code.with_axes_reversed(), meta={"source": f"reference implementation, {file}"})


def code_settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings for `nnunet_ext plan` that an architecture file stands for."""
    file = read_code(path)
    return {**file.code.settings(), "use_downsample": file.use_downsample, "code_origin": file.origin()}


def origin_text(code: ArchitectureCode, origin: Mapping[str, Any] | None) -> str:
    """Where a network's code comes from, in a sentence.

    Args:
        origin: as `CodeFile.origin` says it; of another code, or None, it is passed over.
    """
    known = dict(origin) if origin and origin.get("code") == digest(code) else {}
    if "sigma" in known:
        ratio = known.get("memory_ratio_of_code")
        versions = ", ".join(f"{name} {number}" for name, number in dict(known.get("versions") or {}).items())
        found = f" (the code has {ratio:.3f})" if isinstance(ratio, float) else ""
        return (
            f"The architecture was searched on {known.get('dataset')}, fold {known.get('fold')}, with a budget of "
            f"sigma {known['sigma']}{found}, {known.get('iterations')} iterations, seed {known.get('seed')}"
            + (f" ({versions})." if versions else ".")
        )
    if any(code == CVPR_CODE.for_dimensions(dimensions) for dimensions in OPERATIONS):
        return (
            "The plans hold no searched architecture: this is the code that the authors of DiNTS published (CVPR 2021, "
            "sigma 0.8, searched on MSD Pancreas)."
        )
    if "source" in known:
        return f"The architecture comes from a file of the {known['source']}."
    return "The architecture is the code in the plans, of which they do not say where it comes from."
