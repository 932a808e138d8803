"""The colours: no two alike, to whoever looks."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage.color import rgb2lab

from nnunet_ext.report.figures.palette import ERRORS, PALETTE, label_colour

# Linear RGB as full protanopia and deuteranopia see it: Machado, Oliveira and Fernandes, "A Physiologically-based Model
# for Simulation of Color Vision Deficiency", IEEE TVCG 15(6), 2009, table of severity 1.0.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def seen(colours, vision):
    """CIELAB of the colours as that vision has them."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)  # sRGB, IEC 61966-2-1
    linear = np.clip(linear @ np.array(VISIONS[vision]).T, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(rgb[None])[0]


def nearest(colours, vision):
    """The smallest distance of two colours."""
    lab = seen(colours, vision)
    return np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(len(lab), 1)].min()


@pytest.mark.parametrize("vision", VISIONS)
def test_classes_and_errors_can_be_told_apart(vision):
    """In CIELAB a distance of 2 is just seen; the classes are those before the shades."""
    colours = [*PALETTE, *(colour for _, colour in ERRORS.values())]
    assert nearest(colours, vision) >= (20 if vision == "normal" else 16)


def test_the_simulation_knows_what_red_green_blind_eyes_mix_up():
    """Vermilion and red are one for deuteranopes; blue and yellow stay far apart."""
    assert nearest(["#FF1A1A", "#D55E00"], "deuteranopia") < 5 < 20 < nearest(["#FF1A1A", "#D55E00"], "normal")
    assert all(nearest(["#0000FF", "#FFFF00"], vision) > 100 for vision in VISIONS)


def test_shades_after_the_palette_are_lighter_then_darker():
    for position, colour in enumerate(PALETTE):
        plain = np.array(to_rgb(colour))
        assert label_colour(position) == pytest.approx(plain)
        assert label_colour(position + len(PALETTE)) == pytest.approx((plain + 1) / 2)
        assert label_colour(position + 2 * len(PALETTE)) == pytest.approx(0.55 * plain)


def test_no_two_labels_share_a_colour():
    colours = [label_colour(k) for k in range(3 * len(PALETTE))]
    assert len(set(colours)) == len(colours)
