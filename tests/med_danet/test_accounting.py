"""What an epoch and a validation of Med-DANet have to tell: no trainer, no nnU-Net."""

import json

import numpy as np

from nnunet_ext.med_danet.accounting import EpochNotes, report_text, row_text, slice_areas


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
    areas, foreground = slice_areas(labels, {"whole": [1, 2], "inner": 2})
    assert areas == {"whole": [0, 4, 0], "inner": [0, 1, 0]}
    assert foreground == [0, 4, 0]


def test_the_log_tells_shares_and_costs():
    report = {"slices": 4, "choices": ["skip", "a"], "ratios": [0.25, 0.75], "gmacs": 1.0, "gmacs_unrouted": 2.0}
    text = report_text({**report, "gmacs_unet": 3.0}, "b")
    assert text == (
        "Routing of 4 slices: skip 25.0%, a 75.0%. 1.00 GMACs with the decisions, 2.00 with b on every slice, 3.00 "
        "with nnU-Net's 2D U-Net."
    )
