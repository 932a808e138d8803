"""When a search does what: functions of the iteration alone, so that a resumed search is the same one."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from time import monotonic
from typing import Any

from nnunet_ext.dints.options import DiNTSSearchOptions

_EPOCHS = 5  # whose median is the pace


def stepped_rate(iteration: int, peak: float, first: float, warmup: int, halve_every: int) -> float:
    """The paper's learning rate (section 4.1): linear from `first` to `peak`, then halved every so many iterations."""
    if iteration < warmup:
        return first + (peak - first) * iteration / warmup
    return peak * 0.5 ** ((iteration - warmup) // halve_every)


@dataclass(frozen=True)
class SearchSchedule:
    """The phases of a search: warm-up and weights alone, then weights and architecture in turns."""

    options: DiNTSSearchOptions
    batch_size: int

    def is_joint(self, iteration: int) -> bool:
        """Whether the iteration (from 0) moves the architecture too."""
        return iteration >= self.options.joint_start

    def ramp(self, iteration: int) -> float:
        """t / t_all of equation 11, t counting the joint iterations from 1."""
        done, start = iteration + 1, self.options.joint_start
        return min(1.0, max(0.0, (done - start) / (self.options.iterations - start)))

    @property
    def peak_rate(self) -> float:
        """The weights' highest learning rate: the option's for each patch of a batch."""
        return self.options.initial_lr * self.batch_size

    def rate(self, iteration: int) -> float:
        """The weights' learning rate, which starts at an eighth of the peak (the paper: 0.025 of 0.2)."""
        warmup, halve_every = self.options.warmup_iterations, self.options.halve_every
        return stepped_rate(iteration, self.peak_rate, self.peak_rate / 8, warmup, halve_every)

    def text(self) -> str:
        """What a search says of itself at its start."""
        options = self.options
        return (
            f"Search of {options.num_epochs} epochs: the architecture moves from epoch {options.weight_epochs} on, "
            f"budget sigma {options.sigma}."
        )


class Pace:
    """What an iteration of each phase takes, validation and loading included, and when the search will end.

    Epochs are timed whole, from one end to the next. Before the architecture moves, one of its steps is tried, so that
    the time of the second phase is measured too and not guessed.

    Attributes:
        seconds: of an iteration in the last epochs, by whether it is a joint one.
        step: seconds of a step of the architecture, as it was tried.
    """

    def __init__(self, schedule: SearchSchedule, clock: Callable[[], float] = monotonic) -> None:
        self.schedule, self.clock = schedule, clock
        self.seconds: dict[bool, list[float]] = {False: [], True: []}
        self.step: float | None = None
        self._start: float | None = None
        self._first = 0

    def start(self, iteration: int) -> None:
        """The first epoch begins with this iteration; the others begin where the one before ended."""
        if self._start is None:
            self._start, self._first = self.clock(), iteration

    def try_step(self, step: Callable[[], Any]) -> None:
        """Times a step of the architecture that changes nothing, by its second call; the epoch's time leaves it out."""
        began = self.clock()
        step()
        middle = self.clock()
        step()
        end = self.clock()
        self.step = end - middle
        if self._start is not None:
            self._start += end - began

    def stop(self, iteration: int) -> None:
        """An epoch ended before this iteration."""
        assert self._start is not None
        now, joint = self.clock(), self.schedule.is_joint(iteration - 1)
        pace = (now - self._start) / max(1, iteration - self._first)
        self.seconds[joint] = [*self.seconds[joint], pace][-_EPOCHS:]
        self._start, self._first = now, iteration

    def left(self, iteration: int) -> timedelta:
        """Until the end of the search, in whole seconds."""
        weights = median(self.seconds[False] or [0.0])  # a search that is continued in its second phase needs none
        joint = median(self.seconds[True]) if self.seconds[True] else weights + (self.step or 0.0)
        options = self.schedule.options
        of_weights = max(0, options.joint_start - iteration)
        of_both = max(0, options.iterations - iteration - of_weights)
        return timedelta(seconds=round(of_weights * weights + of_both * joint))
