"""Labels of the decision network: equation 4 with the paper's numbers, Dice of slices by hand, unknown slices."""

import math

import pytest
import torch

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_danet.choice import (
    UNKNOWN,
    ChoiceMetric,
    cheapness,
    choice_labels,
    decision_loss,
    pixel_counts,
    scaled_costs,
    slice_labels,
    slice_scores,
    truth_and_valid,
    without_unknown,
)
from nnunet_ext.med_danet.options import MedDANetOptions
from nnunet_ext.med_danet.phases import warm_poly_rate

F_128 = [0.605, 1.067, 2.358, 4.979]
F_240 = [2.126, 3.75, 8.882, 19.878]


def label(scores, foreground=100, costs=F_128, **kwargs):
    return int(choice_labels(torch.tensor([scores]), torch.tensor([foreground]), ChoiceMetric(costs, **kwargs)))


def slice_dice(*args, score="mean", **told):
    return slice_scores(pixel_counts(*args, **told), score)


@pytest.mark.parametrize(
    ("costs", "expected"),
    [(F_128, [0.496133, 0.242538, 0.145189, 0.116140]), (F_240, [0.315264, 0.257163, 0.220441, 0.207131])],
)
def test_cheapness_is_the_papers(costs, expected):
    assert cheapness(costs).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.9, 0.9, 0.9, 0.9], 1),
        ([0.9, 0.90025, 0.9, 0.9], 1),
        ([0.9, 0.90026, 0.9, 0.9], 2),
        ([0.9, 0.9, 0.90034, 0.9], 1),
        ([0.9, 0.9, 0.90036, 0.9], 3),
        ([0.9, 0.9, 0.9, 0.90037], 1),
        ([0.9, 0.9, 0.9, 0.90039], 4),
        ([0.9, 0.9, 0.9002, 0.9003], 1),
        ([0.0, 0.0, 0.0, 0.0], 1),
        ([1.0, 1.0, 1.0, 1.0], 1),
    ],
)
def test_a_candidate_must_gain_more_than_its_cost(scores, expected):
    assert label(scores) == expected


def test_slices_without_foreground_are_skipped_whatever_the_scores():
    assert label([0.0, 1.0, 0.5, 0.9], foreground=0) == 0
    assert label([0.0, 1.0, 0.5, 0.9], foreground=1) == 2


def test_alpha_zero_takes_the_best_and_alpha_one_the_cheapest():
    assert label([0.9, 0.90001, 0.9, 0.9], alpha=0.0) == 2
    assert label([0.1, 0.9, 0.9, 1.0], alpha=1.0) == 1


def test_costs_are_scaled_so_that_the_cheapest_is_the_papers():
    assert scaled_costs([200, 100, 400]) == pytest.approx([1.21, 0.605, 2.42])


@pytest.mark.parametrize(
    ("costs", "message"),
    [([1.0, 2.0], "Each of the 4 candidates needs a cost, found"), ([1.0, 2.0, 3.0, 0.0], "needs a cost above 0")],
)
def test_costs_must_fit_the_candidates(costs, message):
    with pytest.raises(ConfigurationError, match=message):
        label([0.9] * 4, costs=costs)


def softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("which", ["cost", "score", "both", "none"])
def test_the_rows_of_table_4_are_softmaxes_of_either(which):
    """Both over the candidates; the paper's own is that of the costs."""
    scores, cheap = [0.8, 0.85, 0.9, 0.7], [1 / f for f in F_128]
    expected = [
        0.8 * s + 0.2 * c
        for s, c in zip(
            softmax(scores) if which in ("score", "both") else scores,
            softmax(cheap) if which in ("cost", "both") else cheap,
            strict=True,
        )
    ]
    found = ChoiceMetric(F_128, alpha=0.2, softmax=which)(torch.tensor([scores]))
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_cost_in_dice_is_that_of_the_dearest_candidate():
    assert label([0.90, 0.90, 0.90, 0.95], cost=0.0) == 4
    gain = 0.05 * (1 - F_128[0] / F_128[3])
    assert label([0.90, 0.90, 0.90, 0.90 + gain + 1e-4], cost=0.05) == 4
    assert label([0.90, 0.90, 0.90, 0.90 + gain - 1e-4], cost=0.05) == 1


def test_pooled_scores_do_not_punish_one_pixel_of_an_absent_class():
    target = slices([0, 1, 1, 1, 1, 1, 1, 1])
    logits = one_hot_logits([2, 1, 1, 1, 1, 1, 1, 1])
    args = (logits, *truth_and_valid(target, 3))
    assert slice_dice(*args).tolist() == pytest.approx([0.5])
    assert slice_dice(*args, score="pooled").tolist() == pytest.approx([2 * 7 / (8 + 7)])


def slices(*rows):
    """Slices of one row each, as targets `[N, 1, 1, W]`."""
    return torch.tensor(rows, dtype=torch.float32)[:, None, None]


def one_hot_logits(*rows, classes=3):
    return torch.nn.functional.one_hot(torch.tensor(rows), classes).movedim(-1, 1)[:, :, None].float()


