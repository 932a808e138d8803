"""The clock of a search and its cases: no trainer, no nnU-Net."""

import json
from datetime import timedelta

import pytest

from nnunet_ext.dints.halves import PairedBatches, finish, kept_halves, split_in_halves
from nnunet_ext.dints.options import DiNTSOptions
from nnunet_ext.dints.schedule import JOINT_COST, Pace, SearchSchedule
from nnunet_ext.errors import ConfigurationError


def schedule(**options):
    small = {
        "search_warmup_iterations": 3,
        "search_weight_iterations": 2,
        "search_joint_iterations": 8,
        "search_halve_every": 4,
        "search_batch_size": 8,
    }
    return SearchSchedule(DiNTSOptions.from_plans({**small, **options}))


def test_the_architecture_moves_after_the_weights_have_learned():
    plan = schedule()
    assert [plan.is_joint(k) for k in range(7)] == [False] * 5 + [True] * 2
    assert [plan.ramp(k) for k in range(14)] == pytest.approx([0] * 5 + [k / 8 for k in range(1, 9)] + [1])
    assert plan.epochs(4) == 4 and plan.epochs(13) == 1


def test_the_rate_warms_up_from_that_of_one_patch():
    rates = [schedule().rate(k) for k in range(13)]
    assert rates == pytest.approx([0.025, 0.025 + 0.175 / 3, 0.025 + 0.35 / 3] + [0.2] * 4 + [0.1] * 4 + [0.05] * 2)


def test_the_search_says_what_it_will_do():
    assert schedule(sigma=0.5).text(4, (16, 32, 32)) == (
        "Search of 4 epochs: the architecture moves from iteration 5 of 13 on, budget sigma 0.5. Patch [16, 32, 32], "
        "batch 8."
    )


def test_the_time_left_counts_iterations_of_each_kind_at_their_own_pace():
    plan = schedule()
    assert plan.seconds_left(2, 13, {False: 1.0, True: 10.0}) == 3 * 1 + 8 * 10
    assert plan.seconds_left(7, 13, {False: 1.0, True: 10.0}) == 6 * 10
    assert plan.seconds_left(2, 13, {False: 1.0}) == 3 + 8 * JOINT_COST
    assert plan.seconds_left(2, 13, {True: 5.0}) == pytest.approx(3 * 5 / JOINT_COST + 8 * 5)


def test_the_pace_is_that_of_the_last_epoch_of_each_kind(monkeypatch):
    now = iter([0.0, 8.0, 10.0, 40.0])
    monkeypatch.setattr("nnunet_ext.dints.schedule.monotonic", lambda: next(now))
    pace = Pace(schedule())
    pace.start(0)
    pace.stop(4)
    assert pace.seconds == {False: 2.0}
    pace.start(4)
    pace.stop(10)  # ends in the joint phase
    assert pace.seconds == {False: 2.0, True: 5.0}
    assert pace.left(10, 13) == timedelta(seconds=15)


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
    assert kept_halves(path, [*keys, "e"], 1, continued=True, write=False) == split_in_halves([*keys, "e"], 1)


def test_the_second_batch_comes_only_when_the_architecture_moves():
    joint = iter([False, True])
    pairs = PairedBatches(iter([{"data": 1}, {"data": 2}]), iter([{"data": 10}]), lambda: next(joint))
    assert next(pairs) == {"data": 1}
    assert next(pairs) == {"data": 2, "architecture": {"data": 10}}


def test_loaders_with_workers_are_ended():
    class Workers:
        ended = 0

        def _finish(self):
            self.ended += 1

    one, two = Workers(), Workers()
    PairedBatches(one, two, lambda: True).finish()
    finish(iter([]))
    assert (one.ended, two.ended) == (1, 1)
