"""When a search does what: functions of the iteration alone, so that a resumed search is the same one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

from nnunet_ext.dints.options import DiNTSOptions

JOINT_COST = 2.5  # seconds of a joint iteration over those of a weights-only one, until it is measured


def stepped_rate(iteration: int, peak: float, first: float, warmup: int, halve_every: int) -> float:
    """The paper's learning rate (section 4.1): linear from `first` to `peak`, then halved every so many iterations."""
    if iteration < warmup:
        return first + (peak - first) * iteration / warmup
    return peak * 0.5 ** ((iteration - warmup) // halve_every)


@dataclass(frozen=True)
class SearchSchedule:
    """The phases of a search: warm-up and weights alone, then weights and architecture in turns."""

    options: DiNTSOptions

    def is_joint(self, iteration: int) -> bool:
        """Whether the iteration (from 0) moves the architecture too."""
        return iteration >= self.options.search_joint_start

    def ramp(self, iteration: int) -> float:
        """t / t_all of equation 11, t counting the joint iterations from 1."""
        done = iteration - self.options.search_joint_start + 1
        return min(1.0, max(0.0, done / self.options.search_joint_iterations))

    @property
    def peak_rate(self) -> float:
        """The weights' highest learning rate: the option's for each patch of a batch."""
        return self.options.search_lr * self.options.search_batch_size

    def rate(self, iteration: int) -> float:
        """The weights' learning rate, which starts at that of one patch."""
        options = self.options
        warmup, halve_every = options.search_warmup_iterations, options.search_halve_every
        return stepped_rate(iteration, self.peak_rate, options.search_lr, warmup, halve_every)

    def epochs(self, iterations_per_epoch: int) -> int:
        """Epochs of the whole search; the last may go on beyond its iterations."""
        return math.ceil(self.options.search_iterations / iterations_per_epoch)

    def text(self, epochs: int, patch_size: Sequence[int]) -> str:
        """What a search says of itself at its start; the patch in voxels."""
        options = self.options
        return (
            f"Search of {epochs} epochs: the architecture moves from iteration {options.search_joint_start} of "
            f"{options.search_iterations} on, budget sigma {options.sigma}. Patch {list(patch_size)}, batch "
            f"{options.search_batch_size}."
        )

    def seconds_left(self, iteration: int, iterations: int, seconds: Mapping[bool, float]) -> float:
        """An estimate: iterations left of each kind at the pace of the last epoch of that kind.

        Args:
            iteration: the next one.
            iterations: of the whole search.
            seconds: of an iteration, by whether it is a joint one; what is not measured yet is missing.
        """
        weights = seconds.get(False, seconds.get(True, 0.0) / JOINT_COST)
        joint = seconds.get(True, JOINT_COST * weights)
        of_weights = max(0, self.options.search_joint_start - iteration)
        return of_weights * weights + (iterations - iteration - of_weights) * joint


class Pace:
    """Measures what an iteration of each phase takes, and estimates what is left of a search."""

    def __init__(self, schedule: SearchSchedule) -> None:
        self.schedule = schedule
        self.seconds: dict[bool, float] = {}  # of an iteration, by whether it is a joint one

    def start(self, iteration: int) -> None:
        """An epoch begins with this iteration."""
        self._start, self._first = monotonic(), iteration

    def stop(self, iteration: int) -> None:
        """An epoch ended before this iteration."""
        joint = self.schedule.is_joint(iteration - 1)
        self.seconds[joint] = (monotonic() - self._start) / max(1, iteration - self._first)

    def left(self, iteration: int, iterations: int) -> timedelta:
        """Until the end of a search of so many iterations, in whole seconds."""
        return timedelta(seconds=round(self.schedule.seconds_left(iteration, iterations, self.seconds)))
