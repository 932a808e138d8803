"""The tables of facts hold together."""

import re

import pytest

from nnunet_ext.challenges.catalogue import CHALLENGES, get_challenge
from nnunet_ext.challenges.facts import map_values
from nnunet_ext.errors import ConfigurationError

TABLES = [challenge for tasks in CHALLENGES.values() for challenge in tasks.values()]


@pytest.mark.parametrize("challenge", TABLES, ids=lambda challenge: challenge.name)
class TestTable:
    def test_labels_are_what_nnunet_wants(self, challenge):
        assert list(challenge.nnunet_values) == list(range(len(challenge.labels)))
        assert challenge.labels["background"] == 0

    def test_the_map_to_the_challenge_loses_nothing(self, challenge):
        import numpy as np

        values = np.array(challenge.nnunet_values, np.uint8)
        there = map_values(values, challenge.to_challenge)
        assert sorted(there) == list(challenge.challenge_values)
        assert list(map_values(there, challenge.from_challenge)) == list(values)

    def test_regions_give_back_every_label(self, challenge):
        """nnU-Net paints each region over those before it, with its value of regions_class_order."""
        regions = list((challenge.regions or {}).values())
        assert len(challenge.region_order) == len(regions)
        painted = {}
        for values, order in zip(regions, challenge.region_order, strict=True):
            painted |= dict.fromkeys(values, order)
        if regions and challenge.name.partition(" ")[0] != "brats-ped":  # whose non-enhancing and edema stay apart
            assert painted == {value: value for value in challenge.nnunet_values if value}
        assert all(painted[value] == value for value in painted)

    def test_scored_structures_use_the_challenges_values(self, challenge):
        used = {value for values in challenge.metrics.structures.values() for value in values}
        assert used == set(challenge.challenge_values) - {0}

    def test_official_cases_have_names_that_export_knows_and_keeps_apart(self, challenge):
        for split, names in challenge.known.items():
            assert len(set(names)) == len(names) == challenge.counts[split]
        split = challenge.submission.splits[0]
        assert split in challenge.counts
        keys = [challenge.submission.id_of(name) for name in challenge.known.get(split, ())]
        assert None not in keys
        assert len({challenge.submission.name.format(id=key) for key in keys}) == len(keys)

    def test_patterns_compile(self, challenge):
        for files in challenge.files:
            re.compile(files.pattern)
        assert {files.channel for files in challenge.files} >= {None, 0}


def test_the_numbers_of_the_challenges():
    """Against the published numbers, typed anew."""
    counts = {c.name: (c.counts["train"], *(c.counts[split] for split in c.submission.splits)) for c in TABLES}
    assert counts["amos22 task 1"] == (200, 100, 200)
    assert counts["amos22 task 2"] == (240, 120, 240)
    assert counts["btcv"] == (30, 20)
    assert counts["brats2019"] == (335, 125, 166)
    assert counts["brats2020"] == (369, 125, 166)
    assert counts["kits19"] == (210, 90)
    assert counts["lits17"] == (131, 70)
    assert sum(values[1] for name, values in counts.items() if name.startswith("msd")) == 887
    tolerances = [get_challenge("msd", task).metrics.tolerance for task in range(1, 11)]
    assert tolerances == [5, 4, 7, 1, 4, 2, 5, 3, 3, 4]


def test_unknown_challenges_and_tasks_are_refused_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="Unknown challenge 'kits'. Known: amos22, brats2019"):
        get_challenge("kits")
    with pytest.raises(ConfigurationError, match="msd has no task 11. Its tasks: 1, 2, 3"):
        get_challenge("msd", 11)
    with pytest.raises(ConfigurationError, match="msd has the tasks 1, 2, .* choose one with --task"):
        get_challenge("msd")
    with pytest.raises(ConfigurationError, match="btcv has no tasks; leave out --task 2"):
        get_challenge("btcv", 2)
