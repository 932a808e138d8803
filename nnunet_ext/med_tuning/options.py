"""What Med-Tuning's training can be told in a plans file, besides what every method knows."""

import math
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.planning.options import TrainingOptions, option

OPTIMIZERS = ("adamw", "adam")
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz")


@dataclass(frozen=True)
class MedTuningOptions(TrainingOptions):
    """Options of `MedTuningTrainer`; the paper's own recipe is the preset `med_tuning/paper-recipe`."""

    num_epochs: int = option(250, "epochs of the training", low=1)
    initial_lr: float = option(5e-4, "peak learning rate", low=1e-12)
    weight_decay: float = option(0.01, "weight decay of the optimizer", low=0)
    optimizer: str = option("adamw", "adamw, or adam: with amsgrad, decay as L2 on all that is tuned (authors' code)")
    warmup_epochs: int | None = option(None, "epochs in which the rate rises; null: a tenth of all", low=0)
    cosine_epochs: int | None = option(None, "length of the cosine after them; null: what is left", low=1)
    pretrained: bool = option(True, "start from pretrained weights of the backbone; false: from random ones")
    weights_file: str | None = option(None, "file of these weights; null: timm's cache or hub", is_file=True)
    weights_sha256: str | None = option(None, "SHA256 that the weights must have; null: any")

    def __post_init__(self) -> None:
        """Checks what limits of single options do not say."""
        if self.optimizer not in OPTIMIZERS:
            raise ConfigurationError(f"Option 'optimizer' must be {' or '.join(OPTIMIZERS)}, found '{self.optimizer}'.")
        if self.warmup > self.num_epochs:
            raise ConfigurationError(
                f"Option 'warmup_epochs' must be at most num_epochs ({self.num_epochs}), found {self.warmup_epochs}."
            )
        if self.cosine_epochs is not None and self.cosine_epochs < self.num_epochs - self.warmup:
            raise ConfigurationError(
                f"Option 'cosine_epochs' must cover the {self.num_epochs - self.warmup} epochs after the warm-up, "
                f"found {self.cosine_epochs}."
            )
        if self.weights_file is not None and Path(self.weights_file).suffix not in WEIGHT_FILES:
            raise ConfigurationError(
                f"Option 'weights_file' must end with one of {', '.join(WEIGHT_FILES)}, found '{self.weights_file}'."
            )

    @property
    def warmup(self) -> int:
        """Epochs of the warm-up."""
        return round(self.num_epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch: the authors' warm-up (a quarter of a cosine), then half a cosine down."""
        if epoch < self.warmup:
            return self.initial_lr * (1 - math.cos(math.pi / 2 * (epoch + 1) / self.warmup))
        length = self.cosine_epochs or max(1, self.num_epochs - self.warmup)
        passed = min(1.0, (epoch - self.warmup) / length)
        return self.initial_lr * (1 + math.cos(math.pi * passed)) / 2
