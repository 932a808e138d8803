"""The moving masks: what holds after each of thousands of steps, and what a kill or a second rank may not change.

The small network makes 5,000 steps; E2ENet itself 300 under the same statements, and 5,000 on request.
"""

import copy
import io
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from contract.on_request import thorough
from e2enet.small import (
    SmallE2ENet,
    SmallE2ENetInBlocks,
    SmallNetwork,
    SmallNetworkInBlocks,
    active_in,
    build,
    by_candidate,
    equal,
    held_by,
    loss_at,
    masks_of,
    sgd,
    tensors,
    train,
    train_one_rank,
)
from torch import nn

from nnunet_ext.costs.complexity import complexity_report
from nnunet_ext.e2enet.masked import MaskedConv3d, masked_modules
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.shared_inputs import SharedInputConv3d
from nnunet_ext.e2enet.topology import DynamicTopology, direction_shares, exchange

# thousands of steps


@dataclass
class Update:
    """One pool of one layer at one update: all kernels of a layer, or the inputs of a block of outputs."""

    step: int
    layer: str
    before: torch.Tensor
    norms: torch.Tensor  # just before the update
    after: torch.Tensor
    weight: torch.Tensor  # just after the update
    momentum: torch.Tensor

    @property
    def dropped(self):
        return self.before & ~self.after

    @property
    def grown(self):
        return self.after & ~self.before


@dataclass
class Diary:
    """What was seen in a training; each list of "leaks" should be empty."""

    steps: int
    every: int
    counts: list = field(default_factory=list)  # one dict of what is active in each pool a step
    moves: list = field(default_factory=list)  # steps at which a mask changed
    weight_leaks: list = field(default_factory=list)
    bad_indices: list = field(default_factory=list)
    bad_sizes: list = field(default_factory=list)
    moved_slots: list = field(default_factory=list)  # whose content was not dropped
    updates: list = field(default_factory=list)
    first_steps: list = field(default_factory=list)  # of what regrew: whether it had a gradient, and moved


def write_diary(kind, steps, every):
    network = build(kind)
    optimizer = sgd(network)
    diary = Diary(steps, every)
    layers = dict(masked_modules(network))
    shapes = {name: layer.values.shape for name, layer in layers.items()}
    before = {}
    seen = {name: active_in(layer) for name, layer in layers.items()}
    grown = {}

    def remember(*_):  # registered before the topology's own hook, so it sees the slots before an update
        for name, layer in layers.items():
            before[name] = held_by(layer), active_in(layer), by_candidate(layer, layer.values).flatten(2).abs().sum(2)

    def check_step(step):
        diary.counts.append({name: active_in(layer).sum(1).tolist() for name, layer in layers.items()})
        for name, layer in layers.items():
            momentum = optimizer.state[layer.values]["momentum_buffer"]
            held, active = held_by(layer), active_in(layer)
            if layer.dense_weight()[~layer.kernel_mask].count_nonzero():
                diary.weight_leaks.append((step, name))
            if not (active.sum(1) == held.shape[1]).all() or not 0 <= held.min() <= held.max() < layer.candidates:
                diary.bad_indices.append((step, name))
            if not layer.values.shape == layer.values.grad.shape == momentum.shape == shapes[name]:
                diary.bad_sizes.append((step, name))
            if name in grown:
                new = grown.pop(name)
                tensors = (by_candidate(layer, v)[new].flatten(1).any(1) for v in (layer.values.grad, layer.values))
                diary.first_steps.append(tuple(tensors))
            if not torch.equal(active, seen[name]):
                if not diary.moves or diary.moves[-1] != step:
                    diary.moves.append(step)
                old, *others = before[name]
                weight, momentum = by_candidate(layer, layer.values), by_candidate(layer, momentum)
                pools = zip(*others, active, weight, momentum, strict=True)
                updates = [Update(step, name, *pool) for pool in pools]
                diary.updates += updates
                for update, was, holds in zip(updates, old, held, strict=True):
                    stayed = ~update.dropped[was]
                    if not torch.equal(was[stayed], holds[stayed]):
                        diary.moved_slots.append((step, name))
                grown[name] = torch.stack([update.grown for update in updates])
                seen[name] = active

    optimizer.register_step_post_hook(remember)
    DynamicTopology(network, optimizer, total_steps=steps, update_every=every)
    train(network, optimizer, steps, after_step=check_step)
    assert all(p.isfinite().all() for p in network.parameters())
    diary.layers = layers
    return diary


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((SmallNetwork, 5000, 50), id="small network, 5000 steps"),
        pytest.param((SmallNetworkInBlocks, 5000, 50), id="small network in blocks, 5000 steps"),
        pytest.param((SmallE2ENet, 300, 10), id="E2ENet, 300 steps"),
        pytest.param((SmallE2ENetInBlocks, 300, 10), id="E2ENet in blocks, 300 steps"),
        pytest.param((SmallE2ENet, 5000, 50), id="E2ENet, 5000 steps", marks=[pytest.mark.slow, thorough]),
    ],
)
def diary(request):
    return write_diary(*request.param)


