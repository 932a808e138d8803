"""The clock of a search and its cases: no trainer, no nnU-Net."""

import json
from datetime import timedelta

import pytest

from nnunet_ext.dints.halves import kept_halves, split_in_halves
from nnunet_ext.dints.options import DiNTSSearchOptions
from nnunet_ext.dints.schedule import Pace, SearchSchedule
from nnunet_ext.errors import ConfigurationError


def schedule(**options):
    small = {"num_epochs": 6, "weight_epochs": 2, "num_iterations_per_epoch": 2, "warmup_iterations": 3,
             "halve_every": 4}  # fmt: skip
    return SearchSchedule(DiNTSSearchOptions.from_plans({**small, **options}), batch_size=8)


def test_the_architecture_moves_after_the_weights_have_learned():
    plan = schedule()
    assert [plan.is_joint(k) for k in range(6)] == [False] * 4 + [True] * 2
    assert [plan.ramp(k) for k in range(13)] == pytest.approx([0] * 4 + [k / 8 for k in range(1, 9)] + [1])


def test_the_rate_warms_up_from_an_eighth():
    rates = [schedule().rate(k) for k in range(12)]
    assert rates == pytest.approx([0.025, 0.025 + 0.175 / 3, 0.025 + 0.35 / 3] + [0.2] * 4 + [0.1] * 4 + [0.05])
    one = SearchSchedule(DiNTSSearchOptions(), batch_size=1)
    assert (one.rate(0), one.rate(1000)) == (0.025 / 8, 0.025)


def test_the_defaults_are_the_papers():
    plan = SearchSchedule(DiNTSSearchOptions(), batch_size=8)
    assert [plan.rate(k) for k in (0, 1000, 8999, 9000, 17000)] == pytest.approx([0.025, 0.2, 0.2, 0.1, 0.05])
    assert [plan.is_joint(k) for k in (10_999, 11_000)] == [False, True]
    assert (plan.ramp(10_999), plan.ramp(11_000), plan.ramp(20_999)) == (0, 1e-4, 1)


def test_the_search_says_what_it_will_do():
    assert schedule(sigma=0.5).text() == (
        "Search of 6 epochs: the architecture moves from epoch 2 on, budget sigma 0.5."
    )


class Clock:
    """Seconds that pass as a test says."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("tried", [True, False])
def test_the_time_left_is_right_in_both_phases(tried):
    """2 s an iteration, 3 s with the architecture, 10 s of validation an epoch; jitter of a tenth in each epoch."""
    clock = Clock()
    plan = schedule(num_epochs=10, weight_epochs=5, num_iterations_per_epoch=4)
    pace, jitter = Pace(plan, clock), [1.1, 0.9, 1.0, 1.1, 0.9, 1.0, 0.9, 1.1, 1.0, 0.95]
    calls = [7.0, 1.0]  # the first is slower, and neither belongs to the epoch

    def step():
        clock.now += calls.pop(0)

    costs = [(10 + 4 * (2 if epoch < 5 else 3)) * jitter[epoch] for epoch in range(10)]
    for epoch in range(10):
        pace.start(4 * epoch)
        if epoch == 0 and tried:
            pace.try_step(step)
        clock.now += costs[epoch]
        pace.stop(4 * (epoch + 1))
        found, true = pace.left(4 * (epoch + 1)).total_seconds(), sum(costs[epoch + 1 :])
        if tried or epoch >= 5:
            assert found == pytest.approx(true, rel=0.15, abs=1), epoch
    if not tried:
        assert pace.step is None


def test_a_search_that_is_continued_in_its_second_phase_knows_the_time_left():
    clock = Clock()
    pace = Pace(schedule(), clock)
    pace.start(6)
    clock.now += 8.0
    pace.stop(8)
    assert pace.left(8) == timedelta(seconds=16)


# halves of the cases


def test_halves_are_disjoint_whole_and_of_the_seed():
    keys = [f"case_{k}" for k in range(7)]
    first, second = split_in_halves(keys, 1)
    assert sorted(first + second) == keys and (len(first), len(second)) == (4, 3)
    assert first == sorted(first) and second == sorted(second)
    assert split_in_halves(keys[::-1], 1) == (first, second) != split_in_halves(keys, 2)
    with pytest.raises(ConfigurationError, match="at least two training cases.* this fold has 1"):
        split_in_halves(["a"], 0)


def test_halves_stay_what_they_were_where_a_search_goes_on(tmp_path):
    path, keys = tmp_path / "fold" / "search_halves.json", ["a", "b", "c", "d"]
    made = kept_halves(path, keys, 1, continued=False, write=True)
    assert json.loads(path.read_text()) == {"train1": made[0], "train2": made[1]}
    path.write_text(json.dumps({"train1": ["d"], "train2": ["a", "b", "c"]}))
    assert kept_halves(path, keys, 1, continued=True, write=True) == (["d"], ["a", "b", "c"])
    assert kept_halves(path, keys, 1, continued=False, write=False) == made
    assert json.loads(path.read_text())["train1"] == ["d"], "other ranks write nothing"


def test_cases_stay_in_their_half_where_the_fold_has_changed(tmp_path):
    path, lines = tmp_path / "search_halves.json", []
    path.write_text(json.dumps({"train1": ["a", "b", "c"], "train2": ["d"]}))
    kwargs = {"continued": True, "write": True, "say": lines.append}
    assert kept_halves(path, ["a", "c", "d", "e", "f"], 1, **kwargs) == (["a", "c", "f"], ["d", "e"])
    assert json.loads(path.read_text()) == {"train1": ["a", "c", "f"], "train2": ["d", "e"]}
    assert len(lines) == 1 and "2 are new, 1 are gone" in lines[0]
    assert kept_halves(path, ["a", "c", "d", "e", "f"], 1, **kwargs)[0] == ["a", "c", "f"]
    assert len(lines) == 1, "nothing has changed since"
