"""Slices whose labels are made once, when the bank is finished, as in the paper (arXiv 2206.06575, section 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_danet.choice import UNKNOWN

INTENSITY = 0.1  # by how much the authors' code (TransBTS's) scales and shifts intensities at most


@dataclass(frozen=True)
class LabelledSlices:
    """Where slices lie, and what they should get.

    Args:
        places: `[S, 4]`, of each slice the number of its case, and where it begins along D, H, W, in voxels.
        labels: `[S]`, of `choice.slice_labels`; slices whose label is unknown are left out.

    Raises:
        ConfigurationError: no label is known.
    """

    places: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        known = self.labels != UNKNOWN
        if not known.any():
            raise ConfigurationError(
                "No slice of the training cases is annotated, so that the decision network has nothing to learn. "
                "Check the labels."
            )
        object.__setattr__(self, "places", self.places[known])
        object.__setattr__(self, "labels", self.labels[known])

    def draw(self, number: int) -> Tensor:
        """Indices `[number]` of slices, by torch's random numbers; the first half is of those with foreground."""
        drawn = torch.randint(len(self.labels), (number,))
        holds = (self.labels > 0).nonzero()[:, 0]
        if len(holds):
            half = (number + 1) // 2
            drawn[:half] = holds[torch.randint(len(holds), (half,))]
        return drawn

    def text(self, titles: Sequence[str]) -> str:
        """How many there are, and of which label."""
        counts = torch.bincount(self.labels, minlength=len(titles) + 1).tolist()
        shares = ", ".join(
            f"{title} {count / len(self.labels):.1%}" for title, count in zip(["skip", *titles], counts, strict=True)
        )
        return f"Labels of {len(self.labels)} slices of the training cases, made once: {shares}."


def varied(slices: Tensor, axes: Sequence[int]) -> Tensor:
    """Slices `[N, C, H, W]`, each flipped or not along each of `axes`, scaled and shifted in intensity by chance.

    Their labels stay what they are. Flips, and a factor and a shift for each channel, are the paper's augmentation but
    for its crops.
    """
    for axis in axes:
        flips = torch.rand(len(slices), 1, 1, 1, device=slices.device) < 0.5
        slices = torch.where(flips, slices.flip(axis), slices)
    scale, shift = (INTENSITY * (2 * torch.rand(2, *slices.shape[:2], 1, 1, device=slices.device) - 1)).unbind(0)
    return slices * (1 + scale) + shift