def test_the_number_of_active_kernels_of_each_layer_never_changes(diary):
    assert len(diary.counts) == diary.steps
    assert all(count == diary.counts[0] for count in diary.counts)


def test_inactive_weights_are_exactly_zero_after_every_step(diary):
    assert diary.weight_leaks == []


def test_no_two_slots_ever_hold_the_same_kernel_and_all_hold_one_that_there_is(diary):
    assert diary.bad_indices == []


def test_weights_gradients_and_momentum_exist_of_active_kernels_only(diary):
    assert diary.bad_sizes == []


def test_a_kernel_that_is_not_dropped_keeps_its_slot(diary):
    """Else averages over the training would be of changing kernels."""
    assert diary.moved_slots == []


def count_at(diary, step, name):
    """Of each pool of a layer: r(t) of what is active, of single kernels rounded up, of a block's inputs rounded."""
    rate = 0.001 + 0.499 * (1 + math.cos(math.pi * step / diary.steps)) / 2
    active, candidates = diary.counts[0][name][0], diary.layers[name].candidates
    whole = round if hasattr(diary.layers[name], "inputs") else math.ceil
    return min(whole(rate * active), candidates - active)


def test_masks_move_at_the_multiples_of_update_every_and_at_no_other_step(diary):
    steps = range(diary.every, diary.steps + 1, diary.every)
    assert diary.moves == [step for step in steps if any(count_at(diary, step, name) for name in diary.layers)]
    assert len(diary.moves) > len(steps) / 2


def test_every_layer_and_every_block_moves_at_every_update_that_exchanges_any_of_it(diary):
    expected = [(step, name) for step in diary.moves for name in diary.layers if count_at(diary, step, name)]
    pools = [(step, name) for step, name in expected for _ in diary.counts[0][name]]
    assert [(update.step, update.layer) for update in diary.updates] == pools


def test_the_share_r_of_what_is_active_is_dropped_and_as_many_grow(diary):
    for update in diary.updates:
        count = count_at(diary, update.step, update.layer)
        assert int(update.dropped.sum()) == int(update.grown.sum()) == count > 0


def test_dropped_kernels_are_those_with_the_smallest_l1_norm(diary):
    for update in diary.updates:
        kept = update.before & update.after
        assert update.norms[update.dropped].max() <= update.norms[kept].min()


def test_regrown_kernels_were_inactive_before_the_drop(diary):
    for update in diary.updates:
        assert not (update.after & update.before & update.dropped).any()
        assert torch.equal(update.after, (update.before & ~update.dropped) | update.grown)
        assert not update.norms[update.grown].any()


def test_regrown_kernels_start_at_zero(diary):
    assert all(not update.weight[update.grown].any() for update in diary.updates)


def test_regrown_kernels_start_without_momentum(diary):
    assert all(not update.momentum[update.grown].any() for update in diary.updates)


def test_regrown_kernels_learn_from_the_next_step_on(diary):
    """Where they have a gradient: in a small network some join channels that nothing flows through."""
    assert all(torch.equal(had_gradient, moved) for had_gradient, moved in diary.first_steps)
    updates = {(update.step, update.layer) for update in diary.updates if update.step < diary.steps}
    assert len(diary.first_steps) == len(updates)  # none follows the last
    assert sum(int(moved.sum()) for _, moved in diary.first_steps) > 100


