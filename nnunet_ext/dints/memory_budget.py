"""The search's budget model of memory, as the reference implementation has it; only its ratios mean anything.

What a network really keeps is `compute_conv_feature_map_size`.
"""

import math
from collections.abc import Sequence

from nnunet_ext.dints.architecture_code import ArchitectureCode
from nnunet_ext.dints.search_space import OPERATIONS, Structure, edges


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
