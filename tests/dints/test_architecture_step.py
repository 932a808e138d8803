"""A step of the architecture is one of Adam on equation 11, written out here: no trainer, no nnU-Net."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from dints.small import CUBES

from nnunet_ext.dints.architecture_step import ArchitectureOptimizer
from nnunet_ext.dints.memory_budget import edge_memory
from nnunet_ext.dints.network import DiNTSSearchNet
from nnunet_ext.dints.options import DiNTSOptions
from nnunet_ext.dints.relaxation import REFERENCE_FLOOR, Relaxed
from nnunet_ext.dints.search_space import patterns, receivers, senders
from nnunet_ext.dints.snapshot import CodeFiles, Snapshot, finite, mean_dice, row_text

PATCH = (16, 16, 16)


def supernet(seed=0):
    torch.manual_seed(seed)
    network = DiNTSSearchNet(1, 2, strides=CUBES, num_layers=2, num_depths=2, base_features=2)
    with torch.no_grad():  # away from the start, where all terms are nearly flat
        network.log_alpha_a.normal_(std=1.0)
        network.log_alpha_c.normal_(std=1.0)
    return network


def batch(seed=1):
    torch.manual_seed(seed)
    return torch.randn(1, 1, *PATCH), torch.randint(0, 2, (1, *PATCH))


def equation_11(network, a, c, data, target, loss, *, ramp, sigma, weight, floor=0.0):
    """The loss by probabilities in float64, pattern by pattern: no logarithm of the implementation is used."""
    a, c = a.double(), c.double()
    table = torch.tensor(patterns(2), dtype=torch.float64)
    p = a.sigmoid()[:, None, :]
    eta = (table * p + (1 - table) * (1 - p)).prod(2)
    eta = eta / eta.sum(1, keepdim=True)  # the empty pattern is none
    edges, alpha = eta @ table, c.softmax(2)

    def entropy(q, floor=0.0):
        return -(q * (q + floor).log()).mean()

    nodes = range(1, 4)
    topology = 0.0
    for layer in range(len(eta) - 1):
        for found in nodes:
            arrives = torch.tensor([float(receivers(2, pattern) == found) for pattern in patterns(2)]).double()
            leaves = torch.tensor([float(senders(2, pattern) == found) for pattern in patterns(2)]).double()
            p_in, p_out = eta[layer] @ arrives, eta[layer + 1] @ leaves
            topology -= p_in * (p_out + floor).log() + (1 - p_in) * (1 - p_out + floor).log()
    memory = torch.tensor(edge_memory(network.structure, PATCH)).double()
    by_edge = (alpha * memory).sum(2)
    ratio = (edges * by_edge).sum() / by_edge.sum()
    relaxed = Relaxed(2, eta.log(), edges, alpha.log())
    segmentation = loss(network(data, relaxed), target)
    terms = entropy(alpha) + entropy(eta, floor) + weight * topology + (ratio - sigma).abs()
    return segmentation + ramp * terms


@pytest.mark.parametrize("ramp", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("floor", [0.0, REFERENCE_FLOOR])
def test_one_step_is_that_of_adam_on_equation_11(ramp, floor):
    options = DiNTSOptions.from_plans({
        "search_architecture_lr": 0.05, "sigma": 0.3, "search_topology_weight": 0.02, "search_loss_floor": floor,
    })  # fmt: skip
    network = supernet()
    data, target = batch()
    architecture = ArchitectureOptimizer(network, PATCH, options)
    # Gradients of the first step, in float64 where no feature map is concerned.
    a, c = (p.detach().clone().requires_grad_() for p in architecture.logits)
    total = equation_11(network, a, c, data, target, F.cross_entropy, ramp=ramp, sigma=0.3, weight=0.02, floor=floor)
    expected = torch.autograd.grad(total, (a, c))
    before = [p.detach().clone() for p in architecture.logits]
    weights = copy.deepcopy([p for p in network.parameters() if p.requires_grad])
    seen = []
    step = architecture.adam.step
    architecture.adam.step = lambda: (seen.extend(p.grad.clone() for p in architecture.logits), step())
    architecture.step(data, target, F.cross_entropy, ramp)
    for found, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=2e-3, atol=2e-6)
    # Adam's first step: the rate along the sign of the gradient.
    for old, new, gradient in zip(before, architecture.logits, seen, strict=True):
        moved = -0.05 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(new.detach() - old, moved, rtol=1e-3, atol=1e-6)
    assert all(
        torch.equal(a, b) for a, b in zip(weights, [p for p in network.parameters() if p.requires_grad], strict=True)
    )
    assert not any(p.requires_grad or p.grad is not None for p in architecture.logits)


def test_the_floor_of_the_reference_is_an_option():
    network = supernet()
    with torch.no_grad():
        network.log_alpha_a.mul_(8)  # probabilities as small as the floor
    exact, floored = (
        ArchitectureOptimizer(network, PATCH, DiNTSOptions.from_plans({"search_loss_floor": floor}))
        for floor in (0.0, 1e-3)
    )
    relaxed = network.relaxed()
    assert float(floored.regularisers(relaxed).topology) < 0.9 * float(exact.regularisers(relaxed).topology)


def test_the_segmentation_loss_falls_along_steps_without_regularisers():
    network, (data, target) = supernet(), batch()
    architecture = ArchitectureOptimizer(network, PATCH, DiNTSOptions.from_plans({"search_architecture_lr": 0.02}))
    losses = []
    for _ in range(8):
        with torch.no_grad():
            losses.append(float(F.cross_entropy(network(data), target)))
        architecture.step(data, target, F.cross_entropy, 0.0)
    assert losses[-1] < losses[0] - 1e-3


def test_a_step_that_fails_leaves_the_logits_without_gradients():
    network, (data, target) = supernet(), batch()
    architecture = ArchitectureOptimizer(network, PATCH, DiNTSOptions())

    def broken(*_):
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        architecture.step(data, target, broken, 1.0)
    assert not any(p.requires_grad for p in architecture.logits)


def test_the_state_goes_on_where_it_was():
    options = DiNTSOptions.from_plans({"search_architecture_lr": 0.05})
    data, target = batch()
    one = ArchitectureOptimizer(supernet(), PATCH, options)
    one.step(data, target, F.cross_entropy, 0.5)
    other = ArchitectureOptimizer(copy.deepcopy(one.supernet), PATCH, options)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for architecture in (one, other):
        architecture.step(data, target, F.cross_entropy, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(one.logits, other.logits, strict=True))
    assert one.state_dict()["architecture_scaler"] is None


# what a search has found


def test_a_snapshot_tells_its_code_and_losses():
    network = supernet()
    architecture = ArchitectureOptimizer(network, PATCH, DiNTSOptions.from_plans({"sigma": 0.3}))
    snapshot = Snapshot.of(architecture)
    row = snapshot.row(0.3, 7, None)
    assert (row["iterations"], row["sigma"], row["discrete_dice"]) == (7, 0.3, None)
    assert (
        row["active_edges"] == snapshot.decoded.code.num_edges == sum(bin(edges).count("1") for edges in row["edges"])
    )
    terms = architecture.regularisers(network.relaxed())
    found = [row["L_alpha"], row["L_eta"], row["L_tp"], row["memory_ratio"]]
    assert found == [float(term) for term in (terms.alpha, terms.eta, terms.topology, terms.memory_ratio)]
    assert row_text(row).endswith(f"(budget 0.3), G {row['G']}")
    assert row_text(snapshot.row(0.3, 7, 0.5)).endswith(", Dice of the discrete net 0.5000")
    file = snapshot.code_file({"seed": 3}, PATCH, {"continuous": 0.5, "discrete": math.nan})
    assert (file.meta["seed"], file.meta["patch_size"]) == (3, list(PATCH))
    assert file.meta["dice"] == {"continuous": 0.5, "discrete": None}
    assert file.code == snapshot.decoded.code


def test_the_best_code_of_each_score_keeps_its_file(tmp_path):
    files = CodeFiles(tmp_path)
    snapshot = Snapshot.of(ArchitectureOptimizer(supernet(), PATCH, DiNTSOptions()))

    def write(number, continuous, discrete, **kwargs):
        scores = {"continuous": continuous, "discrete": discrete}
        files.write(snapshot.code_file({"number": number}, PATCH, scores), scores, **kwargs)

    def number(name):
        return json.loads((tmp_path / name).read_text())["meta"]["number"]

    write(0, 0.2, math.nan)
    assert not (tmp_path / "architecture_best_discrete.json").exists()
    write(1, 0.5, 0.1)
    write(2, 0.4, 0.3)
    write(3, 0.9, 0.2, write=False)
    assert files.best == {"continuous": 0.9, "discrete": 0.3}
    names = ("architecture.json", "architecture_best_continuous.json", "architecture_best_discrete.json")
    assert [number(name) for name in names] == [2, 1, 2]


def test_the_mean_dice_leaves_out_classes_that_are_nowhere():
    counts = torch.tensor([[4.0, 0.0, 0.0], [2.0, 3.0, 0.0], [2.0, 1.0, 0.0]]).numpy()
    assert mean_dice(*counts) == pytest.approx((8 / 12 + 0) / 2)
    assert math.isnan(mean_dice(*(counts * 0)))
    assert (finite(0.5), finite(math.nan), finite(None)) == (0.5, None, None)
