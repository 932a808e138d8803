"""Architecture codes: one searched topology with its operations, checked, and its file (JSON, versioned).

A code says for each of the L layers which of the E edges are active (0/1) and which operation each edge has (an index
into `search_space.OPERATIONS`; given for inactive edges too). Codes of the reference implementation (MONAI's .pt and
.pth files) are read without running code of theirs.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.dints.search_space import (
    OPERATIONS,
    Structure,
    depth_of,
    edges,
    level_strides,
    level_widths,
    receivers,
    scales_of,
    senders,
)
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_json

FORMAT, VERSION = "dints-arch-code", 1

# The paper's model with sigma 0.8 as its authors published it: one number a layer, edge 0 the most significant bit;
# one digit an edge.
_CVPR_EDGES = (762, 987, 1019, 766, 991, 767, 983, 1011, 991, 991, 927, 775)
_CVPR_OPERATIONS = (
    "1313212011", "1031021243", "3002101210", "4221211013", "1140041111", "2000444111",
    "4300240103", "1100340413", "1002000011", "1423443031", "2023020032", "4400143021",
)  # fmt: skip


@dataclass(frozen=True)
class ArchitectureCode:
    """A checked code.

    Attributes:
        active: `[L][E]`, 1 = the edge is used.
        operations: `[L][E]`, index of each edge's operation.

    Raises:
        ConfigurationError: wrong shape, a layer without edges, an infeasible layer, an operation out of range.
    """

    active: tuple[tuple[int, ...], ...]
    operations: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.active:
            raise ConfigurationError("An architecture code needs at least one layer; this one has none.")
        depth_of(len(self.active[0]))
        for name, rows in (("arch_code_a", self.active), ("arch_code_c", self.operations)):
            shape = [len(row) for row in rows]
            if shape != [len(self.active[0])] * len(self.active):
                raise ConfigurationError(
                    f"An architecture code needs arch_code_a and arch_code_c of the same shape, layers x edges; "
                    f"{name} has rows of {shape} for {len(self.active)} layers of {len(self.active[0])} edges."
                )
        for layer, row in enumerate(self.active, start=1):
            if any(value not in (0, 1) for value in row):
                raise ConfigurationError(f"arch_code_a holds 0 and 1 only; layer {layer} is {list(row)}.")
            if not any(row):
                raise ConfigurationError(f"Layer {layer} of the architecture code has no active edge.")
        highest = max(len(operations) for operations in OPERATIONS.values())
        for layer, row in enumerate(self.operations, start=1):
            if any(not 0 <= value < highest for value in row):
                raise ConfigurationError(
                    f"arch_code_c holds operations 0 to {highest - 1}; layer {layer} is {list(row)}."
                )
        for layer, (row, following) in enumerate(zip(self.active, self.active[1:], strict=False), start=1):
            arrived, left = receivers(self.depth, row), senders(self.depth, following)
            if arrived != left:
                raise ConfigurationError(
                    f"The architecture code is infeasible: the edges of layer {layer} arrive at scales "
                    f"{list(scales_of(arrived))}, but those of layer {layer + 1} leave from {list(scales_of(left))}."
                )

    @classmethod
    def of(cls, active: Any, operations: Any) -> "ArchitectureCode":
        """From nested sequences of numbers, as they come out of files.

        Raises:
            ConfigurationError: not layers of whole numbers, or not a valid code.
        """
        return cls(_rows("arch_code_a", active), _rows("arch_code_c", operations))

    @property
    def depth(self) -> int:
        """D, the number of scales."""
        return depth_of(len(self.active[0]))

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.active)

    @property
    def num_edges(self) -> int:
        """Active edges of all layers."""
        return sum(map(sum, self.active))

    def nodes(self) -> list[list[int]]:
        """`[L + 1][D]`, 1 = the node is active; row 0 are the nodes that the stems feed."""
        masks = [senders(self.depth, self.active[0]), *(receivers(self.depth, row) for row in self.active)]
        return [[mask >> scale & 1 for scale in range(self.depth)] for mask in masks]

    def for_dimensions(self, dimensions: int) -> "ArchitectureCode":
        """The same code for images of 2 or 3 axes: in 2D each pseudo-3D operation is the plain convolution."""
        highest = len(OPERATIONS[dimensions]) - 1
        return ArchitectureCode(self.active, tuple(tuple(min(o, highest) for o in row) for row in self.operations))

    def structure(
        self,
        strides: Sequence[Sequence[int]],
        *,
        base_features: int,
        features_per_stage: Sequence[int] | None,
        use_downsample: bool,
        keep_unused: bool = False,
    ) -> Structure:
        """The discrete network: active edges only, and only the stems and steps of the head that are used.

        Args:
            keep_unused: all stems and all steps of the head are there, as in the reference implementation.

        Raises:
            ConfigurationError: strides or widths that do not fit, or an operation that 2D does not have.
        """
        used = level_strides(strides, self.depth, use_downsample)
        names = tuple(OPERATIONS[len(used[0])])
        if any(value >= len(names) for row in self.operations for value in row):
            raise ConfigurationError(f"In 2D an architecture code has the operations {', '.join(names)} only (0, 1).")
        inputs = scales_of(senders(self.depth, self.active[0]))
        outputs = scales_of(receivers(self.depth, self.active[-1]))
        every = tuple(range(self.depth))
        return Structure(
            strides=used,
            widths=level_widths(features_per_stage, base_features, len(used)),
            use_downsample=use_downsample,
            depth=self.depth,
            num_layers=self.num_layers,
            cells={
                (layer, edge): (names[self.operations[layer][edge]],)
                for layer, row in enumerate(self.active)
                for edge, on in enumerate(row)
                if on
            },
            stems=every if keep_unused else inputs,
            ups=every if keep_unused else every[: outputs[-1] + 1],
            inputs=inputs,
            outputs=outputs,
        )

    def settings(self) -> dict[str, Any]:
        """The code as the network's arch_kwargs."""
        return {"arch_code_a": _lists(self.active), "arch_code_c": _lists(self.operations)}


