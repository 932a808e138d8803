"""What an epoch and a validation of Med-DANet have to tell: no trainer, no nnU-Net."""

import json

import numpy as np

from nnunet_ext.med_danet.accounting import (
    EpochNotes,
    counts_by_content,
    report_text,
    row_text,
    skipped_foreground,
    skipped_text,
    slice_areas,
)


def test_an_epoch_of_the_bank_tells_mean_losses_of_who_learned():
    notes = EpochNotes(3)
    for loss in (1.0, 3.0):
        notes.add_loss(1, loss)
    row = notes.row(decides=False)
    assert row == {
        "phase": "bank", "candidate_losses": [None, 2.0, None], "labels": None, "agreement": None, "choices": None,
    }  # fmt: skip
    assert row_text(row) == "Losses of the candidates: -, 2.0000, -"


def test_an_epoch_of_the_decisions_tells_labels_agreement_and_choices():
    notes = EpochNotes(2)
    notes.add_labels([0, 2, 2], [0, 2, 1])
    notes.add_labels([0], [1])
    notes.add_labels([], [])
    notes.add_choices([2, 2, 1])
    row = notes.row(decides=True)
    assert row == {
        "phase": "decision", "candidate_losses": [None, None], "labels": [2, 0, 2], "agreement": 0.5,
        "choices": [0, 1, 2],
    }  # fmt: skip
    assert json.loads(json.dumps(row)) == row
    assert row_text(row) == "Labels (skip, candidates): [2, 0, 2], agreement 0.500; choices in validation: [0, 1, 2]"


def test_before_the_first_step_there_is_nothing_to_tell():
    assert EpochNotes(1).row(decides=True) == {
        "phase": "decision", "candidate_losses": [None], "labels": None, "agreement": None, "choices": None,
    }  # fmt: skip


def test_areas_are_pixels_of_each_region_in_each_slice():
    labels = np.zeros((3, 2, 4), np.uint8)
    labels[1, 0, :3], labels[1, 1, 0], labels[2, :, :] = 1, 2, 3
    areas, foreground, unknown = slice_areas(labels, {"background": 0, "whole": [1, 2], "inner": 2})
    assert areas == {"whole": [0, 4, 0], "inner": [0, 1, 0]}
    assert foreground == [0, 4, 0] and unknown == [False] * 3
    labels[1, 1, 3] = 3  # a slice with foreground is one, whatever else is missing
    assert slice_areas(labels, {"whole": [1, 2], "ignore": 3})[1:] == ([0, 4, 0], [False, False, True])


def test_slices_without_annotation_are_a_kind_of_their_own():
    votes = [[4, 0], [4, 0], [0, 4]]
    areas = {"liver": [0, 0, 3]}
    assert counts_by_content(votes, areas, [False, True, False]) == {
        "no foreground": [4, 0], "not annotated, or not wholly": [4, 0], "liver": [0, 4],
    }  # fmt: skip


def test_slices_with_foreground_that_every_pass_skipped_are_counted():
    cases = [
        {"votes": [[4, 0], [4, 0], [3, 1]], "foreground": [0, 5, 7]},
        {"votes": [[4, 0], [0, 4]], "foreground": [8, 20]},
    ]
    found = skipped_foreground(cases)
    assert found == {
        "slices_with_foreground": 4, "skipped_with_foreground": 2, "share_of_foreground_skipped": 13 / 40,
    }  # fmt: skip
    assert skipped_text(found) == (
        "WARNING: 2 of 4 slices with foreground were skipped, holding 32.50% of the foreground."
    )


def test_the_log_tells_shares_and_costs():
    risk = {"slices_with_foreground": 3, "skipped_with_foreground": 0, "share_of_foreground_skipped": 0.0}
    report = {
        **risk,
        "slices": 4,
        "choices": ["skip", "a"],
        "ratios": [0.25, 0.75],
        "gmacs": 1.0,
        "gmacs_unrouted": 2.0,
    }
    text = report_text({**report, "gmacs_unet": 3.0}, "b")
    assert text == (
        "0 of 3 slices with foreground were skipped, holding 0.00% of the foreground. Routing of 4 slices: skip 25.0%, "
        "a 75.0%. 1.00 GMACs with the decisions, 2.00 with b on every slice, 3.00 with nnU-Net's 2D U-Net."
    )
