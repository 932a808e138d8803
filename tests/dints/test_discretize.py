"""The exact discretization: against an exact shortest path over the whole graph, and how long it takes."""

import statistics
import time
import tracemalloc

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from nnunet_ext.dints.discretize import best_path, decode, pattern_costs
from nnunet_ext.dints.relaxation import REFERENCE_FLOOR
from nnunet_ext.dints.search_space import edges, patterns, receivers, senders


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


@pytest.mark.parametrize(("depth", "seconds"), [(4, 0.020), (5, 0.200)])
def test_it_takes_milliseconds_and_little_memory(depth, seconds):
    logits, operations = random_logits(depth, 12, seed=2), np.zeros((12, 3 * depth - 2, 5))
    decode(logits, operations)  # makes the tables
    times = []
    for _ in range(9):
        start = time.perf_counter()
        decode(logits, operations)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < seconds
    tracemalloc.start()
    decode(logits, operations)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * 2**20
