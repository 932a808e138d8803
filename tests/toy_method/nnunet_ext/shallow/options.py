"""What Shallow's training can be told in a plans file, besides what every method knows."""

from dataclasses import dataclass

from nnunet_ext.planning.options import TrainingOptions, option


@dataclass(frozen=True)
class ShallowOptions(TrainingOptions):
    """Options of `ShallowTrainer`."""

    momentum: float = option(0.99, "momentum of SGD", low=0, high=1)
