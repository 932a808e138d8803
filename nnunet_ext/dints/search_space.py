"""The search space in plain numbers: scales, edges, connection patterns (DiNTS, sections 3.1 to 3.3). No torch.

A layer joins D nodes (scales, 0 = finest) to the D nodes of the next by E = 3D-2 edges: from each scale to the same,
the next coarser and the next finer one. A connection pattern is a non-empty set of a layer's edges; there are
M = 2^E - 1. Edge 0 is the most significant bit of a pattern, and pattern k (from 0) is the binary number k + 1.

Levels count resolutions: level 0 is the image, level l is the image divided by the first l strides after [1, 1, 1].
With `use_downsample` (the paper's setting) node scale r lies at level r + 1, else at level r.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.planning.patches import padded_size, total_strides, voxels_by_level

DEPTHS = range(2, 6)
Kernels = tuple[tuple[int, ...], ...]

# Operation -> kernels of its convolutions, in the order of the indices in architecture codes, by image dimensions.
# Axes are those of nnU-Net's arrays, [z, y, x]; the paper and MONAI index volumes [x, y, z], see `mirrored`.
OPERATIONS: dict[int, dict[str, Kernels]] = {
    2: {"skip": (), "conv_3x3": ((3, 3),)},
    3: {
        "skip": (),
        "conv_3x3x3": ((3, 3, 3),),
        "p3d_3x3x1": ((3, 3, 1), (1, 1, 3)),
        "p3d_3x1x3": ((3, 1, 3), (1, 3, 1)),
        "p3d_1x3x3": ((1, 3, 3), (3, 1, 1)),
    },
}


def mirrored(dimensions: int) -> tuple[int, ...]:
    """Index of each operation -> index of the operation whose kernels have the axes in the opposite order."""
    names = OPERATIONS[dimensions]
    of_kernels = {kernels: index for index, kernels in enumerate(names.values())}
    return tuple(of_kernels[tuple(kernel[::-1] for kernel in kernels)] for kernels in names.values())


@lru_cache
def edges(depth: int) -> tuple[tuple[int, int], ...]:
    """`(scale that sends, scale that receives)` of the E edges of a layer.

    Raises:
        ConfigurationError: a depth outside of 2 to 5.
    """
    if depth not in DEPTHS:
        raise ConfigurationError(f"DiNTS has {DEPTHS.start} to {DEPTHS.stop - 1} scales, found {depth!r}.")
    return tuple(((e + 1) // 3 - 1 + (e + 1) % 3, (e + 1) // 3) for e in range(3 * depth - 2))


def depth_of(num_edges: int) -> int:
    """D of a layer with E edges.

    Raises:
        ConfigurationError: no depth has that many.
    """
    for depth in DEPTHS:
        if 3 * depth - 2 == num_edges:
            return depth
    there = ", ".join(f"{3 * depth - 2} (D={depth})" for depth in DEPTHS)
    raise ConfigurationError(f"A layer of DiNTS with D scales has 3D-2 edges: {there}; found {num_edges}.")


@lru_cache
def patterns(depth: int) -> tuple[tuple[int, ...], ...]:
    """All M connection patterns as 0/1 tuples of length E."""
    count = len(edges(depth))
    return tuple(tuple(k >> (count - 1 - e) & 1 for e in range(count)) for k in range(1, 2**count))


def senders(depth: int, pattern: Sequence[int]) -> int:
    """The scales from which a pattern's edges come, as a bit mask (scale 0 = bit 0)."""
    return _mask(source for (source, _), on in zip(edges(depth), pattern, strict=True) if on)


def receivers(depth: int, pattern: Sequence[int]) -> int:
    """The scales at which a pattern's edges arrive, as a bit mask (scale 0 = bit 0)."""
    return _mask(target for (_, target), on in zip(edges(depth), pattern, strict=True) if on)


def _mask(scales: Iterable[int]) -> int:
    return sum(1 << scale for scale in set(scales))


def scales_of(mask: int) -> tuple[int, ...]:
    """The scales of a bit mask, finest first."""
    return tuple(scale for scale in range(mask.bit_length()) if mask >> scale & 1)


