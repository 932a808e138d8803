"""One decision a slice: whichever way it is mirrored, with its neighbours, above a threshold that was calibrated."""

import pytest
import torch
from med_danet.small import TINY_BANK, arch_kwargs

from nnunet_ext.med_danet.evidence import safe_threshold
from nnunet_ext.med_danet.network import MedDANet
from nnunet_ext.med_danet.routing import choices_of, lowest_nearby, mean_of_mirrored, mirrored

FLIPS = [(), (-2,), (-1,), (-2, -1)]


def network_that_varies(strides=((1, 1, 1), (2, 2, 2))):
    """A decision network that says other things of slices and of their flips."""
    torch.manual_seed(0)
    network = MedDANet(1, 3, **arch_kwargs([list(stride) for stride in strides], TINY_BANK)).eval()
    with torch.no_grad():
        for module in network.decision.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.normal_(0, 0.3)
        network.decision.classify.weight.normal_(0, 1)
    network.decision_trained.fill_(True)
    return network


def counting(network):
    seen = []
    network.decision.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def test_shares_are_the_mean_over_the_flips_one_by_one():
    network, x = network_that_varies(), torch.randn(2, 1, 3, 16, 24)
    with torch.no_grad():
        slices = network.fold(x)
        views = [network.decision(slices.flip(flip) if flip else slices).softmax(1) for flip in FLIPS]
        assert not torch.allclose(views[0], views[1], atol=1e-3)
        found = network.shares(x)
        assert found.shape == (2, 3, 5)
        torch.testing.assert_close(found.flatten(0, 1), sum(views) / 4)
        network.mirror_axes.copy_(torch.tensor([False, True]))
        torch.testing.assert_close(network.shares(x).flatten(0, 1), (views[0] + views[2]) / 2)
        network.mirror_axes.fill_(False)
        torch.testing.assert_close(network.shares(x).flatten(0, 1), views[0])


def test_the_mean_of_flipped_views_is_equal_to_the_last_bit():
    shares = torch.rand(4 * 5, 3)
    by_view = shares.unflatten(0, (4, 5))
    for order in ([1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]):  # what flips make of the views
        assert torch.equal(mean_of_mirrored(by_view[order].flatten(0, 1), 5), mean_of_mirrored(shares, 5))
    slices = torch.randn(5, 1, 4, 6)
    views = mirrored(slices, (-2, -1)).unflatten(0, (4, 5))
    assert all(
        torch.equal(view, slices.flip(flip) if flip else slices) for view, flip in zip(views, FLIPS, strict=True)
    )


def test_mirrored_passes_of_an_image_get_one_decision_made_once():
    network, x = network_that_varies(), torch.randn(1, 1, 4, 16, 16)
    seen = counting(network)
    network.record = []
    with torch.no_grad():
        for flip in FLIPS:
            network(x.flip(flip) if flip else x)
    assert seen == [16]
    assert network.record == [network.record[0]] * 4


def test_a_decision_is_made_anew_for_another_image_and_by_other_rules():
    network, x = network_that_varies(), torch.randn(1, 1, 4, 16, 16)
    seen = counting(network)
    with torch.no_grad():
        network(x)
        network(x.transpose(3, 4).contiguous())
        network(x)
        x[0, 0, 0, 0, 0] += 1  # in place: what was decided for the old values is not theirs
        network(x)
        network.skip_threshold.fill_(0.9)
        network(x)
        next(network.decision.parameters()).data.mul_(2)
        network(x)
        network.mirror_axes.copy_(torch.tensor([True, False]))
        network(x)
        assert seen == [16] * 6 + [8]
        network(x.flip(-2))
        assert seen == [16] * 6 + [8]
        network(x.flip(-1))  # is not among the views any more
    assert seen == [16] * 6 + [8] * 2
    assert network._latest.choices == network.choices(x.flip(-1))