# the drop rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [(1200, 0.499972), (62_400, 0.427145), (124_800, 0.251127), (187_200, 0.074743), (249_600, 0.001003)],
)
def test_drop_rates_of_the_papers_schedule(step, rate):
    network = build()
    topology = DynamicTopology(network, sgd(network), total_steps=250_000)
    assert topology.rate(step) == pytest.approx(rate, abs=5e-7)


def test_the_drop_rate_ends_at_its_last_value_and_stays_there():
    network = build()
    topology = DynamicTopology(network, sgd(network), total_steps=100, drop_rate=0.4, final_drop_rate=0.1)
    assert topology.rate(0) == pytest.approx(0.4)
    assert topology.rate(100) == topology.rate(150) == pytest.approx(0.1)


# one update


def exchanged(index, norms, kernels, rate, seed=0):
    slots, grown = exchange(index, norms, kernels, rate, torch.Generator().manual_seed(seed))
    return slots.tolist(), grown.tolist()


def test_an_update_worked_by_hand():
    """Of six active kernels ceil(.3 * 6) = 2 are dropped, the weakest, and the only two that were inactive grow."""
    index = torch.tensor([7, 0, 1, 6, 3, 4])
    norms = torch.tensor([6.0, 5.0, 1.0, 3.0, 4.0, 2.0])
    slots, grown = exchanged(index, norms, 8, 0.3)
    assert slots == [2, 5] and sorted(grown) == [2, 5]


@pytest.mark.parametrize(
    ("active", "kernels", "rate", "count"),
    [(10, 40, 0.25, 3), (10, 40, 0.2, 2), (10, 40, 0.0, 0), (10, 40, 1.0, 10), (10, 12, 0.5, 2), (10, 10, 0.5, 0)],
)
def test_how_many_are_dropped(active, kernels, rate, count):
    """ceil(rate * active), at most as many as are inactive."""
    slots, grown = exchanged(torch.arange(active), torch.arange(active).flip(0).float(), kernels, rate)
    assert len(set(slots)) == len(set(grown)) == len(slots) == len(grown) == count
    assert all(active <= kernel < kernels for kernel in grown)