def test_dice_is_the_mean_over_foreground_classes_of_each_slice():
    target = slices([0, 1, 1, 2], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0])
    logits = one_hot_logits([0, 1, 2, 2], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 2])
    dice = slice_dice(logits, *truth_and_valid(target, 3))
    # absent from both counts 1, predicted where absent 0
    assert dice.tolist() == pytest.approx([2 / 3, (2 / 3 + 1) / 2, 1.0, 0.5], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_same_labels(dtype):
    """Sums over 70,000 pixels, which neither half type can hold, and scores that differ in the fourth digit."""
    target = torch.ones(1, 1, 1, 70_000)
    candidates = []
    for wrong in (200, 180, 170, 150):
        logits = torch.zeros(1, 2, 1, 70_000)
        logits[:, 1] = 1
        logits[..., :wrong] = -logits[..., :wrong]
        candidates.append(logits)
    truth, valid = truth_and_valid(target, 2)
    found = []
    for kind in (torch.float32, dtype):
        scores = torch.stack([slice_dice(logits.to(kind), truth, valid) for logits in candidates], 1)
        assert scores.dtype == torch.float32
        found.append(int(choice_labels(scores, truth.flatten(1).sum(1), ChoiceMetric(F_128))))
    assert found == [1, 1]
    assert float(scores[0, 3] - scores[0, 0]) == pytest.approx(0.000358, abs=1e-5)  # below the fourth's 0.000380


def test_regions_are_scored_by_the_sign_of_their_logits():
    masks = torch.tensor([[[[1, 1, 1, 0]], [[0, 1, 0, 0]]]], dtype=torch.bool)
    logits = torch.tensor([[[[1.0, 1, -1, -1]], [[-1, 2, -1, -1]]]])
    dice = slice_dice(logits, *truth_and_valid(masks, 2, regions=True), regions=True)
    assert dice.tolist() == pytest.approx([(0.8 + 1) / 2], abs=1e-6)


def test_ignored_pixels_count_for_nobody():
    target = slices([3, 3, 1, 0])
    truth, valid = truth_and_valid(target, 3, ignore_label=3)
    assert slice_dice(one_hot_logits([1, 2, 1, 0]), truth, valid).tolist() == pytest.approx([1.0])
    masks = torch.tensor([[[[1, 0, 1, 0]], [[0, 0, 0, 0]], [[1, 1, 0, 0]]]]).float()  # two regions and the ignored
    truth, valid = truth_and_valid(masks, 2, regions=True, ignore_label=3)
    assert valid.flatten().tolist() == [False, False, True, True]
    assert truth[0, 0].flatten().tolist() == [False, False, True, False]


def test_slices_that_are_partly_annotated_and_show_no_foreground_are_unknown():
    target = slices([3, 3, 1, 0], [3, 0, 0, 0], [3, 3, 3, 3], [0, 0, 0, 0])
    truth, valid = truth_and_valid(target, 3, ignore_label=3)
    labels = without_unknown(torch.tensor([2, 0, 0, 0]), truth, valid)
    assert labels.tolist() == [2, UNKNOWN, UNKNOWN, 0]


def test_the_loss_ignores_unknown_slices_and_is_zero_where_nothing_is_known():
    logits = torch.randn(3, 3, requires_grad=True)
    weights = [0.5, 1.0, 1.1]
    some = decision_loss(logits, torch.tensor([1, UNKNOWN, 0]), weights)
    expected = -(1.0 * logits.log_softmax(1)[0, 1] + 0.5 * logits.log_softmax(1)[2, 0]) / 1.5
    assert float(some.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    nothing = decision_loss(logits, torch.full((3,), UNKNOWN), weights)
    nothing.backward()
    assert float(nothing.detach()) == 0 and torch.equal(logits.grad, torch.zeros(3, 3))


def test_the_loss_of_half_precision_logits_is_computed_in_float32():
    logits = torch.tensor([[10.0, -10.0]], dtype=torch.float16)
    assert decision_loss(logits, torch.tensor([1]), [1.0, 1.0]).dtype == torch.float32


@pytest.mark.parametrize(
    ("epochs", "borders"),
    [(450, (300, 400)), (1000, (667, 889)), (1, (1, 1)), (2, (1, 1)), (3, (2, 2)), (9, (6, 8))],
)
def test_phases_are_the_papers_shares(epochs, borders):
    options = MedDANetOptions(num_epochs=epochs)
    assert (options.leave_start, options.decision_start) == borders


def test_phases_can_be_given():
    options = MedDANetOptions(num_epochs=10, bank_epochs=4, leave_epoch=7)
    assert (options.leave_start, options.decision_start) == (4, 4)


def test_class_weights_and_leaving_candidates():
    assert MedDANetOptions().weights(4) == [0.5, 1.0, 1.1, 1.2, 1.3]
    assert MedDANetOptions().leaving([10, 30, 20, 40]) == [0, 2]
    assert MedDANetOptions(leaving_candidates=[4]).leaving([1, 2, 3, 4]) == [3]
    assert MedDANetOptions(leaving_candidates=[]).leaving([1, 2]) == []
    assert MedDANetOptions().leaving([5]) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bank_epochs": 11, "num_epochs": 10}, "at most num_epochs"),
        ({"class_weights": [1, 0]}, "numbers above 0"),
        ({"leaving_candidates": [0]}, "numbers from 1"),
        ({"alpha": 2}, "'alpha' must be from 0 to 1"),
        ({"softmax": "all"}, "'softmax' must be one of cost, score, both, none, found 'all'"),
        ({"score": "max"}, "'score' must be one of mean, pooled"),
        ({"label_views": 3}, "'label_views' must be one of 1, 2, 4, found 3"),
        ({"skip_threshold": 0.4}, "'skip_threshold' must be from 0.5 to 1"),
        ({"bank_epochs": 0}, "set both bank_epochs=0 and bank_weights=CHECKPOINT, or neither"),
        ({"bank_weights": "bank.pth"}, "set both bank_epochs=0 and bank_weights=CHECKPOINT, or neither"),
    ],
)
def test_bad_options_are_refused_in_words(values, message):
    with pytest.raises(ConfigurationError, match=message):
        MedDANetOptions.from_plans(values)


