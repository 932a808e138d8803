"""What Med-DANet's training can be told in a plans file, besides what every method knows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.planning.options import TrainingOptions, option

if TYPE_CHECKING:
    from nnunet_ext.med_danet.choice import ChoiceMetric

SOFTMAXES = ("cost", "score", "both", "none")
SCORES = ("mean", "pooled")
VIEWS = (1, 2, 4)
LABELS = ("batch", "once")


@dataclass(frozen=True)
class MedDANetOptions(TrainingOptions):
    """Options of `MedDANetTrainer`: first the bank is trained, then the decision network (section 4.1 of the paper).

    The epochs of the phases are shares of `num_epochs`, as 300, 400 and 450 are in the paper, unless they are given.
    """

    initial_lr: float = option(1e-3, "peak learning rate of the candidates (paper: 1e-4)", low=1e-12)
    weight_decay: float = option(1e-5, "of Adam, for candidates and decision network", low=0)
    decision_lr: float = option(0.01, "peak learning rate of the decision network (authors' code: 0.001)", low=1e-12)
    bank_epochs: int | None = option(None, "epochs of the bank, the rest is the decision network's; null: 8/9", low=0)
    bank_weights: str | None = option(
        None, "with bank_epochs=0: checkpoint whose finished candidates are taken", is_file=True
    )
    leave_epoch: int | None = option(None, "epoch in which leaving candidates stop; null: 2/3 of all epochs", low=1)
    leaving_candidates: list | None = option(None, "numbers from 1 of those that stop early; null: the cheaper half")
    alpha: float = option(0.001, "weight of cheapness in the choice metric", low=0, high=1)
    softmax: str = option("cost", "what of the choice metric goes through a softmax: cost, score, both or none")
    cost: float | None = option(
        None,
        "instead of alpha: Dice that the dearest candidate must gain on a slice over one at no cost",
        low=0,
    )
    score: str = option("mean", "Dice of a slice: mean over the classes, or pooled over them")
    labels: str = option("batch", "made of each batch's augmented slices, or once after the bank, as in the paper")
    label_views: int = option(1, "1, 2 or 4: that Dice is the mean over so many flips of the slice", low=1, high=4)
    class_weights: list | None = option(None, "of skip and each candidate; null: 0.5, 1.0, 1.1, 1.2, ...")
    slices_per_step: int = option(64, "3D: at most this many slices of a batch are used in a step, at random", low=1)

    skip_risk: float = option(
        0.0, "share of the validation's slices with foreground that may be skipped; sets skip_threshold", low=0, high=1
    )
    skip_threshold: float | None = option(
        None, "share of skip above which a slice is skipped; null: by skip_risk, at least 0.5", low=0.5, high=1
    )
    skip_neighbours: int | None = option(
        None, "slices on either side that must be above it too; null: 1 in 3D, 0 in 2d", low=0
    )

    def __post_init__(self) -> None:
        """Checks what limits of single options do not say."""
        known_values = {"softmax": SOFTMAXES, "score": SCORES, "label_views": VIEWS, "labels": LABELS}
        for name, known in known_values.items():
            if getattr(self, name) not in known:
                raise ConfigurationError(
                    f"Option '{name}' must be one of {', '.join(map(str, known))}, found {getattr(self, name)!r}."
                )
        if self.bank_epochs is not None and self.bank_epochs > self.num_epochs:
            raise ConfigurationError(
                f"Option 'bank_epochs' must be at most num_epochs ({self.num_epochs}), found {self.bank_epochs}."
            )
        if (self.bank_epochs == 0) != (self.bank_weights is not None):
            raise ConfigurationError(
                f"Without epochs for the bank its candidates come from a checkpoint: set both bank_epochs=0 and "
                f"bank_weights=CHECKPOINT, or neither; found bank_epochs={self.bank_epochs} and "
                f"bank_weights={self.bank_weights}."
            )
        weights = self.class_weights
        if weights is not None and any(type(w) not in (int, float) or not 0 < w < float("inf") for w in weights):
            raise ConfigurationError(f"Option 'class_weights' must be numbers above 0, found {weights!r}.")
        numbers = self.leaving_candidates
        if numbers is not None and any(type(n) is not int or n < 1 for n in numbers):
            raise ConfigurationError(f"Option 'leaving_candidates' must be numbers from 1, found {numbers!r}.")

    @property
    def decision_start(self) -> int:
        """The first epoch of the decision network; with `num_epochs` there is none."""
        if self.bank_epochs is not None:
            return self.bank_epochs
        return 1 if self.num_epochs == 1 else min(max(round(8 / 9 * self.num_epochs), 1), self.num_epochs - 1)

    @property
    def leave_start(self) -> int:
        """The first epoch without the leaving candidates, at most `decision_start`."""
        wanted = max(round(2 / 3 * self.num_epochs), 1) if self.leave_epoch is None else self.leave_epoch
        return min(wanted, self.decision_start)

    def metric(self, costs: Sequence[float]) -> "ChoiceMetric":
        """What a candidate is worth on a slice; `costs` as `choice.scaled_costs` gives them."""
        from nnunet_ext.med_danet.choice import ChoiceMetric  # imports torch, which reading options does not need

        return ChoiceMetric(costs, self.alpha, self.softmax, self.cost, self.score, self.label_views)

    def weights(self, candidates: int) -> list[float]:
        """Class weights for skip and so many candidates.

        Raises:
            ConfigurationError: `class_weights` has another length.
        """
        if self.class_weights is None:
            return [0.5, *(round(1 + 0.1 * number, 1) for number in range(candidates))]
        if len(self.class_weights) != candidates + 1:
            raise ConfigurationError(
                f"Option 'class_weights' needs {candidates + 1} numbers, for skip and {candidates} candidates, "
                f"found {len(self.class_weights)}."
            )
        return [float(weight) for weight in self.class_weights]

    def leaving(self, macs: Sequence[int]) -> list[int]:
        """Indices of the candidates that stop early, given what each costs; by default the cheaper half.

        Raises:
            ConfigurationError: `leaving_candidates` names one that does not exist, or all.
        """
        if self.leaving_candidates is None:
            return sorted(sorted(range(len(macs)), key=lambda index: macs[index])[: len(macs) // 2])
        chosen = {number - 1 for number in self.leaving_candidates}
        if max(chosen, default=-1) >= len(macs) or len(chosen) == len(macs):
            raise ConfigurationError(
                f"Option 'leaving_candidates' must name some of the {len(macs)} candidates, not all, "
                f"found {self.leaving_candidates}."
            )
        return sorted(chosen)