def test_of_equal_norms_exactly_the_asked_number_of_the_lowest_kernels_is_dropped():
    index = torch.tensor([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    slots, _ = exchanged(index, torch.ones(10), 20, 0.35)
    assert index[slots].tolist() == [0, 1, 2, 3]


def test_the_index_given_to_an_update_is_left_as_it_was():
    index = torch.arange(10)
    exchanged(index, torch.ones(10), 20, 0.5)
    assert torch.equal(index, torch.arange(10))


def test_growth_is_uniform_over_the_inactive_kernels():
    """Over 2000 draws of 5 from 20 no kernel is off by 5 sigma."""
    counts = torch.zeros(30)
    for seed in range(2000):
        counts[exchanged(torch.arange(10), torch.ones(10), 30, 0.5, seed)[1]] += 1
    assert not counts[:10].any()
    assert (counts[10:] - 500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


# seeds


def trained(steps=20, seed=0, kind=SmallNetwork, **kwargs):
    network = build(kind)
    optimizer = sgd(network)
    topology = DynamicTopology(network, optimizer, **{"total_steps": 40, "update_every": 2, "seed": seed, **kwargs})
    train(network, optimizer, steps)
    return network, optimizer, topology


both_forms = pytest.mark.parametrize("kind", [SmallNetwork, SmallNetworkInBlocks])


@both_forms
def test_one_seed_repeats_bit_for_bit(kind):
    assert equal(tensors(trained(seed=5, kind=kind)[0]), tensors(trained(seed=5, kind=kind)[0]))


@both_forms
def test_two_seeds_grow_different_kernels(kind):
    assert not equal(masks_of(trained(seed=5, kind=kind)[0]), masks_of(trained(seed=6, kind=kind)[0]))


def test_growth_does_not_depend_on_or_disturb_the_global_random_numbers():
    network = build()
    optimizer = sgd(network)
    DynamicTopology(network, optimizer, total_steps=40, update_every=2)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    train(network, optimizer, 20)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(tensors(network), tensors(trained()[0]))


def test_growth_differs_between_layers_and_between_updates():
    """Two equal layers with equal masks and norms part at the first update; one layer never repeats its draw."""
    network = nn.Sequential(*(MaskedConv3d(6, 6, (1, 1, 1), density=10 / 36) for _ in range(2)))
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    DynamicTopology(network, optimizer, total_steps=100, update_every=1)
    draws = []
    for _ in range(3):
        for _, module in masked_modules(network):  # back to where the layer began
            module.set_kernels(torch.ones(module.dense_shape), torch.arange(36).view(6, 6) < 10)
        network(torch.ones(1, 6, 1, 1, 1)).sum().backward()
        optimizer.step()
        draws += [tuple(module.kernel_mask.flatten().tolist()) for _, module in masked_modules(network)]
    assert len(set(draws)) == len(draws) == 6


def test_growth_differs_between_blocks():
    """Two blocks that hold the same inputs with the same norms part at the first update."""
    layer = SharedInputConv3d(40, 4, (1, 1, 1), density=0.5, connection_block=2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.0)
    DynamicTopology(layer, optimizer, total_steps=100, update_every=1)
    layer(torch.ones(1, 40, 1, 1, 1)).sum().backward()
    optimizer.step()
    assert not torch.equal(*active_in(layer))


# steps that do not count


def test_a_step_that_the_grad_scaler_skips_moves_nothing():
    network, optimizer, topology = trained(steps=3, update_every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def scaled_step(factor):
        optimizer.zero_grad()
        scaler.scale(loss_at(network, 3) * factor).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()

    before = copy.deepcopy((tensors(network), optimizer.state_dict(), topology.summary()))
    scaled_step(math.inf)
    assert scaler.get_scale() == 2.0, "the scaler did not skip the step"
    assert equal(tensors(network), before[0])
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[k]["momentum_buffer"], v["momentum_buffer"]) for k, v in before[1]["state"].items())
    assert topology.summary() == before[2]
    scaled_step(1)
    assert (topology.steps, topology.updates) == (4, 4)
    assert not equal(tensors(network), before[0])


def test_frozen_masks_stay_while_active_weights_train():
    network = build()
    before = tensors(network)
    optimizer = sgd(network)
    topology = DynamicTopology(network, optimizer, total_steps=40, update_every=2, dynamic=False)
    train(network, optimizer, 20)
    for name, module in masked_modules(network):
        assert torch.equal(module.index, before[f"{name}.index"])
        assert (module.values.detach() != before[f"{name}.values"]).flatten(1).any(1).all()
    assert topology.summary()["updates"] == topology.summary()["drop_rate"] == 0
    assert topology.summary()["steps"] == 20


def test_gradients_are_those_of_the_active_kernels_of_dense_convolutions():
    """So that clipping sees the same norm, inactive kernels left out."""
    network, dense = build(), build()
    for name, module in list(masked_modules(dense)):
        kind = nn.ConvTranspose3d if isinstance(module, nn.ConvTranspose3d) else nn.Conv3d
        sizes = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
        plain = kind(*sizes, bias=module.bias is not None)
        plain.weight.data.copy_(module.dense_weight().detach())
        plain.bias = module.bias
        dense.layers[int(name.split(".")[1])] = plain
    loss_at(network, 0).backward()
    loss_at(dense, 0).backward()
    squares = inactive = 0.0
    for name, module in masked_modules(network):
        gradient = dense.get_submodule(name).weight.grad
        assert torch.equal(module.values.grad, gradient.flatten(0, 1)[module.index])
        inactive += gradient[~module.kernel_mask].square().sum()
    squares = sum(p.grad.square().sum() for p in dense.parameters())
    assert inactive > 0.1 * squares
    found = nn.utils.clip_grad_norm_(network.parameters(), math.inf)
    torch.testing.assert_close(found, (squares - inactive).sqrt())


@both_forms
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop])
def test_regrown_kernels_start_without_the_moments_of_other_optimizers_too(optimizer, kind):
    network = build(kind)
    optimizer = optimizer(network.parameters(), 1e-3)
    before = {}
    optimizer.register_step_post_hook(
        lambda *_: before.update({name: active_in(m) for name, m in masked_modules(network)})
    )
    topology = DynamicTopology(network, optimizer, total_steps=40, update_every=2)
    train(network, optimizer, 20)
    assert topology.updates == 10
    for name, module in masked_modules(network):
        grown, kept = (active_in(module) & other for other in (~before[name], before[name]))
        states = [v for v in optimizer.state[module.values].values() if v.shape == module.values.shape]
        assert states and grown.any()
        assert not any(by_candidate(module, v)[grown].any() for v in (module.values, *states))
        assert all(by_candidate(module, v)[kept].any() for v in states)