def test_a_decision_waits_for_the_card_twice_and_once_where_it_is_there_already(monkeypatch):
    network, x = network_that_varies(), torch.randn(1, 1, 4, 16, 16)
    waits = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, plain=plain, name=name: (waits.append(name), plain(t))[1])
    monkeypatch.setattr(torch, "equal", None)
    with torch.no_grad():
        network.decided(x)
        assert waits == ["tolist", "tolist"]
        network.decided(x.flip(-1))
    assert waits == ["tolist"] * 3


def test_half_precision_and_float_images_do_not_share_a_decision():
    network, x = network_that_varies().double(), torch.randn(1, 1, 2, 16, 16, dtype=torch.double)
    seen = counting(network)
    with torch.no_grad():
        network(x)
        network.float()(x.float())
    assert seen == [8, 8]


def test_a_slice_is_skipped_above_the_threshold_only():
    shares = torch.tensor([[[0.6, 0.1, 0.3], [0.5, 0.4, 0.1], [0.2, 0.3, 0.5]]])
    assert choices_of(shares, 0.5, 0).tolist() == [[0, 1, 2]]
    assert choices_of(shares, torch.tensor(0.6), 0).tolist() == [[2, 1, 2]]


def test_neighbours_must_be_above_the_threshold_too():
    skip = torch.tensor([[0.9, 0.9, 0.9, 0.1, 0.9, 0.9], [0.9, 0.2, 0.9, 0.9, 0.9, 0.9]])
    for neighbours in (0, 1, 2):
        slow = [
            [min(row[max(0, n - neighbours) : n + neighbours + 1]) for n in range(len(row))] for row in skip.tolist()
        ]
        assert torch.equal(lowest_nearby(skip, neighbours), torch.tensor(slow))
    shares = torch.stack([skip, (1 - skip), torch.zeros_like(skip)], -1)
    assert choices_of(shares, 0.5, 1).tolist() == [[0, 0, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]


def test_the_network_asks_neighbours_within_its_image():
    network, x = network_that_varies(), torch.randn(2, 1, 3, 16, 16)
    given = torch.tensor([[0.9, 0.1, 0.9], [0.9, 0.9, 0.9]])
    network.shares = lambda *_: torch.stack([given, (1 - given), *[torch.zeros_like(given)] * 3], -1)
    assert network.choices(x) == [0, 1, 0, 0, 0, 0]
    network.skip_neighbours.fill_(1)
    assert network.choices(x) == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(("risk", "skipped"), [(0.0, 0), (0.24, 0), (0.25, 1), (0.5, 2), (0.75, 3), (1.0, 3)])
def test_a_threshold_skips_no_more_foreground_than_allowed(risk, skipped):
    skip = [0.97, 0.9, 0.7, 0.3, 0.99, 0.6, 0.2]
    foreground = [True] * 4 + [False] * 3
    threshold = safe_threshold(skip, foreground, risk)
    assert threshold >= 0.5
    assert sum(share > threshold for share, holds in zip(skip, foreground, strict=True) if holds) == skipped


def test_a_threshold_is_never_below_a_half_and_leaves_room_for_rounding():
    assert safe_threshold([0.1, 0.9], [True, False], 0.0) == 0.5
    assert safe_threshold([0.9], [False], 0.0) == 0.5
    assert safe_threshold([], [], 0.0) == 0.5
    assert 0.8 < safe_threshold([0.8], [True], 0.0) == pytest.approx(0.8002)
    assert safe_threshold([1.0], [True], 0.0) == 1.0


def test_weights_without_rules_of_skipping_get_the_defaults():
    network = network_that_varies()
    state = network.state_dict()
    network.skip_threshold.fill_(0.7)
    assert float(state["skip_threshold"]) == pytest.approx(0.7)
    old = {
        name: value for name, value in state.items() if name not in ("skip_threshold", "skip_neighbours", "mirror_axes")
    }
    fresh = network_that_varies()
    fresh.load_state_dict(old)
    assert (float(fresh.skip_threshold), int(fresh.skip_neighbours), fresh.mirror_axes.tolist()) == (0.5, 0, [True] * 2)
    fresh.load_state_dict(state)
    assert float(fresh.skip_threshold) == pytest.approx(0.7)
