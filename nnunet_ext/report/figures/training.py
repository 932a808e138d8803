"""Loss and Dice along a training, with the moments at which a network's topology was changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7f7f7f"


@dataclass(frozen=True)
class Topology:
    """How a sparse network's masks moved: numbers per epoch, and the epochs within which masks were updated."""

    epochs: Sequence[int]
    ever_active: Sequence[float]  # share of all kernels
    drop_rate: Sequence[float]  # share of the active kernels
    updated: Sequence[int]


def curves_figure(
    epochs: Sequence[int],
    train_loss: Sequence[float],
    val_loss: Sequence[float],
    dice: Sequence[float],
    smoothed_dice: Sequence[float],
    topology: Topology | None = None,
) -> Figure:
    """Loss and pseudo Dice over epochs, and with a topology a third plot of it.

    Epochs in which the topology was updated have a tick below the curves.
    """
    columns = 2 if topology is None else 3
    figure = Figure(figsize=(4.2 * columns, 2.9), layout="constrained")
    axes = figure.subplots(1, columns)
    _plot(axes[0], epochs, [(train_loss, BLUE, "training"), (val_loss, ORANGE, "validation")])
    axes[0].set_ylabel("loss")
    axes[1].plot(epochs, dice, color=GREEN, alpha=0.45, linewidth=1, label="each epoch")
    _plot(axes[1], epochs, [(smoothed_dice, GREEN, "moving average")])
    axes[1].set_ylabel("pseudo Dice")
    if topology is not None:
        for ax in axes[:2]:
            _mark_updates(ax, topology.updated)
        _draw_topology(axes[2], topology)
    above_the_marks = (0, 0.04, 1, 0.96)
    for ax, place in zip(axes, ("upper right", "lower right", "lower left"), strict=False):
        ax.legend(fontsize=8, framealpha=0.7, edgecolor="none", loc=place, bbox_to_anchor=above_the_marks)
    return figure


def _plot(ax: Axes, x: Sequence[int], lines: Sequence[tuple[Sequence[float], str, str]]) -> None:
    # A single epoch has no line to draw.
    marker = "o" if len(x) == 1 else None
    for values, colour, label in lines:
        ax.plot(x, values, color=colour, linewidth=1.6, label=label, marker=marker)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(x) == 1:
        ax.set_xlim(x[0] - 1, x[0] + 1)
    ax.grid(color="#e5e5e5", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)


def _mark_updates(ax: Axes, updated: Sequence[int]) -> None:
    """Ticks just above the lower edge; they do not change the limits of the axis."""
    ticks = ax.vlines(
        updated, 0.0, 0.045, transform=ax.get_xaxis_transform(), color=GREY, linewidth=0.6, label="topology update"
    )
    ticks.set_in_layout(False)


def _draw_topology(ax: Axes, topology: Topology) -> None:
    percent = [100 * value for value in topology.ever_active]
    rate = [100 * value for value in topology.drop_rate]
    _plot(ax, topology.epochs, [(percent, BLUE, "kernels ever active"), (rate, ORANGE, "dropped per update")])
    ax.set_ylabel("share [%]")
    ax.set_ylim(0, None)
