"""What an E2ENet of given options holds and costs, by arithmetic alone: no torch, so that the command line is quick.

The same figures as `nnunet_ext.costs.complexity.complexity_report` measures on the network itself.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ext.planning.patches import padded_size, total_strides, voxels_by_level

GIGA = 1e9


@dataclass(frozen=True)
class Layer:
    """A convolution: channels, kernel, level of its output and (transposed: also of its input), active kernels."""

    part: str  # backbone, up, fusion, head
    in_channels: int
    out_channels: int
    taps: int
    level: int
    active: int
    bias: bool

    @property
    def kernels(self) -> int:
        """All kernels, active or not."""
        return self.in_channels * self.out_channels


def active_kernels(kernels: int, density: float) -> int:
    """round(kernels * density), at least 1, without the binary noise of 1 - sparsity (0.19999999999999996)."""
    return max(1, round(kernels * round(density, 9)))


def layers(
    input_channels: int,
    num_classes: int,
    *,
    strides: Sequence[Sequence[int]],
    features_per_stage: Sequence[int] | None = None,
    base_features: int = 48,
    max_features: int = 320,
    sparsity: float | None = 0.8,
    density_overrides: Mapping[str, float] | None = None,
    kernel_size: Sequence[int] = (1, 3, 3),
    **_: Any,
) -> Iterator[Layer]:
    """All convolutions of the network with these arch_kwargs (see `E2ENet`)."""
    levels = len(strides)
    widths = features_per_stage or [min(base_features * 2**level, max_features) for level in range(levels)]
    taps = math.prod(kernel_size)
    overrides = {str(channels): density for channels, density in (density_overrides or {}).items()}

    def active(c_in: int, c_out: int, fusion: bool) -> int:
        if sparsity is None:
            return c_in * c_out
        density = overrides.get(str(c_out), 1 - sparsity) if fusion else 1 - sparsity
        return active_kernels(c_in * c_out, density)

    for level, (c_in, c_out) in enumerate(zip([input_channels, *widths], widths, strict=False)):
        for channels in (c_in, c_out):
            yield Layer("backbone", channels, c_out, taps, level, channels * c_out, True)
    for stage in range(1, levels):
        for level in range(levels - stage):
            last, width = level + stage == levels - 1, widths[level]
            node_taps = taps if last or 1 in kernel_size else 9
            below = widths[level + 1]
            yield Layer("up", below, width, math.prod(strides[level + 1]), level, active(below, width, False), False)
            c_in = 2 * width + (widths[level - 1] if level else 0)
            for channels in [c_in, width] if last else [c_in]:
                yield Layer("fusion", channels, width, node_taps, level, active(channels, width, True), True)
    for level in range(levels - 2):
        yield Layer("head", widths[level], num_classes, 1, level, widths[level] * num_classes, False)


def cost_report(
    input_channels: int, num_classes: int, patch_size: Sequence[int], arch_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Parameters, GMACs and GFLOPs (1e9) at the patch (voxels), in both conventions; see `complexity_report`."""
    strides = arch_kwargs["strides"]
    voxels = voxels_by_level(padded_size(patch_size, total_strides(strides)[-1]), strides)
    total = active = 0
    true = paper = 0.0
    for layer in layers(input_channels, num_classes, **arch_kwargs):
        # Every block has a bias and an affine InstanceNorm.
        own = 3 * layer.out_channels if layer.bias else 0
        total += layer.kernels * layer.taps + own
        active += layer.active * layer.taps + own
        counted_bias = layer.out_channels if layer.part == "fusion" else 0
        paper += (2 * layer.taps * layer.active + counted_bias) * voxels[layer.level]
        if layer.part != "head" or layer.level == 0:
            taps = 1 if layer.part == "up" else layer.taps
            true += 2 * taps * layer.active * voxels[layer.level]
    return {
        "network": "nnunet_ext.e2enet.network.E2ENet",
        "input_channels": int(input_channels),
        "patch_size": [int(p) for p in patch_size],
        "parameters": {"total": total, "trainable": total, "active": active},
        "true": {"gmacs": true / 2 / GIGA, "gflops": true / GIGA},
        "paper": {"gmacs": paper / 2 / GIGA, "gflops": paper / GIGA},
    }