CVPR_CODE = ArchitectureCode(
    tuple(tuple(row >> (9 - edge) & 1 for edge in range(10)) for row in _CVPR_EDGES),
    tuple(tuple(map(int, row)) for row in _CVPR_OPERATIONS),
)


def _rows(name: str, values: Any) -> tuple[tuple[int, ...], ...]:
    problem = f"{name} must be a list of layers, each a list of whole numbers"
    if not isinstance(values, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in values):
        raise ConfigurationError(f"{problem}, found {str(values)[:80]!r}.")
    for row in values:
        for value in row:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
                raise ConfigurationError(f"{problem}, found {str(value)[:80]!r}.")
    return tuple(tuple(int(value) for value in row) for row in values)


def _lists(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(row) for row in rows]


# files


@dataclass(frozen=True)
class CodeFile:
    """What an architecture file holds: the code, how its network downsamples, and facts about the search."""

    code: ArchitectureCode
    use_downsample: bool = True
    dimensions: int = 3
    meta: Mapping[str, Any] | None = None

    def content(self) -> dict[str, Any]:
        """JSON values, schema version 1. Edges and operations are named, so that no later order can corrupt it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "num_layers": self.code.num_layers,
            "num_depths": self.code.depth,
            "use_downsample": self.use_downsample,
            "spatial_dims": self.dimensions,
            "edges": [list(edge) for edge in edges(self.code.depth)],
            "ops": list(OPERATIONS[self.dimensions]),
            **self.code.settings(),
            "meta": dict(self.meta or {}),
        }

    def write(self, path: str | os.PathLike) -> None:
        """Writes the file atomically."""
        write_json(path, self.content())


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
            return _from_reference(_read_reference(path))
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except ConfigurationError as error:
        raise ConfigurationError(f"{path} holds no usable architecture code: {error}") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The architecture code {path} cannot be read ({error}).") from error


def _from_json(content: Any) -> CodeFile:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigurationError(f"'format' must be '{FORMAT}'; a search writes such a file.")
    if content.get("version") != VERSION:
        raise ConfigurationError(f"its version is {content.get('version')!r}; this release reads version {VERSION}.")
    missing = [key for key in CodeFile(CVPR_CODE).content() if key not in content and key != "meta"]
    if missing:
        raise ConfigurationError(f"it has no {', '.join(missing)}.")
    if content["spatial_dims"] not in OPERATIONS or not isinstance(content["use_downsample"], bool):
        raise ConfigurationError("'spatial_dims' must be 2 or 3 and 'use_downsample' true or false.")
    active, operations = _rows("arch_code_a", content["arch_code_a"]), _rows("arch_code_c", content["arch_code_c"])
    ours, names = edges(content["num_depths"]), tuple(OPERATIONS[content["spatial_dims"]])
    theirs = [tuple(edge) for edge in content["edges"]]
    if sorted(theirs) != sorted(ours):
        raise ConfigurationError(
            f"'num_depths' is {content['num_depths']}, which has {len(ours)} edges, but 'edges' names {len(theirs)}."
        )
    if any(name not in names for name in content["ops"]):
        raise ConfigurationError(f"'ops' names {content['ops']}; known are {', '.join(names)}.")
    for name, rows in (("arch_code_a", active), ("arch_code_c", operations)):
        if len(rows) != content["num_layers"] or any(len(row) != len(ours) for row in rows):
            raise ConfigurationError(
                f"{name} must have {content['num_layers']} layers of {len(ours)} edges (num_depths "
                f"{content['num_depths']}), found {len(rows)} of {sorted({len(row) for row in rows})}."
            )
    for row in operations:
        if any(not 0 <= value < len(content["ops"]) for value in row):
            raise ConfigurationError(f"arch_code_c holds operations 0 to {len(content['ops']) - 1}; found {list(row)}.")
    order = [theirs.index(edge) for edge in ours]
    code = ArchitectureCode(
        tuple(tuple(row[e] for e in order) for row in active),
        tuple(tuple(names.index(content["ops"][row[e]]) for e in order) for row in operations),
    )
    return CodeFile(code, content["use_downsample"], content["spatial_dims"], content.get("meta"))


def _read_reference(path: Path) -> dict[str, Any]:
    """The dict in a file of the reference, read by torch's restricted unpickler: arrays and numbers, no code."""
    import pickle

    from nnunet_ext.weights.checkpoints import load_data  # torch, which only these files need

    try:
        content = load_data(path)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"the file holds more than arrays and numbers, or is damaged; it was not opened. "
            f"({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"the file is damaged ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigurationError("a reference file holds a dict with arch_code_a and arch_code_c.")
    return content


