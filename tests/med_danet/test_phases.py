"""When which part of Med-DANet learns, and what a step takes of a deep patch: no trainer, no nnU-Net."""

import pytest
import torch

from nnunet_ext.med_danet.options import MedDANetOptions
from nnunet_ext.med_danet.phases import Phases, thinned, unfinished_text


def phases(leaving=(0,), **options):
    options = {"num_epochs": 6, "num_iterations_per_epoch": 4, "bank_epochs": 4, "leave_epoch": 2, **options}
    return Phases(MedDANetOptions.from_plans(options), 3, leaving)


def test_leaving_candidates_go_first_and_then_the_decision_network_learns_alone():
    found = [(phases().active(epoch), phases().decides(epoch)) for epoch in range(6)]
    assert found == [([0, 1, 2], False)] * 2 + [([1, 2], False)] * 2 + [([], True)] * 2


def test_each_phase_warms_up_over_an_epoch_and_comes_down_to_its_end():
    plan = phases(initial_lr=2.0, decision_lr=0.5)
    rates = [plan.rate(epoch, step) for epoch in range(6) for step in range(4)]
    bank = [2.0 * min(1, (k + 1) / 4) * (1 - k / 16) ** 0.9 for k in range(16)]
    decision = [0.5 * min(1, (k + 1) / 4) * (1 - k / 8) ** 0.9 for k in range(8)]
    assert rates == pytest.approx(bank + decision)


def test_steps_beyond_the_epoch_keep_the_last_rate():
    assert phases().rate(1, 7) == phases().rate(1, 3)


def test_the_training_says_its_phases():
    text = phases(leaving=(0, 2)).text(["a", "b", "c"], 1)
    assert text == (
        "Bank: 1 a, 2 b, 3 c. Epochs 0 to 3 train it; candidates that leave at epoch 2: 1, 3. Epochs 4 to 5 train the "
        "decision network; until its first is over, b predicts every slice."
    )
    alone = phases(leaving=(), num_epochs=4).text(["a"], 0)
    assert "leave at epoch 2: none. No epoch is left for the decision network: a predicts every slice." in alone


def test_deep_patches_are_thinned_to_random_slices():
    data = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(2, 1, 8, 4, 4)
    seen = set()
    for seed in range(5):
        torch.manual_seed(seed)
        thin, target = thinned(data, data + 100, 6)
        depths = thin[0, 0, :, 0, 0].tolist()
        assert len(depths) == 3 and depths == sorted(set(depths))
        assert torch.equal(target, thin + 100)
        seen.add(tuple(depths))
    assert len(seen) > 1


def test_half_of_the_places_are_those_of_slices_with_foreground():
    data = torch.arange(20.0).view(1, 1, 20, 1, 1).expand(2, 1, 20, 2, 2)
    holds = torch.zeros(2, 20, dtype=torch.bool)
    holds[0, 4], holds[1, 17] = True, True
    others = set()
    for seed in range(8):
        torch.manual_seed(seed)
        depths = thinned(data, data, 8, holds)[0][0, 0, :, 0, 0].tolist()
        assert len(set(depths)) == 4 and {4, 17} <= set(depths) and depths == sorted(depths)
        others |= set(depths)
    assert len(others) > 8
    holds[0, :12] = True  # more than there are places: half are left for the rest
    counts = []
    for seed in range(40):
        torch.manual_seed(seed)
        depths = thinned(data, data, 8, holds)[0][0, 0, :, 0, 0].tolist()
        counts.append(sum(bool(holds.any(0)[int(depth)]) for depth in depths))
    assert min(counts) == 2 and max(counts) > 2


def test_a_dearer_candidate_that_has_learned_less_is_named():
    text = unfinished_text(["a", "b", "c", "d"], [10, 40, 20, 30], [-0.5, -0.4, None, -0.6])
    assert text == (
        "The bank's last losses: a -0.5000, d -0.6000, b -0.4000. b costs more than d and has learned less: the bank "
        "is not finished, and the labels will say so; more epochs for it (bank_epochs) may pay."
    )
    assert unfinished_text(["a", "b"], [1, 2], [-0.5, -0.5]) == "The bank's last losses: a -0.5000, b -0.5000."


@pytest.mark.parametrize(("shape", "slices"), [((2, 1, 8, 4, 4), 16), ((2, 1, 4, 4), 1)])
def test_what_has_no_more_slices_is_left_alone(shape, slices):
    data = torch.zeros(shape)
    assert thinned(data, data, slices)[0] is data


def test_one_slice_is_left_where_fewer_than_the_batch_are_allowed():
    assert thinned(torch.zeros(4, 1, 8, 2, 2), torch.zeros(4, 1, 8, 2, 2), 2)[0].shape[2] == 1
