"""Whether routing pays: every way's Dice and cost from counts, against slow forms; risk and its bound; the words."""

import numpy as np
import pytest
import torch
from med_danet.small import TWO, arch_kwargs
from scipy.stats import binom

from nnunet_ext.med_danet.accounting import SliceCosts
from nnunet_ext.med_danet.choice import ChoiceMetric
from nnunet_ext.med_danet.evidence import (
    calibrated,
    evidence,
    held_out_risk,
    joined,
    lines_of,
    mean_dice,
    mixture,
    risk,
    upper_bound,
    warnings_of,
)
from nnunet_ext.med_danet.network import MedDANet
from nnunet_ext.med_danet.seen import seen_slices

COSTS = SliceCosts((8, 8), ("A", "B"), (100, 300), 10, 1)


def case(skip, chosen, foreground, counts=None, label=None, known=None):
    slices = len(skip)
    rng = np.random.default_rng(slices)
    if counts is None:
        counts = rng.integers(1, 9, (slices, 3, 2, 3)).astype(float)
        counts[..., 0] = np.minimum(counts[..., 0], counts[..., 1:].min(-1))
        counts[:, 0, :, :2] = 0
    return {
        "skip": np.array(skip), "chosen": np.array(chosen), "foreground": np.array(foreground), "counts": counts,
        "label": np.array(chosen if label is None else label),
        "known": np.array([True] * slices if known is None else known),
    }  # fmt: skip


CASES = [
    case([0.9, 0.2, 0.1, 0.8], [1, 2, 1, 1], [0, 5, 9, 0], label=[0, 1, 1, 0]),
    case([0.1, 0.6, 0.95], [2, 1, 1], [4, 0, 0], label=[2, 0, 0]),
]


def slow_dice(choose):
    """Mean over classes of the mean over cases; `choose(case, slice)` -> weights of the choices."""
    by_class = []
    for k in range(2):
        found = []
        for c in CASES:
            sums = [0.0, 0.0, 0.0]
            for s in range(len(c["skip"])):
                for n, weight in enumerate(choose(c, s)):
                    for what in range(3):
                        sums[what] += weight * c["counts"][s, n, k, what]
            found.append(2 * sums[0] / (sums[1] + sums[2]))
        by_class.append(sum(found) / len(found))
    return sum(by_class) / 2


def one(choice):
    return [float(choice == n) for n in range(3)]


def routed(c, s, threshold=0.7):
    return one(0 if c["skip"][s] > threshold else c["chosen"][s])


def test_every_way_has_its_dice_and_its_cost():
    report = evidence(CASES, COSTS, 0.7, 1, 0.0)
    ways = {row["way"]: (row["dice"], row["gmacs_per_slice"] * 1e9) for row in report["ways"]}
    spent = (200 * 0 + 300 * 2 + 100 * 2) / 7  # three of seven are skipped
    kept = 800 / 4
    share = (300 - kept) / 200
    by_chance = (300 - (spent + 10)) / 200
    expected = {
        "A on every slice": (slow_dice(lambda c, s: one(1)), 100),
        "B on every slice": (slow_dice(lambda c, s: one(2)), 300),
        "the labels (needs the truth)": (slow_dice(lambda c, s: one(c["label"][s])), (2 * 100 + 300) / 7),
        "routing": (slow_dice(routed), spent + 10),
        "the same skips, other slices at random between two candidates": (
            slow_dice(lambda c, s: one(0) if routed(c, s)[0] else [0, share, 1 - share]), spent + 10,
        ),
        "every slice at random between two candidates": (
            slow_dice(lambda c, s: [0, by_chance, 1 - by_chance]), spent + 10,
        ),
    }  # fmt: skip
    assert list(ways) == list(expected)
    for name, (dice, cost) in expected.items():
        assert ways[name] == pytest.approx((dice, cost)), name
    assert report["counts"] == [3, 2, 2] and report["slices"] == 7
    assert report["choices"] == ["skip", "A", "B"]


def test_a_mixture_lies_between_neighbours_in_cost():
    assert mixture([300, 100, 200], 150).tolist() == [0, 0, 0.5, 0.5]
    assert mixture([300, 100, 200], 275).tolist() == [0, 0.75, 0, 0.25]
    assert mixture([100, 100], 100).tolist() == [0, 1, 0]
    assert mixture([100, 300], 99) is None and mixture([100, 300], 301) is None and mixture([100], 100) is None


def test_dice_is_nnunets_mean_where_classes_are_absent():
    cases = [np.array([[3, 4, 4], [0, 0, 0]]), np.array([[0, 0, 2], [1, 2, 2]])]
    assert mean_dice(cases) == pytest.approx(((0.75 + 0) / 2 + 0.5) / 2)
    assert np.isnan(mean_dice([np.zeros((2, 3))]))


def test_the_bound_is_where_so_few_would_be_a_chance_of_five_in_a_hundred():
    for found, tried in ((0, 10), (1, 30), (7, 400)):
        assert binom.cdf(found, tried, upper_bound(found, tried)) == pytest.approx(0.05)
    assert upper_bound(0, 60) == pytest.approx(1 - 0.05 ** (1 / 60))
    assert upper_bound(3, 3) == 1.0 and upper_bound(0, 0) is None


