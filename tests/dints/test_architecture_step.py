"""A step of the architecture is one of Adam on equation 11, written out here: no trainer, no nnU-Net."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from dints.equation_11 import equation_11
from dints.small import CUBES

from nnunet_ext.dints.architecture_step import ArchitectureOptimizer
from nnunet_ext.dints.memory_budget import memory_ratio
from nnunet_ext.dints.network import DiNTSSearchNet
from nnunet_ext.dints.options import DiNTSSearchOptions
from nnunet_ext.dints.relaxation import REFERENCE_FLOOR
from nnunet_ext.dints.snapshot import Snapshot, row_text

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


@pytest.mark.parametrize("ramp", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("floor", [0.0, REFERENCE_FLOOR, 0.1])
def test_one_step_is_that_of_adam_on_equation_11(ramp, floor):
    options = DiNTSSearchOptions.from_plans({
        "architecture_lr": 0.05, "sigma": 0.3, "topology_weight": 0.02, "loss_floor": floor,
    })  # fmt: skip
    network = supernet()
    data, target = batch()
    architecture = ArchitectureOptimizer(network, PATCH, options)
    # Gradients of the first step, in float64 where no feature map is concerned.
    a, c = (p.detach().clone().requires_grad_() for p in architecture.logits)
    total = equation_11(
        network, a, c, data, target, F.cross_entropy, patch=PATCH, ramp=ramp, sigma=0.3, weight=0.02, floor=floor
    )
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
        ArchitectureOptimizer(network, PATCH, DiNTSSearchOptions.from_plans({"loss_floor": floor}))
        for floor in (0.0, 1e-3)
    )
    relaxed = network.relaxed()
    assert float(floored.regularisers(relaxed).topology) < 0.9 * float(exact.regularisers(relaxed).topology)


def test_the_segmentation_loss_falls_along_steps_without_regularisers():
    network, (data, target) = supernet(), batch()
    architecture = ArchitectureOptimizer(network, PATCH, DiNTSSearchOptions.from_plans({"architecture_lr": 0.02}))
    losses = []
    for _ in range(8):
        with torch.no_grad():
            losses.append(float(F.cross_entropy(network(data), target)))
        architecture.step(data, target, F.cross_entropy, 0.0)
    assert losses[-1] < losses[0] - 1e-3


def test_a_step_that_fails_leaves_the_logits_without_gradients():
    network, (data, target) = supernet(), batch()
    architecture = ArchitectureOptimizer(network, PATCH, DiNTSSearchOptions())

    def broken(*_):
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        architecture.step(data, target, broken, 1.0)
    assert not any(p.requires_grad for p in architecture.logits)


def test_the_state_goes_on_where_it_was():
    options = DiNTSSearchOptions.from_plans({"architecture_lr": 0.05})
    data, target = batch()
    one = ArchitectureOptimizer(supernet(), PATCH, options)
    one.step(data, target, F.cross_entropy, 0.5)
    other = ArchitectureOptimizer(copy.deepcopy(one.supernet), PATCH, options)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for architecture in (one, other):
        architecture.step(data, target, F.cross_entropy, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(one.logits, other.logits, strict=True))
    assert one.state_dict()["architecture_scaler"] is None


def test_trying_a_step_changes_nothing():
    network, (data, target) = supernet(), batch()
    architecture = ArchitectureOptimizer(network, PATCH, DiNTSSearchOptions())
    before = copy.deepcopy((network.state_dict(), architecture.state_dict()))
    gradients = architecture.gradients(data, target, F.cross_entropy, 0.5)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    after = (network.state_dict(), architecture.state_dict())
    assert before[1] == after[1] and all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert all(p.grad is None for p in network.parameters())


LEARNED = "p3d_3x1x3"


def test_operations_that_say_nothing_lose_against_those_that_do():
    """One operation has learned to find bright voxels, the others' convolutions are zero, and there is the skip.

    The segmentation loss alone decides, and falls on data that nothing has seen.
    """
    torch.manual_seed(2)
    network = DiNTSSearchNet(1, 2, strides=CUBES, num_layers=2, num_depths=2, base_features=4)
    names = list(network.cells["0_0"].names)
    others = {name for name, _ in network.named_parameters() if ".operations." in name and LEARNED not in name}
    weights = [p for name, p in network.named_parameters() if p.requires_grad and name not in others]
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name in others and ".convs." in name:
                p.zero_()

    def bright(seed):
        data = F.avg_pool3d(batch(seed)[0], 3, 1, 1)
        return data, (data[:, 0] > 0.1).long()

    def loss():
        with torch.no_grad():
            return sum(float(F.cross_entropy(network(data), target)) for data, target in map(bright, range(200, 206)))

    sgd = torch.optim.SGD(weights, 0.05, momentum=0.9)
    for seed in range(40):
        sgd.zero_grad()
        data, target = bright(seed)
        F.cross_entropy(network(data), target).backward()
        sgd.step()
    before = loss()
    architecture = ArchitectureOptimizer(network, PATCH, DiNTSSearchOptions.from_plans({"architecture_lr": 0.1}))
    for seed in range(40, 80):
        architecture.step(*bright(seed), F.cross_entropy, 0.0)
    share = dict(zip(names, network.relaxed().log_alpha.exp().mean((0, 1)).tolist(), strict=True))
    silent = max(share[name] for name in names if name not in (names[0], LEARNED))
    assert silent < 0.8 * min(share[names[0]], share[LEARNED])
    assert loss() < before - 0.01


# what a search has found


def test_a_snapshot_tells_its_code_and_losses():
    network = supernet()
    architecture = ArchitectureOptimizer(network, PATCH, DiNTSSearchOptions.from_plans({"sigma": 0.3}))
    snapshot = Snapshot.of(architecture, PATCH)
    row = snapshot.row(0.3, 7)
    assert (row["iterations"], row["sigma"]) == (7, 0.3)
    active = [[int(bit) for bit in f"{edges:04b}"] for edges in row["edges"]]
    assert active == [list(layer) for layer in snapshot.found.code.active]
    assert row["active_edges"] == sum(map(sum, active))
    terms = architecture.regularisers(network.relaxed())
    found = [row["L_alpha"], row["L_eta"], row["L_tp"], row["memory_ratio"]]
    assert found == [float(term) for term in (terms.alpha, terms.eta, terms.topology, terms.memory_ratio)]
    for key, decoded in (("code", snapshot.found), ("likeliest", snapshot.likeliest)):
        assert row[f"memory_ratio_of_{key}"] == memory_ratio(decoded.code, network.structure, PATCH)
    assert row["G"] == snapshot.likeliest.gap
    assert row_text(row).endswith(f"(budget 0.3), G {row['G']}")
    assert f"of the code {row['memory_ratio_of_code']:.4f}" in row_text(row)
    file = snapshot.code_file({"seed": 3}, PATCH, math.nan)
    assert (file.meta["seed"], file.meta["patch_size"]) == (3, list(PATCH))
    assert file.meta["dice_of_supernet"] is None
    assert file.meta["memory_ratio_of_code"] == row["memory_ratio_of_code"]
    assert file.code == snapshot.found.code


@pytest.mark.parametrize("in_budget", [True, False])
def test_a_code_that_misses_its_budget_is_warned_of(in_budget):
    network = DiNTSSearchNet(1, 2, strides=CUBES, num_layers=6, num_depths=3, base_features=2)
    with torch.no_grad():
        network.log_alpha_a.fill_(0.1)  # edges are undecided, and together likelier than any less of them
    options = DiNTSSearchOptions.from_plans({"sigma": 0.5, "decode_within_budget": in_budget})
    snapshot = Snapshot.of(ArchitectureOptimizer(network, PATCH, options), PATCH)
    assert float(snapshot.terms.memory_ratio) == pytest.approx(0.52, abs=0.03)
    assert snapshot.likeliest_ratio == 1.0
    if in_budget:
        assert snapshot.ratio == pytest.approx(0.5, abs=0.02)
        assert snapshot.warning(0.5) is None
    else:
        assert snapshot.ratio == 1.0
        assert "uses 1.000 of the memory" in snapshot.warning(0.5)
