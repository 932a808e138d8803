"""Architecture codes: one searched topology with its operations, checked. `code_file.py` has their files.

A code says for each of the L layers which of the E edges are active (0/1) and which operation each edge has (an index
into `search_space.OPERATIONS`; given for inactive edges too). Operations are meant in nnU-Net's axes, [z, y, x]. The
paper and the reference implementation (MONAI) index volumes [x, y, z], so that two pseudo-3D operations exchange their
roles when a code of theirs is read.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ext.dints.search_space import (
    OPERATIONS,
    Structure,
    depth_of,
    level_strides,
    level_widths,
    mirrored,
    receivers,
    scales_of,
    senders,
)
from nnunet_ext.errors import ConfigurationError

# The paper's model with sigma 0.8 as its authors published it, axes x, y, z: one number a layer, edge 0 the most
# significant bit; one digit an edge.
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
        return cls(rows_of("arch_code_a", active), rows_of("arch_code_c", operations))

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

    def with_axes_reversed(self) -> "ArchitectureCode":
        """The same network for images whose three axes come in the opposite order."""
        exchanged = mirrored(3)
        return ArchitectureCode(self.active, tuple(tuple(exchanged[o] for o in row) for row in self.operations))

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
).with_axes_reversed()


def rows_of(name: str, values: Any) -> tuple[tuple[int, ...], ...]:
    """Layers of whole numbers from nested sequences.

    Raises:
        ConfigurationError: with `name` for what `values` are, if they are anything else.
    """
    problem = f"{name} must be a list of layers, each a list of whole numbers"
    if not isinstance(values, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in values):
        raise ConfigurationError(f"{problem}, found {str(values)[:80]!r}.")
    for row in values:
        for value in row:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or value != int(value):
                raise ConfigurationError(f"{problem}, found {str(value)[:80]!r}.")
    return tuple(tuple(int(value) for value in row) for row in values)


def _lists(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(row) for row in rows]


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
