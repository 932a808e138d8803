"""When which part of Med-DANet learns, and what a step takes of a deep patch: no trainer, no nnU-Net."""

import pytest
import torch

from nnunet_ext.med_danet.options import MedDANetOptions
from nnunet_ext.med_danet.phases import Phases, thinned


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


@pytest.mark.parametrize(("shape", "slices"), [((2, 1, 8, 4, 4), 16), ((2, 1, 4, 4), 1)])
def test_what_has_no_more_slices_is_left_alone(shape, slices):
    data = torch.zeros(shape)
    assert thinned(data, data, slices)[0] is data


def test_one_slice_is_left_where_fewer_than_the_batch_are_allowed():
    assert thinned(torch.zeros(4, 1, 8, 2, 2), torch.zeros(4, 1, 8, 2, 2), 2)[0].shape[2] == 1
