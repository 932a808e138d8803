"""What the search and the training of DiNTS can be told in a plans file, besides what every method knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.planning.options import TrainingOptions, option

SCHEDULES = ("poly", "steps")


@dataclass(frozen=True)
class DiNTSOptions(TrainingOptions):
    """Options of `DiNTSTrainer`; the defaults are nnU-Net's."""

    schedule: str = option("poly", "learning rate: 'poly' (nnU-Net), 'steps' (the paper: warm-up, then halvings)")
    momentum: float = option(0.99, "of SGD (the paper: 0.9)", low=0, high=1)
    nesterov: bool = option(True, "Nesterov momentum (the paper: false)")
    warmup_iterations: int = option(1000, "'steps': linear warm-up from an eighth of initial_lr", low=0)
    halve_every: int = option(8000, "'steps': iterations after the warm-up between two halvings", low=1)
    code_origin: dict | None = option(None, "where the architecture code comes from; nnunet_ext plan --code writes it")

    def __post_init__(self) -> None:
        """Checks what limits of single options do not say."""
        if self.schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise ConfigurationError(f"Option 'schedule' must be one of {known}, found {self.schedule!r}.")
        if self.nesterov and self.momentum == 0:
            raise ConfigurationError("Option 'nesterov' needs a momentum above 0; set nesterov=false.")

    @classmethod
    def from_plans(cls, values: Mapping[str, Any] | None) -> "DiNTSOptions":
        """As `TrainingOptions`'s; plans of before the search had its own hold options of it, which are passed over."""
        if isinstance(values, Mapping):
            values = {key: value for key, value in values.items() if key != "sigma" and not key.startswith("search_")}
        return super().from_plans(values)


@dataclass(frozen=True)
class DiNTSSearchOptions(TrainingOptions):
    """Options of `DiNTSSearchTrainer`; the defaults are the paper's (section 4.1)."""

    num_epochs: int = option(84, "epochs of the search (the paper: 21 000 iterations)", low=1)
    weight_epochs: int = option(44, "of these, the first in which only the weights learn (the paper: 11 000)", low=0)
    initial_lr: float = option(0.025, "peak learning rate of the weights, for each patch of the batch", low=1e-12)
    warmup_iterations: int = option(1000, "in which that rate rises from an eighth", low=0)
    halve_every: int = option(8000, "iterations after the warm-up between two halvings of that rate", low=1)
    weight_decay: float = option(4e-5, "of the weights", low=0)
    sigma: float = option(0.8, "memory budget, a share of that of all edges (the paper: 0.2, 0.5, 0.8)", low=0, high=1)
    decode_within_budget: bool = option(True, "the code meets sigma; false: the most probable code, as the reference")
    architecture_lr: float = option(0.008, "learning rate of Adam on the architecture's logits", low=1e-12)
    topology_weight: float = option(0.001, "lambda, the weight of the topology loss", low=0)
    loss_floor: float = option(0.0, "1e-5: the reference implementation's logarithms; 0: exact ones", low=0)

    def __post_init__(self) -> None:
        """Checks what limits of single options do not say."""
        if self.weight_epochs >= self.num_epochs:
            raise ConfigurationError(
                f"Option 'weight_epochs' must be below num_epochs ({self.num_epochs}), or the architecture never "
                f"moves; found {self.weight_epochs}."
            )

    @property
    def joint_start(self) -> int:
        """The first iteration in which the architecture moves."""
        return self.weight_epochs * self.num_iterations_per_epoch

    @property
    def iterations(self) -> int:
        """Of the whole search."""
        return self.num_epochs * self.num_iterations_per_epoch
