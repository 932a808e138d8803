"""The slice filter of each Med-Adapter: how much of the neighbouring slices it adds to a slice."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_ext.report.figures.training import BLUE, GREY, ORANGE

_COLUMNS = 4
_REACH = 16  # slices to either side


def slice_filter_figure(kernels: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """One small plot per adapter: real part of the circular kernel over the offset in slices, offset 0 as a number.

    The weight of the slice itself, 1 at the start, would hide the others; it stands in the title. The largest imaginary
    part is drawn as a dotted line where it can be seen; symmetric filters have none.

    Args:
        kernels: adapter's title -> complex kernels `[D]` at offsets -D//2 .. (D-1)//2, one per fold.
    """
    rows = -(-len(kernels) // _COLUMNS)
    figure = Figure(figsize=(12.0, 1.9 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
    for ax, (title, several) in zip(axes, kernels.items(), strict=False):
        own = []
        for kernel in several:
            size = len(kernel)
            offsets = np.arange(size) - size // 2
            own.append(float(kernel[offsets == 0].real[0]))
            near = np.abs(offsets) <= _REACH
            around = np.where(offsets == 0, np.nan, kernel.real)[near]
            single = {"marker": "o", "markersize": 3} if len(several) == 1 else {}
            ax.plot(offsets[near], around, color=BLUE, linewidth=1.2, **single)
            if np.abs(kernel.imag).max() > 0.1 * np.abs(np.nan_to_num(around)).max():
                ax.plot(offsets[near], kernel.imag[near], color=ORANGE, linewidth=1.0, linestyle=":")
        ax.axhline(0, color=GREY, linewidth=0.8)
        span = dict.fromkeys(f"{value:.3f}" for value in (min(own), max(own)))
        ax.set_title(f"{title}: own slice {' to '.join(span)}", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    for ax in axes[len(kernels) :]:
        ax.set_axis_off()
    figure.supxlabel("offset [slices]", fontsize=9)
    figure.supylabel("weight", fontsize=9)
    return figure
