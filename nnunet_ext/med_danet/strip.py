"""A case as a strip: which candidate each slice got, and above it how much foreground the slice has."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SKIPPED = "#d9d9d9"
# From cheap to dear; a colour-blind safe sequence without grey, which is for skip.
CANDIDATES = ("#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2", "#E69F00", "#000000")


def strip_figure(votes: Sequence[Sequence[int]], foreground: Sequence[float], choices: Sequence[str]) -> Figure:
    """Two rows over the slice axis: foreground area in pixels, and the shares of the choices of each slice.

    A slice has one colour where all its tiles and mirrored passes agree.

    Args:
        votes: of each slice, the count of each choice; skip first.
        foreground: of each slice, pixels.
        choices: names, as many as counts.
    """
    figure = Figure(figsize=(8.4, 2.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.3, 1])
    numbers = range(len(votes))
    edges = [number - 0.5 for number in range(len(votes) + 1)]
    above.stairs(foreground, edges, fill=True, color="#595959", linewidth=0)
    above.set_ylabel("foreground\n[pixels]")
    above.set_ylim(0, max(1, *foreground) * 1.05)
    bottom = [0.0] * len(votes)
    for number, name in enumerate(choices):
        shares = [row[number] / max(1, sum(row)) for row in votes]
        colour = SKIPPED if number == 0 else CANDIDATES[(number - 1) % len(CANDIDATES)]
        below.bar(numbers, shares, width=1.0, bottom=bottom, color=colour, label=name, linewidth=0)
        bottom = [a + b for a, b in zip(bottom, shares, strict=True)]
    below.set_ylim(0, 1)
    below.set_yticks([])
    below.set_ylabel("chosen")
    below.set_xlabel("slice")
    below.set_xlim(-0.5, len(votes) - 0.5)
    below.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    figure.legend(*below.get_legend_handles_labels(), loc="outside upper left", ncols=6, fontsize=8, frameon=False)
    return figure