def test_risk_counts_foreground_empty_and_unknown_slices():
    cases = [case([0.9, 0.9, 0.2, 0.9], [1] * 4, [3, 0, 7, 0], known=[True, True, True, False])]
    assert risk(cases, [0.5]) == {
        "slices_with_foreground": 2, "skipped_with_foreground": 1, "share_of_foreground_skipped": 0.3,
        "at_most": upper_bound(1, 2), "empty_slices": 1, "skipped_empty": 1, "not_annotated": 1,
    }  # fmt: skip
    assert risk(cases, [0.9])["skipped_with_foreground"] == 0


def test_a_threshold_is_judged_on_cases_that_did_not_set_it():
    cases = [case([0.9, 0.99], [1, 1], [2, 0]), case([0.7, 0.99], [1, 1], [2, 0]), case([0.6, 0.5], [1, 1], [1, 0])]
    assert calibrated(cases, 0.0) == pytest.approx(0.9001)
    found = held_out_risk(cases, 0.0)
    # the first and third with the second's 0.7: one of theirs is skipped; the second with theirs: none
    assert found["skipped_with_foreground"] == 1 and found["skipped_empty"] == 2
    assert held_out_risk(cases[:1], 0.0) is None
    told = evidence(cases, COSTS, 0.9, 1, 0.0)
    assert told["held_out_risk"] == found and told["risk"]["at_most"] is None
    said = lines_of(told)
    assert said[0].startswith("WARNING: routing skips slices with foreground with a threshold from other cases: 1 of 3")
    assert said[1].endswith("These slices have set the threshold: they cannot say how safe it is.")
    assert said[2].startswith("With a threshold from the other half of the cases: 1 of 3 slices with foreground were ")
    given = evidence(cases, COSTS, 0.9, 1, None)
    assert given["held_out_risk"] is None and given["risk"]["at_most"] == upper_bound(0, 3)


def test_all_skipped_is_a_warning_and_has_no_mixture():
    cases = [case([0.9] * 3, [1] * 3, [0, 4, 0])]
    report = evidence(cases, COSTS, 0.5, 0, None)
    assert [row["way"] for row in report["ways"]][-1] == "routing" and report["ways"][-1]["dice"] == 0
    first, second = warnings_of(report)
    assert "skips slices with foreground: 1 of 1, 100.00% of the foreground" in first
    assert "100.0% of the slices get the same, skip" in second
    lines = lines_of(report)
    assert lines[:2] == [first, second]
    assert lines[2].startswith("1 of 1 slices with foreground were skipped (with 95 % confidence at most 100.00%)")


def test_a_safe_routing_has_no_warning():
    report = evidence(CASES, COSTS, 0.7, 1, None)
    assert warnings_of(report) == []
    assert lines_of(report)[0].startswith("0 of 3 slices with foreground were skipped")


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("planar", [False, True])
def test_what_is_seen_of_a_tile_is_what_the_parts_say_of_its_slices(planar, regions):
    torch.manual_seed(0)
    strides = [[1, 1], [2, 2]] if planar else [[1, 1, 1], [1, 2, 2]]
    network = MedDANet(1, 3, **arch_kwargs(strides, TWO)).eval()
    shape = (4, 1, 16, 16) if planar else (1, 1, 4, 16, 16)
    x = torch.randn(shape)
    target = torch.randint(0, 2, (shape[0], 3, *shape[2:])) if regions else torch.randint(0, 3, shape)
    network.fold(target)[1] = 0
    told = {"regions": regions, "ignore_label": None}
    metric = ChoiceMetric([1.0, 2.0])
    seen = seen_slices(network, x, target, metric, 1, **told)
    slices, truth = network.fold(x), network.fold(target)
    for s in range(4):
        masks = truth[s, :3] > 0 if regions else torch.stack([truth[s, 0] == 1, truth[s, 0] == 2])
        assert seen["foreground"][s] == int(masks.any(0).sum()) and seen["known"][s]
        for n in range(3):
            logits = torch.full((3, 16, 16), -1.0) if n == 0 else network.candidates[n - 1](slices[s : s + 1])[0]
            ours = logits > 0 if regions else torch.stack([logits.argmax(0) == k for k in (1, 2)])
            if n == 0:
                ours = torch.zeros_like(masks)
            for k, (mask, mine) in enumerate(zip(masks, ours, strict=True)):
                assert seen["counts"][s, n, k].tolist() == [int(m.sum()) for m in (mask & mine, mine, mask)]
    assert seen["label"][1] == 0 and (seen["label"][[0, 2, 3]] > 0).all()
    shares = network.shares(x)
    assert (seen["chosen"] == shares[..., 1:].argmax(-1).flatten().numpy() + 1).all()
    skip = shares[..., 0].flatten()
    expected = skip if planar else torch.stack([skip[max(0, s - 1) : s + 2].min() for s in range(4)])
    assert seen["skip"].tolist() == pytest.approx(expected.tolist())


def test_tiles_become_a_case():
    parts = [{"skip": np.array([0.1]), "known": np.array([True])}, {"skip": np.array([0.2, 0.3]), "known": np.ones(2)}]
    assert joined(parts)["skip"].tolist() == [0.1, 0.2, 0.3]
