"""Probabilities and losses against the paper's formulas, written out naively in float64."""

import itertools

import numpy as np
import pytest
import torch

from nnunet_ext.dints.relaxation import entropy, regularisers, relax, tables, topology_loss
from nnunet_ext.dints.search_space import edges, patterns, receivers, senders


def logits(depth, layers=4, scale=2.0, seed=0, operations=5):
    rng = torch.Generator().manual_seed(seed)
    count = len(edges(depth))
    return scale * torch.randn(layers, count, generator=rng), torch.randn(layers, count, operations, generator=rng)


def eta_by_equation_2(a, depth):
    p = 1 / (1 + np.exp(-a.double().numpy()))
    rows = np.array([[np.prod([q if on else 1 - q for q, on in zip(layer, cp, strict=True)])
                      for cp in patterns(depth)] for layer in p])  # fmt: skip
    return rows / rows.sum(1, keepdims=True)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_eta_is_equation_2(depth):
    a, c = logits(depth)
    expected = eta_by_equation_2(a, depth)
    found = relax(a, c)
    np.testing.assert_allclose(found.log_eta.exp().numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(found.edges.numpy(), expected @ np.array(patterns(depth)), rtol=1e-10)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_topology_loss_is_equation_7(depth):
    a, c = logits(depth)
    eta = eta_by_equation_2(a, depth)
    arrive, leave = (np.array([mask(depth, cp) for cp in patterns(depth)]) for mask in (receivers, senders))
    loss = 0.0
    for layer, nodes in itertools.product(range(len(a) - 1), range(1, 2**depth)):
        p_in, p_out = eta[layer, arrive == nodes].sum(), eta[layer + 1, leave == nodes].sum()
        loss -= p_in * np.log(p_out) + (1 - p_in) * np.log(1 - p_out)
    assert float(topology_loss(relax(a, c))) == pytest.approx(loss, rel=1e-10)


def test_both_factors_of_the_topology_loss_have_gradients():
    a, c = logits(3, layers=2)
    a.requires_grad_()
    topology_loss(relax(a, c)).backward()
    assert (a.grad[0] != 0).all() and (a.grad[1] != 0).all()


@pytest.mark.parametrize("depth", [2, 4, 5])
@pytest.mark.parametrize("pattern", ["low", "high", "mixed"])
def test_all_is_finite_and_exact_at_logits_of_50(depth, pattern):
    """The naive normalisation divides by zero where all edges are improbable; one edge is then the answer."""
    a, c = logits(depth, layers=2)
    sign = {"low": -torch.ones_like(a), "high": torch.ones_like(a), "mixed": a.sign()}[pattern]
    a, c = (50 * sign).requires_grad_(), (50 * c.sign()).requires_grad_()
    relaxed = relax(a, c)
    torch.testing.assert_close(relaxed.log_eta.logsumexp(1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    count = len(edges(depth))
    expected = {"low": 1 / count, "high": 1.0}.get(pattern)
    if expected:
        torch.testing.assert_close(
            relaxed.edges, torch.full((2, count), expected, dtype=torch.float64), rtol=1e-12, atol=0
        )
    losses = regularisers(relaxed, torch.ones(count, 5), sigma=0.5)
    values = torch.stack([losses.alpha, losses.eta, losses.topology, losses.memory])
    assert values.isfinite().all()
    losses.total(1.0, 0.001).backward()
    assert a.grad.isfinite().all() and c.grad.isfinite().all()


def test_autocast_does_not_reach_the_probabilities():
    a, c = logits(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = relax(a, c)
    outside = relax(a, c)
    assert torch.equal(inside.log_eta, outside.log_eta)
    assert torch.equal(inside.weights, outside.weights) and inside.weights.dtype == torch.float32


def test_gradients_are_those_of_finite_differences():
    a, c = (x.double().requires_grad_() for x in logits(2, layers=3, operations=2))
    table = torch.tensor([[1.0, 3.0], [2.0, 5.0], [4.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, c: regularisers(relax(a, c), table, sigma=0.1).total(0.7, 0.01), (a, c), eps=1e-6, atol=1e-7
    )


def test_entropy_is_largest_where_all_is_equal_and_zero_where_all_is_decided():
    assert float(entropy(torch.full((3, 5), 0.2).log())) == pytest.approx(np.log(5) / 5)
    assert float(entropy(torch.tensor([[0.0, -200.0]]))) == 0


def test_tables_made_during_a_prediction_serve_a_training():
    tables.cache_clear()
    a, c = logits(2)
    with torch.inference_mode():
        relax(a, c)
    a.requires_grad_()
    topology_loss(relax(a, c)).backward()
    assert a.grad.isfinite().all()
