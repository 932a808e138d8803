"""Best, median and worst, and means over cases that lack a class."""

import math

import pytest
from report.folders import LABELS, REGIONS

from nnunet_ext.report.scores import (
    CaseScore,
    Labels,
    case_name,
    class_means,
    remarkable_cases,
    values_of_key,
    worst_first,
)


def cases(**dice):
    return [CaseScore(name, "0", {"a": value}, "", "") for name, value in dice.items()]


def test_best_median_and_worst_are_three_cases_by_mean_dice():
    chosen = remarkable_cases(cases(p=0.5, q=0.9, r=0.1, s=0.7))
    assert {title: case.case for title, case in chosen.items()} == {"Best": "q", "Median": "p", "Worst": "r"}


@pytest.mark.parametrize(
    ("given", "titles"),
    [({}, []), ({"p": math.nan}, []), ({"p": 0.5}, ["Only case"]), ({"p": 0.5, "q": 0.5}, ["Best", "Worst"])],
)
def test_few_cases_are_not_shown_twice(given, titles):
    chosen = remarkable_cases(cases(**given))
    assert list(chosen) == titles
    assert len({case.case for case in chosen.values()}) == len(titles)


def test_the_worst_comes_first_and_what_has_no_dice_last():
    assert [case.case for case in worst_first(cases(p=0.5, q=math.nan, r=0.1))] == ["r", "p", "q"]


def test_a_case_without_the_class_does_not_count_in_its_mean():
    rows = [
        CaseScore(name, "0", dice, "", "")
        for name, dice in (("p", {"a": 1.0, "b": math.nan}), ("q", {"a": 0.5, "b": 0.2}))
    ]
    assert class_means(rows) == {"a": 0.75, "b": 0.2}
    assert rows[0].mean == 1.0


def test_labels_and_regions_are_read_as_nnunet_names_them():
    assert Labels.from_dataset_json({"labels": LABELS}) == Labels({(1,): "outer", (2,): "inner"}, None)
    assert Labels.from_dataset_json({"labels": REGIONS}) == Labels({(1, 2): "whole", (2,): "inner"}, 3)
    assert [values_of_key(key) for key in ("2", "(2,)", "(1, 2)")] == [(2,), (2,), (1, 2)]


def test_case_names_come_from_paths_of_any_system():
    assert case_name("/a/b/case_1.5.nii.gz", ".nii.gz") == "case_1.5"
    assert case_name("C:\\a\\case_2.png", ".png") == "case_2"