def _from_reference(content: Mapping[str, Any]) -> CodeFile:
    """Both key sets that are in use; the stored node activation is not needed, it follows from the edges."""

    def rows(*names: str) -> Any:
        for name in names:
            if name in content:
                values = content[name]
                return values.tolist() if hasattr(values, "tolist") else values
        raise ConfigurationError(f"it has none of {', '.join(names)}; its keys are {', '.join(map(str, content))}.")

    code = ArchitectureCode.of(rows("arch_code_a", "code_a"), rows("arch_code_c", "code_c"))
    return CodeFile(code, meta={"source": "reference implementation"})


def code_settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings for `nnunet_ext plan` that an architecture file stands for."""
    file = read_code(path)
    return {**file.code.settings(), "use_downsample": file.use_downsample}


def code_of(arch_kwargs: Mapping[str, Any]) -> ArchitectureCode:
    """The code in a network's arch_kwargs, for images of its dimensions; the published one where they have none.

    Raises:
        ConfigurationError: a code that is not valid.
    """
    active, operations = arch_kwargs.get("arch_code_a"), arch_kwargs.get("arch_code_c")
    published = active is None and operations is None
    code = CVPR_CODE if published else ArchitectureCode.of(active, operations)
    strides = level_strides(arch_kwargs["strides"], code.depth, True)
    return code.for_dimensions(len(strides[0]))