@dataclass(frozen=True)
class Structure:
    """What a network of this space is made of; network and costs are both built from it.

    Attributes:
        strides: one per level, `[1, 1, 1]` first; D + 1 with `use_downsample`, else D.
        widths: F, channels by level, as many as strides.
        cells: (layer, edge) -> names of the operations between which it mixes (one in a discrete network).
        stems, ups: scales whose stem and whose step of the head exist.
        inputs, outputs: scales of the first and of the last nodes that are active.
    """

    strides: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]
    use_downsample: bool
    depth: int
    num_layers: int
    cells: Mapping[tuple[int, int], tuple[str, ...]]
    stems: tuple[int, ...]
    ups: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def dimensions(self) -> int:
        """Of the image: 2 or 3."""
        return len(self.strides[0])

    def level(self, scale: int) -> int:
        """Where the nodes of a scale lie."""
        return scale + self.use_downsample

    def width(self, scale: int) -> int:
        """C, the channels of the nodes of a scale."""
        return self.widths[self.level(scale)]

    def step(self, edge: int) -> tuple[int, ...]:
        """The stride by which an up or down edge changes the resolution; ones for an edge on one scale."""
        source, target = edges(self.depth)[edge]
        return self.strides[self.level(max(source, target))] if source != target else (1,) * self.dimensions

    def kind(self, edge: int) -> str:
        """same, up (to the finer scale) or down."""
        source, target = edges(self.depth)[edge]
        return "same" if source == target else "up" if source > target else "down"

    def total_stride(self, level: int) -> list[int]:
        """Product of the strides down to `level`, per axis."""
        return total_strides(self.strides)[level]

    def padded_size(self, size: Sequence[int]) -> list[int]:
        """`size` (voxels) rounded up to multiples of the total stride.

        Four voxels at least remain at the coarsest level: of a single one InstanceNorm has no variance, and of two it
        leaves nothing but the sign of their difference.
        """
        steps = self.total_stride(-1)
        counts = [padded // step for padded, step in zip(padded_size(size, steps), steps, strict=True)]
        while math.prod(counts) < 4:
            counts[max(axis for axis, count in enumerate(counts) if count == min(counts))] += 1
        return [count * step for count, step in zip(counts, steps, strict=True)]

    def voxels(self, size: Sequence[int]) -> list[int]:
        """Voxels by level for an image of `size`, padding included."""
        return voxels_by_level(self.padded_size(size), self.strides)


def level_strides(strides: Sequence[Sequence[int]], depth: int, use_downsample: bool) -> tuple[tuple[int, ...], ...]:
    """The plan's strides cut to the levels of D scales; a plan with fewer levels has its last stride repeated.

    Raises:
        ConfigurationError: not a plan's strides.
    """
    given = [tuple(int(s) for s in stride) for stride in strides]
    if len({len(stride) for stride in given}) != 1 or len(given[0]) not in OPERATIONS:
        raise ConfigurationError(f"Every stride needs two numbers (2D) or three (3D), found {list(strides)}.")
    if any(s != 1 for s in given[0]) or any(s < 1 for stride in given for s in stride):
        raise ConfigurationError(f"The first stride must be all ones and all must be positive, found {list(strides)}.")
    if len(given) < 2 or any(max(stride) == 1 for stride in given[1:]):
        raise ConfigurationError(
            f"DiNTS needs at least two levels, each coarser than the one before, found strides {list(strides)}."
        )
    levels = depth + use_downsample
    return tuple((given + given[-1:] * levels)[:levels])


def level_widths(widths: Sequence[int] | None, base_features: int, levels: int) -> tuple[int, ...]:
    """F by level: `widths`, or `base_features` doubled from level to level.

    Raises:
        ConfigurationError: not as many positive integers as levels.
    """
    if widths is None:
        widths = [base_features * 2**level for level in range(levels)]
    if len(widths) < levels or any(not isinstance(w, int) or isinstance(w, bool) or w < 1 for w in widths):
        raise ConfigurationError(
            f"features_per_stage must be {levels} positive integers and base_features one, found {list(widths)}."
        )
    if any(w < 2 for w in widths[1:]):  # a down edge makes the two halves of its channels by two convolutions
        raise ConfigurationError(f"features_per_stage must be at least 2 from the second level on, found {widths}.")
    return tuple(widths[:levels])


def search_structure(
    strides: Sequence[Sequence[int]],
    *,
    num_layers: int,
    num_depths: int,
    base_features: int,
    features_per_stage: Sequence[int] | None,
    use_downsample: bool,
) -> Structure:
    """The supernet: every edge, every operation.

    Raises:
        ConfigurationError: what cannot be built, in words.
    """
    count = len(edges(num_depths))
    if not isinstance(num_layers, int) or isinstance(num_layers, bool) or num_layers < 1:
        raise ConfigurationError(f"num_layers must be an integer of at least 1, found {num_layers!r}.")
    used = level_strides(strides, num_depths, use_downsample)
    scales = tuple(range(num_depths))
    mixed = tuple(OPERATIONS[len(used[0])])
    return Structure(
        strides=used,
        widths=level_widths(features_per_stage, base_features, len(used)),
        use_downsample=use_downsample,
        depth=num_depths,
        num_layers=num_layers,
        cells={(layer, edge): mixed for layer in range(num_layers) for edge in range(count)},
        stems=scales,
        ups=scales,
        inputs=scales,
        outputs=scales,
    )