def test_options_that_do_not_fit_the_bank_are_refused():
    with pytest.raises(ConfigurationError, match="needs 3 numbers, for skip and 2 candidates, found 2"):
        MedDANetOptions(class_weights=[1, 2]).weights(2)
    for numbers in ([3], [1, 2]):
        with pytest.raises(ConfigurationError, match="some of the 2 candidates, not all"):
            MedDANetOptions(leaving_candidates=numbers).leaving([1, 2])


def test_the_rate_warms_up_and_falls_to_almost_nothing():
    rates = [warm_poly_rate(step, 100, 10, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[4] == pytest.approx(0.5 * 0.96**0.9)
    assert rates[50] == pytest.approx(0.5**0.9)
    assert 0 < rates[99] < 0.02


# labels of slices by what the candidates are worth on them


class Bank:
    """Candidates by their answers: 1 is right everywhere, 2 right but for one pixel, 0 says background."""

    num_classes = 3

    def __init__(self, target):
        self.truth, self.candidates, self.seen = target, [None] * 3, []

    def candidate(self, index, x):
        self.seen.append((index, len(x)))
        labels = self.truth[x[:, 0, 0, 0].long(), 0].long()
        if index == 0:
            labels = torch.zeros_like(labels)
        if index == 2:
            labels[:, 0, 0] = 2
        return torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()


def numbered(count):
    """Slices that hold their own number."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(count, 1, 8, 8)


def some_target():
    target = torch.zeros(4, 1, 8, 8)
    target[1:, :, 2:4] = 1
    target[2:, :, 4:5] = 2
    return target


def test_labels_follow_the_best_candidate_and_only_foreground_asks_them():
    target = some_target()
    bank = Bank(target)
    assert slice_labels(bank, numbered(4), target, ChoiceMetric([1.0, 2.0, 3.0])).tolist() == [0, 2, 2, 2]
    assert bank.seen == [(0, 3), (1, 3), (2, 3)]


def test_cheapness_decides_where_alpha_says_so():
    target = some_target()
    costs = [3.0, 2.0, 0.1]
    for alpha, best in ((1.0, 3), (0.0, 2)):
        metric = ChoiceMetric(costs, alpha)
        assert slice_labels(Bank(target), numbered(4), target, metric).tolist() == [0, best, best, best]


class Lopsided(Bank):
    """The first candidate is right on slices as they are and misses all on flips, the second has half on each."""

    def candidate(self, index, x):
        self.seen.append((index, len(x)))
        labels = torch.zeros(len(x), 8, 8).long()
        if index == 0:
            labels[:] = (x[:, 0, 0, 0] > 0).view(-1, 1, 1)
        if index == 1:
            labels[:, :4] = 1
        return torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()


@pytest.mark.parametrize(("views", "best"), [(1, 1), (2, 2), (4, 2)])
def test_the_best_is_taken_of_means_over_the_views(views, best):
    """Dice 1, then (1 + 0) / 2 or 1 / 4 for the first (an absent class counts 1 in the mean of two); 2 / 3 always."""
    target, x = torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    x[:, :, 0, 0] = 1
    bank = Lopsided(target)
    found = slice_labels(bank, x, target, ChoiceMetric([1.0] * 3, alpha=0.0, score="pooled", views=views))
    assert found.tolist() == [best] * 2
    assert bank.seen == [(index, 2 * views) for index in range(3)]


def test_slices_without_annotation_have_no_label():
    target = some_target()
    target[0], target[3, :, 6:] = 9, 9
    bank, metric = Bank(target.where(target != 9, 0)), ChoiceMetric([1.0, 2.0, 3.0])
    found = slice_labels(bank, numbered(4), target, metric, ignore_label=9)
    assert found.tolist() == [UNKNOWN, 2, 2, 2]


def test_labels_teach_nothing_back():
    target = some_target()
    slices = numbered(4).clone().requires_grad_()
    assert not slice_labels(Bank(target), slices, target, ChoiceMetric([1.0, 2.0, 3.0])).requires_grad
