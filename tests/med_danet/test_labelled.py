"""Slices with labels that are made once: which are drawn, and how they are varied."""

import pytest
import torch

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_danet.choice import UNKNOWN
from nnunet_ext.med_danet.labelled import LabelledSlices, varied


def places(count):
    return torch.arange(4 * count).view(count, 4)


def test_slices_without_a_label_are_never_drawn():
    made = LabelledSlices(places(4), torch.tensor([0, UNKNOWN, 2, UNKNOWN]))
    assert made.labels.tolist() == [0, 2] and torch.equal(made.places, places(4)[[0, 2]])
    with pytest.raises(ConfigurationError, match="No slice of the training cases is annotated"):
        LabelledSlices(places(2), torch.tensor([UNKNOWN, UNKNOWN]))


def test_half_of_what_is_drawn_holds_foreground():
    torch.manual_seed(0)
    made = LabelledSlices(places(200), torch.tensor([0] * 198 + [1, 3]))
    drawn = torch.stack([made.draw(7) for _ in range(200)])
    assert (made.labels[drawn[:, :4]] > 0).all()
    assert set(drawn[:, :4].flatten().tolist()) == {198, 199}
    assert len(drawn[:, 4:].unique()) > 180, "the others are of all"
    assert made.draw(1).tolist()[0] in (198, 199)
    assert (LabelledSlices(places(3), torch.zeros(3, dtype=torch.int64)).draw(5) < 3).all()


def test_labels_are_counted():
    made = LabelledSlices(places(5), torch.tensor([0, 2, 2, UNKNOWN, 0]))
    assert made.text(["A", "B"]) == "Labels of 4 slices of the training cases, made once: skip 50.0%, A 0.0%, B 50.0%."


def test_slices_are_flipped_scaled_and_shifted_one_by_one():
    torch.manual_seed(0)
    x = torch.randn(400, 2, 3, 4)
    for axes, flips in (([], [()]), ([-1], [(), (-1,)]), ([-2, -1], [(), (-2,), (-1,), (-2, -1)])):
        y, found = varied(x, axes), []
        for before, after in zip(x, y, strict=True):
            for flip in flips:  # scale and shift of each channel, by least squares
                moved = before.flip(flip).flatten(1)
                line = torch.stack([moved, torch.ones_like(moved)], 2)
                solution = torch.linalg.lstsq(line, after.flatten(1)[..., None]).solution
                if torch.allclose(line @ solution, after.flatten(1)[..., None], atol=1e-5):
                    found.append((flip, *solution[..., 0].T.tolist()))
        assert len(found) == 400
        counts = [sum(flip == one for one, _, _ in found) for flip in flips]
        assert min(counts) > 0.7 * 400 / len(flips)
        scales, shifts = (torch.tensor([row[k] for row in found]) for k in (1, 2))
        assert 0.09 < (scales - 1).abs().max() <= 0.1001 and 0.09 < shifts.abs().max() <= 0.1001
        assert ((scales[:, 0] - scales[:, 1]).abs() > 1e-4).float().mean() > 0.9, "each channel its own"
