"""What the search and the training of DiNTS can be told in a plans file, besides what every method knows."""

from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_ext.dints.search_space import DEPTHS, level_strides
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.planning.options import TrainingOptions, option
from nnunet_ext.planning.patches import smaller_patch

SCHEDULES = ("poly", "steps")
PAPER_PATCH = 96  # voxels along each axis


@dataclass(frozen=True)
class DiNTSOptions(TrainingOptions):
    """Options of `DiNTSTrainer`, and with `search_` in front (and sigma) of `DiNTSSearchTrainer`.

    The search's defaults are the paper's (section 4.1), the training's nnU-Net's. The search takes `seed`, `save_every`
    and the numbers of iterations of an epoch from the common options; its number of epochs follows from its iterations.
    """

    schedule: str = option("poly", "learning rate: 'poly' (nnU-Net), 'steps' (the paper: warm-up, then halvings)")
    momentum: float = option(0.99, "of SGD (the paper: 0.9)", low=0, high=1)
    nesterov: bool = option(True, "Nesterov momentum (the paper: false)")
    warmup_iterations: int = option(1000, "'steps': linear warm-up from an eighth of initial_lr", low=0)
    halve_every: int = option(8000, "'steps': iterations after the warm-up between two halvings", low=1)

    sigma: float = option(0.8, "memory budget, a share of that of all edges (the paper: 0.2, 0.5, 0.8)", low=0, high=1)
    search_layers: int = option(12, "layers L", low=1)
    search_depths: int = option(4, "scales D", low=DEPTHS.start, high=DEPTHS.stop - 1)
    search_base_features: int = option(16, "channels at full resolution; the final network doubles them", low=1)
    search_patch_size: list | None = option(None, "voxels; null: the plan's, made smaller until it has at most 96^3")
    search_batch_size: int = option(2, "patches of each of the two steps (the paper: 8, on 8 GPUs)", low=1)
    search_warmup_iterations: int = option(1000, "weights only, learning rate rising", low=0)
    search_weight_iterations: int = option(10000, "weights only, after the warm-up", low=0)
    search_joint_iterations: int = option(10000, "a step of the weights and one of the architecture each", low=1)
    search_lr: float = option(0.025, "peak learning rate of the weights, per patch of the batch", low=1e-12)
    search_halve_every: int = option(8000, "iterations after the warm-up between two halvings of that rate", low=1)
    search_weight_decay: float = option(4e-5, "of the weights", low=0)
    search_architecture_lr: float = option(0.008, "learning rate of Adam on the architecture's logits", low=1e-12)
    search_topology_weight: float = option(0.001, "lambda, the weight of the topology loss", low=0)
    search_loss_floor: float = option(0.0, "1e-5: the reference implementation's logarithms; 0: exact ones", low=0)
    search_checkpoint_cells: bool = option(False, "compute cells again in the backward pass: less memory, slower")

    def __post_init__(self) -> None:
        """Checks what limits of single options do not say."""
        if self.schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise ConfigurationError(f"Option 'schedule' must be one of {known}, found {self.schedule!r}.")
        if self.nesterov and self.momentum == 0:
            raise ConfigurationError("Option 'nesterov' needs a momentum above 0; set nesterov=false.")
        patch = self.search_patch_size
        if patch is not None and (not patch or any(type(p) is not int or p < 1 for p in patch)):
            raise ConfigurationError(f"Option 'search_patch_size' must be positive integers, found {patch!r}.")

    @property
    def search_iterations(self) -> int:
        """Iterations of the whole search."""
        return self.search_warmup_iterations + self.search_weight_iterations + self.search_joint_iterations

    @property
    def search_joint_start(self) -> int:
        """The first iteration in which the architecture moves."""
        return self.search_warmup_iterations + self.search_weight_iterations


def search_patch(options: DiNTSOptions, planned: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """The patch of the search in voxels: the option's, or the planned one made smaller until it has at most 96^3.

    That is the paper's size; the supernet keeps about twice the feature maps of the final network.
    """
    if options.search_patch_size is not None:
        return list(options.search_patch_size)
    used = level_strides(strides, options.search_depths, use_downsample=True)
    return smaller_patch([int(p) for p in planned], used, PAPER_PATCH**3)
