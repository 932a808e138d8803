"""The slice filter that each Med-Adapter learns: W_F, a weight per frequency along the slices, is a circular kernel."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def slice_filters(network: Any) -> dict[str, dict[str, list[float]]]:
    """Name of each frequency branch in a network -> its `W_F` and `b_F`, one number per frequency."""
    from nnunet_ext.med_tuning.adapters import FrequencyBranch  # torch, which the report does without

    return {
        name: {"W_F": branch.weight.flatten().tolist(), "b_F": branch.bias.flatten().tolist()}
        for name, branch in network.named_modules()
        if isinstance(branch, FrequencyBranch)
    }


def kernel(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """What the filter adds up: complex weights `[D]` of the slices at offsets -D//2 .. (D-1)//2, from `W_F` `[D]`.

    At the start, with all weights 1, it is 1 at offset 0 and 0 elsewhere. A symmetric `W_F` has a real kernel.
    """
    return np.fft.fftshift(np.fft.ifft(np.asarray(weights, float)))


def change(weights: Sequence[float] | np.ndarray) -> float:
    """How far the filter is from its start: the largest |W_F - 1|."""
    return float(np.abs(np.asarray(weights, float) - 1).max())
