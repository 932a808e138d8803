"""The exact discretization: against an exact shortest path over the whole graph, and how long it takes."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from dints.small import CUBES
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from nnunet_ext.dints.discretize import best_path, decode, decode_in_budget, pattern_costs
from nnunet_ext.dints.memory_budget import edge_memory, memory_ratio
from nnunet_ext.dints.relaxation import REFERENCE_FLOOR
from nnunet_ext.dints.search_space import edges, patterns, receivers, search_structure, senders


def shortest_path(costs, depth):
    """The cost of the cheapest path through a graph with one node per layer and pattern (paper, figure 5)."""
    layers, count = costs.shape
    arrive, leave = (np.array([mask(depth, row) for row in patterns(depth)]) for mask in (receivers, senders))
    before, after = np.nonzero(arrive[:, None] == leave[None, :])
    source, sink = layers * count, layers * count + 1
    starts, ends = [np.full(count, source)], [np.arange(count)]
    weights = [costs[0]]
    for layer in range(1, layers):
        starts.append((layer - 1) * count + before)
        ends.append(layer * count + after)
        weights.append(costs[layer][after])
    starts.append((layers - 1) * count + np.arange(count))
    ends.append(np.full(count, sink))
    weights.append(np.full(count, 1.0))  # scipy takes a weight of zero for no edge
    graph = csr_matrix(
        (np.concatenate(weights), (np.concatenate(starts), np.concatenate(ends))), shape=(sink + 1, sink + 1)
    )
    return dijkstra(graph, indices=source)[sink] - 1.0


def random_logits(depth, layers, seed):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.1, 6)
    return scale * rng.normal(size=(layers, len(edges(depth))))


@pytest.mark.parametrize("seed", range(100))
def test_no_path_is_cheaper(seed):
    depth, layers = (2, 3)[seed % 2], 1 + seed % 12
    costs = pattern_costs(random_logits(depth, layers, seed))
    path, total = best_path(costs, depth)
    assert total == pytest.approx(shortest_path(costs, depth), rel=1e-12)
    assert sum(row[k] for row, k in zip(costs, path, strict=True)) == pytest.approx(total, rel=1e-12)


def test_no_path_is_cheaper_with_four_scales():
    costs = pattern_costs(random_logits(4, 3, seed=5))
    assert best_path(costs, 4)[1] == pytest.approx(shortest_path(costs, 4), rel=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_the_code_is_feasible_and_the_gap_counts_what_it_changed(depth):
    logits = random_logits(depth, 12, seed=depth)
    found = decode(logits, np.zeros((12, len(edges(depth)), 5)))  # an infeasible code would be refused
    likeliest = np.array(patterns(depth))[pattern_costs(logits).argmin(1)]
    assert found.gap == np.abs(likeliest - np.array(found.code.active)).sum()


def test_a_feasible_argmax_is_kept():
    logits = np.full((5, 10), 3.0)
    found = decode(logits, np.zeros((5, 10, 5)))
    assert (found.gap, found.code.num_edges) == (0, 50)


def test_the_floor_changes_the_costs_as_in_the_reference():
    logits = random_logits(4, 12, seed=1)
    exact, floored = pattern_costs(logits), pattern_costs(logits, REFERENCE_FLOOR)
    np.testing.assert_allclose(floored, 1e-3 - np.log(np.exp(-exact) + 1e-5), rtol=1e-12)


def test_extreme_logits_decode():
    for value in (-50.0, 50.0, -500.0):
        assert np.isfinite(decode(np.full((12, 10), value), np.zeros((12, 10, 5))).cost)


@pytest.mark.parametrize("depth", [4, 5])
def test_it_takes_little_time_and_memory(depth):
    """Time of this process, which other load does not add to; milliseconds are measured in the benchmark."""
    logits, operations = random_logits(depth, 12, seed=2), np.zeros((12, 3 * depth - 2, 5))
    table = np.ones((3 * depth - 2, 5))
    decode(logits, operations)  # makes the tables
    start = time.process_time()
    decode(logits, operations)
    assert time.process_time() - start < 1
    tracemalloc.start()
    decode(logits, operations)
    decode_in_budget(logits, operations, table, 0.2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * 2**20


# within the memory budget


def space(depth, layers):
    """Structure and memory of each edge and operation."""
    structure = search_structure(
        CUBES, num_layers=layers, num_depths=depth, base_features=16, features_per_stage=None, use_downsample=True
    )
    return structure, np.array(edge_memory(structure, [96, 96, 96]))


@pytest.mark.parametrize("sigma", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_code_meets_its_budget(sigma, scale, seed):
    """From undecided logits, as a short search leaves them, to such as are beyond doubt."""
    structure, table = space(4, 12)
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(12, 10)), rng.normal(size=(12, 10, 5))
    found = decode_in_budget(*logits, table, sigma)
    assert memory_ratio(found.code, structure, [96, 96, 96]) == pytest.approx(sigma, abs=0.025)
    assert found.cost >= decode(*logits).cost - 1e-9


def test_the_code_is_the_most_probable_one_of_its_budget():
    """Against all feasible codes of two layers."""
    structure, table = space(2, 2)
    rows = patterns(2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(2, 4)), rng.normal(size=(2, 4, 5))
        costs, operations = pattern_costs(logits[0]), logits[1].argmax(2)
        by_edge = np.take_along_axis(np.broadcast_to(table, (2, 4, 5)), operations[..., None], 2)[..., 0]
        shares = (by_edge / by_edge.sum()) @ np.array(rows).T
        pairs = [(i, j) for i, j in itertools.product(range(15), repeat=2)
                 if receivers(2, rows[i]) == senders(2, rows[j])]  # fmt: skip
        for sigma in (0.3, 0.6):
            found = decode_in_budget(*logits, table, sigma)
            i, j = found.pattern_indices
            ratio = shares[0, i] + shares[1, j]
            near = min(abs(shares[0, a] + shares[1, b] - sigma) for a, b in pairs)
            assert abs(ratio - sigma) <= max(near, 0.01) + 0.004  # two roundings to bins of 1 / 500
            better = [(a, b) for a, b in pairs if costs[0, a] + costs[1, b] < found.cost - 1e-9
                      and abs(shares[0, a] + shares[1, b] - sigma) < max(near, 0.01) - 0.004]  # fmt: skip
            assert better == []


def test_the_most_probable_code_stays_where_it_meets_the_budget():
    structure, table = space(4, 12)
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(12, 10)), rng.normal(size=(12, 10, 5))
    free = decode(*logits)
    ratio = memory_ratio(free.code, structure, [96, 96, 96])
    assert decode_in_budget(*logits, table, ratio + 0.009) == free
    assert decode_in_budget(*logits, table, ratio + 0.2) != free


def test_budgets_at_the_ends():
    structure, table = space(4, 6)
    logits = np.zeros((6, 10)), np.zeros((6, 10, 5))
    assert decode_in_budget(*logits, table, 0.0).code.num_edges == 6
    full = decode_in_budget(*logits, table, 1.0).code
    assert memory_ratio(full, structure, [96, 96, 96]) > 0.98
