"""What E2ENet's training can be told in a plans file, besides what every method knows."""

from dataclasses import dataclass

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.planning.options import TrainingOptions, option


@dataclass(frozen=True)
class E2ENetOptions(TrainingOptions):
    """Options of `E2ENetTrainer`; the defaults are the paper's (section 3.1; spec of the released code)."""

    update_every: int = option(1200, "optimizer steps between two topology updates", low=1)
    drop_rate: float = option(0.5, "share of active kernels dropped at the first update", low=0, high=1)
    final_drop_rate: float = option(0.001, "share dropped at the end of the cosine", low=0, high=1)
    freeze_topology: bool = option(False, "keep the masks as they are at the start")

    def __post_init__(self) -> None:
        """Checks what limits of single options do not say."""
        if self.final_drop_rate > self.drop_rate:
            raise ConfigurationError(
                f"Option 'final_drop_rate' must be at most drop_rate ({self.drop_rate}), found {self.final_drop_rate}."
            )
