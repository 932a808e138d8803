"""What a DiNTS network holds, costs and keeps, by arithmetic alone: no torch, so that the command line is quick.

Two memory figures, not to be confused. `Part.kept` counts the feature-map elements that our networks keep for the
backward pass; planning reads it. `edge_memory` is the search's budget model, as the reference implementation has it;
only its ratios mean anything.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ext.dints.architecture_code import CVPR_CODE, ArchitectureCode
from nnunet_ext.dints.options import DiNTSOptions, search_patch
from nnunet_ext.dints.search_space import OPERATIONS, Structure, edges, level_strides, search_structure
from nnunet_ext.planning.options import PLANS_KEY

GIGA = 1e9


@dataclass(frozen=True)
class Part:
    """A piece of the network: its name, its parameters, multiply-adds and kept elements for one image."""

    name: str  # stem, cell, up, final
    parameters: int
    macs: int = 0
    kept: int = 0


def parts(structure: Structure, input_channels: int, num_classes: int, patch_size: Sequence[int]) -> Iterator[Part]:
    """All pieces of the network with what they cost for one image of `patch_size` (voxels)."""
    voxels = structure.voxels(patch_size)
    yield from _stems(structure, input_channels, voxels)
    yield from _cells(structure, voxels)
    yield from _head(structure, num_classes, voxels)


def _conv(c_in: int, c_out: int, taps: int) -> int:
    return c_in * c_out * taps


def _stems(structure: Structure, channels: int, voxels: Sequence[int]) -> Iterator[Part]:
    taps = 3**structure.dimensions
    for scale in structure.stems:
        width, here = structure.widths[scale], voxels[scale]
        weights = _conv(channels, width, taps)
        # The image, resized to this level, and the convolution's output.
        parameters, macs, kept = weights + 2 * width, weights * here, (channels + width) * here
        if structure.use_downsample:
            wider, below = structure.widths[scale + 1], voxels[scale + 1]
            weights = _conv(width, wider, taps)
            parameters, macs = parameters + weights + 2 * wider, macs + weights * below
            kept += width * here + wider * below
        yield Part("stem", parameters, macs, kept)


def _cells(structure: Structure, voxels: Sequence[int]) -> Iterator[Part]:
    rectified = set()  # nodes whose ReLU is kept, once for all edges that read it
    for (layer, edge), operations in structure.cells.items():
        source, target = edges(structure.depth)[edge]
        c_in, c_out = structure.width(source), structure.width(target)
        here, kind = voxels[structure.level(target)], structure.kind(edge)
        parameters = kept = weights = 0
        if kind != "same":
            weights = _conv(c_in, c_out, 1)
            parameters += 2 * c_out
            kept += c_out + (c_in if kind == "up" else 0)  # the convolution's output; the ReLU after upsampling
        kernels = OPERATIONS[structure.dimensions]
        convolutions = [kernels[name] for name in operations if kernels[name]]
        for taps in convolutions:
            weights += sum(_conv(c_out, c_out, math.prod(kernel)) for kernel in taps)
            parameters += 2 * c_out
            kept += len(taps) * c_out
        if convolutions and kind != "same":
            kept += c_out  # the ReLU that the cell's operations share
        extra = 0
        if (kind == "down" or (kind == "same" and convolutions)) and (layer, source) not in rectified:
            rectified.add((layer, source))
            extra = c_in * voxels[structure.level(source)]
        yield Part("cell", parameters + weights, weights * here, kept * here + extra)


def _head(structure: Structure, num_classes: int, voxels: Sequence[int]) -> Iterator[Part]:
    taps = 3**structure.dimensions
    for scale in structure.ups:
        level = structure.level(scale)
        c_in = structure.width(scale)
        c_out = structure.widths[scale if structure.use_downsample else max(scale - 1, 0)]
        weights = _conv(c_in, c_out, taps)
        runs = scale <= structure.outputs[-1]
        yield Part("up", weights + 2 * c_out, weights * voxels[level] * runs, (c_in + c_out) * voxels[level] * runs)
    width = structure.widths[0]
    weights, last = _conv(width, width, taps), width * num_classes
    yield Part("final", weights + 2 * width + last + num_classes, (weights + last) * voxels[0], 3 * width * voxels[0])


def edge_memory(structure: Structure, patch_size: Sequence[int], batch_size: int = 1) -> list[list[float]]:
    """Bytes `[E][N]` that an edge with an operation is charged in the search's budget, in fp32.

    Units of the edge's output: 1 for itself; up 2 C_in / C_out + 2, down (voxels of a step) C_in / C_out + 3;
    skip 0, convolution 3, pseudo-3D 4. The size of the output is F_r per voxel of level r, halved with
    `use_downsample` (the reference's rule, twice the true size in 3D; only ratios matter).
    """
    table = []
    for edge, (source, target) in enumerate(edges(structure.depth)):
        ratio = structure.width(source) / structure.width(target)
        kind = structure.kind(edge)
        before = {"same": 0.0, "up": 2 * ratio + 2, "down": math.prod(structure.step(edge)) * ratio + 3}[kind]
        steps = structure.total_stride(target)
        voxels = math.prod(p // f for p, f in zip(patch_size, steps, strict=True))
        size = 4 * batch_size * structure.widths[target] * voxels / 2**structure.use_downsample
        kernels = OPERATIONS[structure.dimensions].values()
        table.append([size * (1 + before + (len(k) + 2 if k else 0)) for k in kernels])
    return table


def memory_ratio(code: ArchitectureCode, structure: Structure, patch_size: Sequence[int]) -> float:
    """The budget's share that a code uses: its active edges over all edges, both with the code's operations."""
    table = edge_memory(structure, patch_size)
    used = full = 0.0
    for active, operations in zip(code.active, code.operations, strict=True):
        for on, operation, costs in zip(active, operations, table, strict=True):
            full += costs[operation]
            used += costs[operation] * on
    return used / full


def instance_structure(arch_kwargs: Mapping[str, Any]) -> Structure:
    """The discrete network's structure from its arch_kwargs."""
    known = {"base_features": 32, "features_per_stage": None, "use_downsample": True, "keep_unused": False}
    chosen = {key: arch_kwargs.get(key, default) for key, default in known.items()}
    return code_of(arch_kwargs).structure(arch_kwargs["strides"], **chosen)


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


def cost_report(
    input_channels: int, num_classes: int, patch_size: Sequence[int], arch_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Parameters, GMACs and GFLOPs (1e9) of the discrete network; see `costs.complexity.complexity_report`."""
    structure = instance_structure(arch_kwargs)
    return _report("DiNTSNet", list(parts(structure, input_channels, num_classes, patch_size)), 0,
                   input_channels, patch_size)  # fmt: skip


def search_cost_report(
    input_channels: int, num_classes: int, patch_size: Sequence[int], arch_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The same of the supernet, whose logits are parameters too."""
    known = {
        "num_layers": 12, "num_depths": 4, "base_features": 16, "features_per_stage": None, "use_downsample": True,
    }  # fmt: skip
    chosen = {key: arch_kwargs.get(key, default) for key, default in known.items()}
    structure = search_structure(arch_kwargs["strides"], **chosen)
    logits = len(structure.cells) * (1 + len(OPERATIONS[structure.dimensions]))
    return _report("DiNTSSearchNet", list(parts(structure, input_channels, num_classes, patch_size)), logits,
                   input_channels, patch_size)  # fmt: skip


def _report(name: str, pieces: list[Part], logits: int, channels: int, patch_size: Sequence[int]) -> dict[str, Any]:
    trainable = sum(piece.parameters for piece in pieces)
    macs = sum(piece.macs for piece in pieces) / GIGA
    return {
        "network": f"nnunet_ext.dints.network.{name}",
        "input_channels": int(channels),
        "patch_size": [int(p) for p in patch_size],
        "parameters": {"total": trainable + logits, "trainable": trainable, "active": trainable + logits},
        "true": {"gmacs": macs, "gflops": 2 * macs},
        # The paper's table 1 counts one FLOP for a multiply-add.
        "paper": {"gmacs": macs, "gflops": macs},
    }


def further_cost_reports(
    input_channels: int, num_classes: int, configuration: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What `nnunet_ext info` says besides: the supernet that the configuration's options describe, at its own patch."""
    options = DiNTSOptions.from_plans(configuration.get(PLANS_KEY))
    arch_kwargs = configuration["architecture"]["arch_kwargs"]
    strides = arch_kwargs["strides"]
    planned = {
        "strides": strides,
        "num_layers": options.search_layers,
        "num_depths": options.search_depths,
        "base_features": options.search_base_features,
        "use_downsample": arch_kwargs.get("use_downsample", True),
    }
    patch = search_patch(options, configuration["patch_size"], strides)
    return {"search's supernet": search_cost_report(input_channels, num_classes, patch, planned)}
