"""The report's figures against descriptions that were recorded when somebody looked at the pictures.

After a change that is meant: `python tests/report/figures/test_recorded.py` writes them anew and draws the pictures
into the folder that is given; look at them.
"""

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from nnunet_ext.report.figures.overlay import case_figure, error_map, slices_figure, worst_slice
from nnunet_ext.report.figures.training import Topology, curves_figure

sys.path.insert(0, str(Path(__file__).parents[2]))
from report.figures.described import described

pytest.importorskip("matplotlib", minversion="3.10")  # before, contours were made of other artists

RECORDED = Path(__file__).with_name("recorded.json")
CLASSES = {(1,): "liver", (2,): "spleen", (5,): "a third"}


def labels():
    truth = np.zeros((9, 30, 24), np.uint8)
    truth[2:7, 6:20, 5:15] = 1
    truth[4, 20:26, 16:21] = 2
    prediction = np.roll(truth, 1, 1)
    prediction[3, 2:4, 20:22] = 2
    image = np.arange(truth.size, dtype=float).reshape(truth.shape) % 97 + 60 * truth
    return image, truth, prediction


def case(axis_of_thick_slices, with_image=True, in_lps=True):
    image, truth, prediction = labels()
    classes = {(1,): "liver", (2,): "spleen", (1, 2): "both"}
    spacing = [1.0, 1.5, 1.25]
    spacing[axis_of_thick_slices] = 4.0
    errors = error_map(truth, prediction, classes, None)
    where = worst_slice(errors, spacing, truth)
    return case_figure(image if with_image else None, truth, prediction, errors, where, spacing, classes, in_lps)


def overlay(**how):
    return slices_figure(*labels(), **{"spacing": (3.0, 1.0, 1.5), "classes": CLASSES, **how})


def curves(epochs, topology=False):
    rng = np.random.default_rng(0)
    rows = [rng.random(len(epochs)).round(3).tolist() for _ in range(4)]
    moved = Topology(epochs, [0.2 + 0.1 * e for e in epochs], [0.5 - 0.1 * e for e in epochs], list(epochs[1::2]))
    return curves_figure(list(epochs), *rows, moved if topology else None)


FIGURES = {
    "overlay": lambda: overlay(title="case 7", scores={"liver": 0.912, "a third": 0.5}, in_lps=True, rows=2),
    "overlay of nothing": lambda: slices_figure(
        np.zeros((4, 12, 10)), *2 * [np.zeros((4, 12, 10), np.uint8)], spacing=(1, 1, 1), classes={(1,): "liver"}
    ),
    "overlay of a few millimetres": lambda: overlay(spacing=(0.2, 0.1, 0.1), rows=1),
    "overlay of large voxels": lambda: overlay(spacing=(9.0, 9.0, 9.0), axis=1, rows=1),
    "case": lambda: case(0),
    "case from the front": lambda: case(1),
    "case from the side": lambda: case(2, in_lps=False),
    "case without image": lambda: case(0, with_image=False),
    "curves": lambda: curves(range(5)),
    "curves of one epoch": lambda: curves(range(3, 4)),
    "curves with topology": lambda: curves(range(4), topology=True),
}


def made(name):
    """The figure with matplotlib's own settings: others in the process may have changed them, as nnU-Net does."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = FIGURES[name]()
        return figure, described(figure)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_what_was_recorded(name):
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert json.loads(json.dumps(made(name)[1])) == recorded[name]


if __name__ == "__main__":
    content = {}
    for name in FIGURES:
        figure, content[name] = made(name)
        figure.savefig(Path(sys.argv[1]) / f"{name}.png", dpi=70)
    RECORDED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
