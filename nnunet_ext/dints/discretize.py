"""From logits to the most probable feasible code (DiNTS, section 3.3.3, equation 4), exactly and in milliseconds.

A layer's pattern and the next one fit if the nodes at which the first arrives are those from which the second leaves.
So the best path needs to remember only which nodes are active: dynamic programming over the 2^D - 1 node sets, where a
layer is reduced to its cheapest pattern for each pair of node sets that a pattern joins (125 pairs for D = 4).

The most probable code need not meet the memory budget to which the search drove the expectation over edges that are
undecided. So the code can be decoded within the budget, by remembering the memory that was used beside the nodes.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nnunet_ext.dints.architecture_code import ArchitectureCode
from nnunet_ext.dints.search_space import depth_of, patterns, receivers, senders

Array = np.ndarray

BUDGET_TOLERANCE = 0.05  # between the memory ratio of a code and its budget, from which on a search warns
_CLOSE = 0.01  # to the budget, within which the most probable code is taken
_BINS = 500  # of the memory of all edges


@dataclass(frozen=True)
class _Pairs:
    """Patterns sorted by the pair (nodes that send, nodes that receive) which they join."""

    patterns: Array  # [M, E] of 0 and 1
    order: Array  # [M], pattern indices sorted by pair
    starts: Array  # [P], where each pair begins in `order`
    senders: Array  # [P], bit masks
    receivers: Array  # [P]


@lru_cache
def _pairs(depth: int) -> _Pairs:
    rows = patterns(depth)
    sends = np.array([senders(depth, row) for row in rows])
    receives = np.array([receivers(depth, row) for row in rows])
    key = sends * 2**depth + receives
    order = np.argsort(key, kind="stable")
    _, starts = np.unique(key[order], return_index=True)
    firsts = order[starts]
    return _Pairs(np.array(rows, np.uint8), order, starts, sends[firsts], receives[firsts])


@dataclass(frozen=True)
class Decoded:
    """The best feasible architecture.

    Attributes:
        code: edges and operations.
        pattern_indices: one per layer.
        cost: -log of its probability, the sum of -log eta.
        gap: G of section 4.4.2, the edges in which it differs from each layer's most probable pattern.
    """

    code: ArchitectureCode
    pattern_indices: tuple[int, ...]
    cost: float
    gap: int


def pattern_costs(logits_a: Array, floor: float = 0.0) -> Array:
    """-log eta `[L, M]` of the edges' logits `[L, E]`, in float64.

    With a `floor`, the reference implementation's cost instead: -log(eta + floor) + 1e-3.
    """
    logits_a = np.asarray(logits_a, np.float64)
    scores = logits_a @ _pairs(depth_of(logits_a.shape[1])).patterns.T
    scores -= scores.max(1, keepdims=True)
    costs = np.log(np.exp(scores).sum(1, keepdims=True)) - scores
    return costs if floor == 0 else 1e-3 - np.log(np.exp(-costs) + floor)


def best_path(costs: Array, depth: int) -> tuple[list[int], float]:
    """The feasible pattern index of each layer with the smallest sum of `costs [L, M]`, and that sum."""
    pairs = _pairs(depth)
    infinite = np.inf
    value = np.where(np.arange(2**depth) > 0, 0.0, infinite)  # of each set of active nodes before the layer
    chosen = []  # by layer, the pair with which each set of nodes after it is reached best
    for row in costs:
        through = value[pairs.senders] + np.minimum.reduceat(row[pairs.order], pairs.starts)
        ranks = np.argsort(through, kind="stable")[::-1]  # the best comes last and overwrites the others
        pair_of = np.zeros(2**depth, int)
        pair_of[pairs.receivers[ranks]] = ranks
        value = np.full(2**depth, infinite)
        value[pairs.receivers[ranks]] = through[ranks]
        chosen.append(pair_of)
    nodes = int(value.argmin())
    total, path = float(value[nodes]), []
    ends = np.append(pairs.starts[1:], len(pairs.order))
    for row, pair_of in zip(costs[::-1], reversed(chosen), strict=True):
        pair = pair_of[nodes]
        members = pairs.order[pairs.starts[pair] : ends[pair]]
        path.append(int(members[row[members].argmin()]))
        nodes = int(pairs.senders[pair])
    return path[::-1], total


def decode(logits_a: Array, logits_c: Array, floor: float = 0.0) -> Decoded:
    """The most probable feasible code of logits `[L, E]` and `[L, E, N]`; each edge has its likeliest operation."""
    costs = pattern_costs(logits_a, floor)
    path, _ = best_path(costs, depth_of(np.shape(logits_a)[1]))
    return _decoded(path, costs, logits_c)


def decode_in_budget(logits_a: Array, logits_c: Array, memory: Array, sigma: float) -> Decoded:
    """The most probable feasible code that meets the memory budget, within 0.02 where there is such a code.

    Where there is none, as in spaces of few layers, it is the code with the ratio next to `sigma`.

    Args:
        logits_a, logits_c: `[L, E]` and `[L, E, N]`.
        memory: `[E, N]`, of an edge with an operation, any unit (`memory_budget.edge_memory`).
        sigma: budget, a share of the memory of all edges with their likeliest operations.
    """
    costs = pattern_costs(logits_a)
    depth = depth_of(np.shape(logits_a)[1])
    likeliest = np.asarray(logits_c).argmax(2)
    by_edge = np.take_along_axis(np.broadcast_to(memory, np.shape(logits_c)), likeliest[..., None], 2)[..., 0]
    shares = (by_edge / by_edge.sum()) @ _pairs(depth).patterns.T  # [L, M], of the memory of all edges
    layers = np.arange(len(costs))
    path, _ = best_path(costs, depth)
    if abs(shares[layers, path].sum() - sigma) > _CLOSE:
        path = _path_in_budget(costs, np.rint(shares * _BINS).astype(int), depth, sigma)
    return _decoded(path, costs, logits_c)


def _path_in_budget(costs: Array, memory: Array, depth: int, sigma: float) -> list[int]:
    """The cheapest path with a sum of `memory [L, M]`, in bins, of `sigma * _BINS`: knapsack beside `best_path`.

    The state is the set of active nodes and the bins that were used. Bins of the layers are rounded each.
    """
    table = _pairs(depth).patterns
    sends, receives = (np.array([mask(depth, row) for row in table]) for mask in (senders, receivers))
    most, bins = int(memory.max()), np.arange(_BINS + 1 + len(memory))
    value = np.full((2**depth, most + len(bins)), np.inf)  # columns before `most` stay empty: less than nothing
    value[1:, most] = 0.0
    chosen = []
    for cost, used in zip(costs, memory, strict=True):
        after, best = np.full_like(value, np.inf), np.zeros((2**depth, len(bins)), np.int32)
        for nodes in range(1, 2**depth):
            ks = np.flatnonzero(receives == nodes)
            through = value[sends[ks][:, None], bins + most - used[ks][:, None]] + cost[ks][:, None]
            rows = through.argmin(0)
            best[nodes] = ks[rows]
            after[nodes, most:] = through[rows, bins]
        value = after
        chosen.append(best)
    ends = value[:, most:].min(0)
    off = np.abs(bins - sigma * _BINS)
    near = off <= max(_CLOSE * _BINS, off[np.isfinite(ends)].min())
    at = int(np.where(near, ends, np.inf).argmin())
    nodes, path = int(value[:, most + at].argmin()), []
    for best, used in zip(chosen[::-1], memory[::-1], strict=True):
        path.append(int(best[nodes, at]))
        nodes, at = int(sends[path[-1]]), at - int(used[path[-1]])
    return path[::-1]


def _decoded(path: list[int], costs: Array, logits_c: Array) -> Decoded:
    layers = np.arange(len(path))
    table = _pairs(depth_of(np.shape(logits_c)[1])).patterns
    active, likeliest = table[path], table[costs.argmin(1)]
    code = ArchitectureCode.of(active.tolist(), np.asarray(logits_c).argmax(2).tolist())
    cost, gap = float(costs[layers, path].sum()), int((active != likeliest).sum())
    return Decoded(code, tuple(path), cost, gap)
