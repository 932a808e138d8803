"""DiNTSSearchTrainer: searches a topology on the user's data (He et al., CVPR 2021, sections 3.4 to 3.6 and 4.1).

Weights alone learn first, on one half of the training cases; then each step of the weights is followed by one of the
architecture's logits, on the other half. Every epoch of that phase writes the code which the logits mean by then.
"""

import math
import os
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.dints.architecture_step import ArchitectureOptimizer
from nnunet_ext.dints.halves import PairedBatches, finish, kept_halves
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet, search_arch_kwargs
from nnunet_ext.dints.options import DiNTSOptions, search_patch
from nnunet_ext.dints.schedule import Pace, SearchSchedule
from nnunet_ext.dints.snapshot import CodeFiles, Snapshot, mean_dice, row_text
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.planning.options import PLANS_KEY, architecture_options, refuse_unknown
from nnunet_ext.trainers.base import CUDA, ExtTrainer, NoScheduler, named_arch_kwargs
from nnunet_ext.weights.random_state import random_state, set_random_state

DISCRETE = "discrete_"  # prefix of what the discrete net scores in validation


class DiNTSSearchTrainer(ExtTrainer):
    """Searches; the fold's folder gets `architecture.json` and the best codes by validation."""

    method = "dints_search"
    network_class = DiNTSSearchNet
    options_class = DiNTSOptions
    own_patch = True
    options: DiNTSOptions

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: Any = CUDA) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        options, planned = self.options, self.plans_manager.get_configuration(configuration)
        # Patch and batch of the search; the plans, which are saved beside the model, stay as they are.
        patch = search_patch(options, planned.patch_size, planned.pool_op_kernel_sizes)
        sizes = {"patch_size": patch, "batch_size": options.search_batch_size}
        self.configuration_manager = ConfigurationManager({**planned.configuration, **sizes})
        self.search = SearchSchedule(options)
        self.num_epochs = self.search.epochs(self.num_iterations_per_epoch)
        self.initial_lr = self.search.peak_rate
        self.weight_decay = options.search_weight_decay
        self.iterations = 0
        self.codes = CodeFiles(self.output_folder)
        self.pace = Pace(self.search)
        self.snapshot: Snapshot | None = None
        self._half = 0  # of the training cases, from which the next loader takes
        self.discrete_dice: float | None = None
        self._random_state: dict[str, Any] | None = None

    @classmethod
    def arch_kwargs_from_configuration(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """The supernet that the options describe, over the plan's strides."""
        options = DiNTSOptions.from_plans(configuration_manager.configuration.get(PLANS_KEY))
        planned = named_arch_kwargs(configuration_manager, DiNTSNet) or {}
        refuse_unknown(planned, architecture_options(DiNTSNet), f"arch_kwargs of {DiNTSNet.__name__}")
        strides = configuration_manager.pool_op_kernel_sizes
        return search_arch_kwargs(options, strides, planned.get("use_downsample", True))

    @classmethod
    def checked_options(cls, plans: dict, configuration: str, dataset_json: dict) -> DiNTSOptions:
        """As `ExtTrainer`'s; and the search's own patch must have as many axes as the plan's."""
        options = super().checked_options(plans, configuration, dataset_json)
        assert isinstance(options, DiNTSOptions)
        axes = len(PlansManager(plans).get_configuration(configuration).patch_size)
        if (patch := options.search_patch_size) is not None and len(patch) != axes:
            raise ConfigurationError(f"Option 'search_patch_size' needs {axes} numbers for this plan, found {patch}.")
        return options

    def _do_i_compile(self) -> bool:
        return False

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """SGD for the weights; the logits have their own Adam."""
        weights = [p for p in self.network.parameters() if p.requires_grad]
        return torch.optim.SGD(weights, self.initial_lr, 0.9, weight_decay=self.weight_decay), NoScheduler()

    def on_initialized(self) -> None:
        """Makes the optimizer of the logits."""
        self.architecture = ArchitectureOptimizer(self.net, self.configuration_manager.patch_size, self.options)

    @property
    def is_joint(self) -> bool:
        """Whether the next iteration moves the architecture too."""
        return self.search.is_joint(self.iterations)

    def halves(self, keys: list[str]) -> tuple[list[str], list[str]]:
        """train1 and train2: the training cases shuffled by the seed and cut in two; saved, and kept on `--c`."""
        path = os.path.join(self.output_folder, "search_halves.json")
        return kept_halves(path, keys, self.seed, continued=self.current_epoch > 0, write=self.local_rank == 0)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's, with one half of the training cases."""
        training, validation = self.do_split()
        previous = self.folder_with_segs_from_previous_stage
        folder, keys = self.preprocessed_dataset_folder, (self.halves(list(training))[self._half], validation)
        first, second = (self.dataset_class(folder, k, folder_with_segs_from_previous_stage=previous) for k in keys)
        return first, second

    def rates_at(self, epoch: int, num_epochs: int) -> dict[str, float]:
        """The weights' rate, which counts iterations, whatever the length."""
        return {"learning rate": self.search.rate(epoch * self.num_iterations_per_epoch)}

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Pairs of batches from the two halves; the second comes only when the architecture moves."""
        self._half = 0
        weights, validation = super().get_dataloaders()
        self._half = 1
        architecture, unused = super().get_dataloaders()
        finish(unused)
        return PairedBatches(weights, architecture, lambda: self.is_joint), validation

    def on_train_start(self) -> None:
        """ExtTrainer's; a search that is continued then goes on with the random numbers at which it stopped."""
        super().on_train_start()
        self.print_to_log_file(self.search.text(self.num_epochs, self.configuration_manager.patch_size))
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def on_train_end(self) -> None:
        """nnU-Net's, and the end of the loaders that it does not know."""
        super().on_train_end()
        if isinstance(self.dataloader_train, PairedBatches):
            self.dataloader_train.finish()

    # steps

    def on_train_epoch_start(self) -> None:
        """nnU-Net's, which logs the learning rate."""
        self._set_rate()
        self.pace.start(self.iterations)
        super().on_train_epoch_start()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """nnU-Net's; measures the time of an iteration."""
        self.pace.stop(self.iterations)
        super().on_train_epoch_end(train_outputs)

    def _set_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.search.rate(self.iterations)

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step of the weights, then, in the joint phase, one of the architecture."""
        self._set_rate()
        result = super().train_step(batch)
        if self.is_joint:
            data, target = (batch["architecture"][key].to(self.device, non_blocking=True) for key in ("data", "target"))
            self.architecture.step(data, target, self.loss, self.search.ramp(self.iterations))
        self.iterations += 1
        return result

    # validation of the supernet and of the discrete net in it

    def on_validation_epoch_start(self) -> None:
        """nnU-Net's; then finds the code that the logits mean."""
        super().on_validation_epoch_start()
        self.snapshot = Snapshot.of(self.architecture)

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's for the supernet; once the architecture has moved, also for the code alone, same weights."""
        if not self._has_moved or self.snapshot is None:
            return super().validation_step(batch)
        copy = {"data": batch["data"], "target": deepcopy(batch["target"])}  # nnU-Net edits targets in place
        result = super().validation_step(copy)
        self.net.fixed_code = self.snapshot.decoded.code
        try:
            discrete = super().validation_step(batch)
        finally:
            self.net.fixed_code = None
        return {**result, **{f"{DISCRETE}{key}": value for key, value in discrete.items()}}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """nnU-Net's for the supernet's scores; the discrete net's mean Dice beside them."""
        supernet = [{key: v for key, v in output.items() if not key.startswith(DISCRETE)} for output in val_outputs]
        super().on_validation_epoch_end(supernet)
        self.discrete_dice = self._mean_dice(val_outputs) if f"{DISCRETE}tp_hard" in val_outputs[0] else None

    def _mean_dice(self, outputs: list[dict]) -> float:
        sums = np.stack([sum(output[f"{DISCRETE}{key}_hard"] for output in outputs) for key in ("tp", "fp", "fn")])
        return mean_dice(*sum(self.gathered(sums)))

    # results

    @property
    def _has_moved(self) -> bool:
        """Whether the architecture has made a step."""
        return self.iterations > self.options.search_joint_start

    def on_epoch_end(self) -> None:
        """Writes the codes, then does nnU-Net's; the best ones are those of the best epoch by each mean Dice."""
        if self._has_moved:
            self._write_codes()
        self.print_to_log_file(row_text(self.history_row()))
        left = self.pace.left(self.iterations, self.num_epochs * self.num_iterations_per_epoch)
        self.print_to_log_file(f"Time left: about {left}")
        super().on_epoch_end()

    def _write_codes(self) -> None:
        assert self.snapshot is not None
        discrete = math.nan if self.discrete_dice is None else self.discrete_dice
        scores = {"continuous": float(self.logger.get_value("mean_fg_dice", step=-1)), "discrete": discrete}
        facts = {
            "dataset": self.plans_manager.dataset_name,
            "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "epoch": self.current_epoch,
            "iterations": self.iterations,
            "seed": self.seed,
            "sigma": self.options.sigma,
        }
        file = self.snapshot.code_file(facts, self.configuration_manager.patch_size, scores)
        self.codes.write(file, scores, write=self.local_rank == 0)

    def history_row(self) -> dict[str, Any]:
        """Losses of the logits, memory ratio, G, and the code, as the last validation found them."""
        snapshot = self.snapshot or Snapshot.of(self.architecture)
        return snapshot.row(self.options.sigma, self.iterations, self.discrete_dice)

    # checkpoints

    def method_state(self) -> dict[str, Any]:
        """The clock, Adam of the logits, the best scores, and all random numbers; the logits are in the state dict."""
        return {
            "iterations": self.iterations,
            **self.architecture.state_dict(),
            "best": dict(self.codes.best),
            "random": random_state(),
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Continues from `method_state()`."""
        self.iterations = state["iterations"]
        self.architecture.load_state_dict(state)
        self.codes.best = dict(state["best"])
        if not self.is_ddp:  # the state is that of the first rank, and ranks must draw other data
            self._random_state = state["random"]
            set_random_state(state["random"])