# checkpoints


@both_forms
def test_a_training_continued_from_a_checkpoint_is_the_training_that_never_stopped(kind):
    whole = trained(steps=25, kind=kind)
    network, optimizer, topology = trained(steps=13, kind=kind)
    file = io.BytesIO()
    torch.save((network.state_dict(), optimizer.state_dict(), topology.state()), file)
    file.seek(0)
    weights, momentum, clock = torch.load(file)

    network = build(kind, seed=8)
    optimizer = sgd(network)
    topology = DynamicTopology(network, optimizer, total_steps=40, update_every=2)
    network.load_state_dict(weights)
    optimizer.load_state_dict(momentum)
    topology.load_state(clock)
    train(network, optimizer, 12, start=13)

    assert equal(tensors(network), tensors(whole[0]))
    for mine, others in zip(optimizer.state.values(), whole[1].state.values(), strict=True):
        assert torch.equal(mine["momentum_buffer"], others["momentum_buffer"])
    assert topology.summary() == whole[2].summary()
    assert equal(topology.ever_active, whole[2].ever_active)


def test_a_state_once_taken_does_not_change_with_further_steps():
    network, optimizer, topology = trained(steps=3)
    state = topology.state()
    kept = copy.deepcopy(state)
    train(network, optimizer, 10, start=3)
    assert topology.state()["steps"] == 13
    assert state["steps"] == kept["steps"] == 3
    assert equal(state["ever_active"], kept["ever_active"])


@both_forms
def test_ever_active_is_the_union_of_all_masks_seen(kind):
    network = build(kind)
    optimizer = sgd(network)
    topology = DynamicTopology(network, optimizer, total_steps=40, update_every=2)
    union = masks_of(network)

    def collect(_):
        for name, mask in masks_of(network).items():
            union[name] |= mask

    train(network, optimizer, 20, after_step=collect)
    assert equal(topology.ever_active, union)
    kernels = sum(mask.numel() for mask in union.values())
    assert topology.summary()["ever_active"] == sum(int(mask.sum()) for mask in union.values()) / kernels
    assert topology.summary()["active_kernels"] == sum(int(mask.sum()) for mask in masks_of(network).values())


@pytest.mark.parametrize("kind", [SmallE2ENet, SmallE2ENetInBlocks])
def test_the_complexity_report_of_a_training_network_works_and_changes_nothing(kind):
    network, optimizer, _ = trained(steps=3, kind=kind)
    before = tensors(network)
    report = complexity_report(network, 1, (2, 8, 8))
    inactive = sum(int((~m.kernel_mask).sum()) * math.prod(m.dense_shape[2:]) for _, m in masked_modules(network))
    assert report["parameters"]["total"] - report["parameters"]["active"] == inactive > 0
    assert equal(tensors(network), before)
    train(network, optimizer, 2, start=3)
    assert report == complexity_report(network, 1, (2, 8, 8))


# several ranks


@pytest.mark.parametrize("kind", [SmallE2ENet, SmallE2ENetInBlocks])
def test_masks_are_equal_on_two_ranks_that_see_different_data(kind):
    """DDP's own broadcast of buffers is off: the ranks agree because they compute the same."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train_one_rank, (folder, kind), nprocs=2)
        first, second = (torch.load(Path(folder, f"rank{rank}")) for rank in range(2))
    assert first["random"] != second["random"]
    assert first["losses"] != second["losses"]
    assert not equal(first["start"], first["masks"])
    assert equal(first["masks"], second["masks"])
    assert equal(first["weights"], second["weights"])
    assert first["summary"] == second["summary"]
    assert first["summary"]["updates"] == 5


# torch.compile


def compiled_and_plain(backend, kind=SmallE2ENet):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    results = []
    for compiled in (True, False):
        network = build(kind)
        optimizer = sgd(network)
        DynamicTopology(network, optimizer, total_steps=40, update_every=2)
        forward = torch.compile(network, backend=backend, fullgraph=True) if compiled else network
        for step in range(5):
            optimizer.zero_grad()
            outputs = forward(network.image(torch.Generator().manual_seed(step)))
            sum(output.sin().mean() for output in outputs).backward()
            optimizer.step()
        results.append(tensors(network))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "moving masks must not compile anew"
    return results


def test_a_captured_network_trains_under_moving_masks_as_the_plain_one():
    compiled, plain = compiled_and_plain("eager")
    assert equal(compiled, plain)


def test_a_captured_network_in_blocks_trains_under_moving_inputs_as_the_plain_one():
    compiled, plain = compiled_and_plain("eager", SmallE2ENetInBlocks)
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)  # convolutions with groups sum in another order


@pytest.mark.slow
def test_a_compiled_network_trains_under_moving_masks_as_the_plain_one():
    compiled, plain = compiled_and_plain("inductor")
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)  # float32 sums in another order


# where the connections come from


@pytest.fixture(scope="module")
def paper_network():
    torch.manual_seed(0)
    return E2ENet(1, 16, strides=[[1, 1, 1]] + [[2, 2, 2]] * 5, sparsity=0.8)


EXPECTED_SHARES = {
    0: (1 / 2, 1 / 2, 0),
    1: (0.4, 0.4, 0.2),
    2: (0.4, 0.4, 0.2),
    3: (320 / 832, 320 / 832, 192 / 832),
    4: (1 / 3, 1 / 3, 1 / 3),
}


def test_shares_of_directions_at_initialisation_are_those_of_their_channels(paper_network):
    """Within 3 sigma of a draw without replacement."""
    shares = direction_shares(paper_network)
    assert list(shares) == [f"{stage},{level}" for stage in range(1, 6) for level in range(6 - stage)]
    for node, share in shares.items():
        stage, level = map(int, node.split(","))
        mask = paper_network.fusion[stage - 1][level].convs[0].conv.kernel_mask
        drawn = int(mask.sum())
        for name, expected in zip(("forward", "up", "down"), EXPECTED_SHARES[level], strict=True):
            sigma = (expected * (1 - expected) / drawn * (1 - drawn / mask.numel())) ** 0.5
            assert abs(share[name] - expected) <= 3 * sigma, f"{node} {name}"
        assert sum(share.values()) == pytest.approx(1)


def test_shares_of_the_dense_network_are_exactly_those_of_its_channels():
    network = E2ENet(1, 16, strides=[[1, 1, 1]] + [[2, 2, 2]] * 5, sparsity=None)
    for node, share in direction_shares(network).items():
        assert tuple(share.values()) == pytest.approx(EXPECTED_SHARES[int(node.split(",")[1])])


def test_shares_count_the_columns_of_the_mask():
    network = E2ENet(1, 2, strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]], features_per_stage=[4, 5, 6], sparsity=0.5)
    conv = network.fusion[0][1].convs[0].conv  # 5 outputs; 5 forward, 5 up, 4 down
    mask = torch.zeros(5, 14, dtype=torch.bool)
    mask[:4, :5] = mask[:2, 5:10] = mask[0, 10:] = mask[1, 10] = True
    conv.set_kernels(conv.dense_weight(), mask)
    assert direction_shares(network)["1,1"] == {"forward": 20 / 35, "up": 10 / 35, "down": 5 / 35}
