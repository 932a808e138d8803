"""DiNTSSearchTrainer: searches a topology on the user's data (He et al., CVPR 2021, sections 3.4 to 3.6 and 4.1).

Weights alone learn first, on one half of the training cases; then each step of the weights is followed by one of the
architecture's logits, on the other half. Every epoch of that phase writes the code which the logits mean by then.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_ext.dints.architecture_step import ArchitectureOptimizer
from nnunet_ext.dints.halves import kept_halves
from nnunet_ext.dints.network import DiNTSSearchNet, search_arch_kwargs_at
from nnunet_ext.dints.options import DiNTSSearchOptions
from nnunet_ext.dints.schedule import Pace, SearchSchedule
from nnunet_ext.dints.snapshot import Snapshot, row_text
from nnunet_ext.discovery.commands import typed_command
from nnunet_ext.discovery.compatibility import versions
from nnunet_ext.trainers.base import CUDA, ExtTrainer, NoScheduler
from nnunet_ext.trainers.loaders import PairedBatches, finish
from nnunet_ext.weights.random_state import random_state, set_random_state

_WORKERS = "nnUNet_n_proc_DA"  # where nnU-Net looks for the number of processes
_TRIED_AT = 2  # iterations of an epoch after which a step of the architecture is timed: the first ones are slower


class DiNTSSearchTrainer(ExtTrainer):
    """Searches; the fold's folder gets `architecture.json`."""

    method = "dints_search"
    network_class = DiNTSSearchNet
    options_class = DiNTSSearchOptions
    arch_kwargs_at = staticmethod(search_arch_kwargs_at)
    options: DiNTSSearchOptions

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: Any = CUDA) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        # nnU-Net takes foreground for the last third of a batch, which of a batch of one is nothing.
        self.probabilistic_oversampling = self.configuration_manager.batch_size == 1
        self.search = SearchSchedule(self.options, self.configuration_manager.batch_size)
        self.initial_lr = self.search.peak_rate
        self.iterations = 0
        self.pace = Pace(self.search)
        self.snapshot: Snapshot | None = None
        self._half = 0  # of the training cases, from which the next loader takes
        self._random_state: dict[str, Any] | None = None

    def why_not_compiled(self) -> str:
        """Its hundred cells; 100 s were seen on a CPU before the first code was made."""
        return "to trace its cells takes minutes"

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

    # data

    def halves(self, keys: list[str]) -> tuple[list[str], list[str]]:
        """train1 and train2: the training cases shuffled by the seed and cut in two; saved, and kept on `--c`."""
        path = os.path.join(self.output_folder, "search_halves.json")
        continued, first_rank = self.current_epoch > 0, self.local_rank == 0
        return kept_halves(path, keys, self.seed, continued=continued, write=first_rank, say=self.print_to_log_file)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's, with one half of the training cases."""
        training, validation = self.do_split()
        previous = self.folder_with_segs_from_previous_stage
        folder, keys = self.preprocessed_dataset_folder, (self.halves(list(training))[self._half], validation)
        first, second = (self.dataset_class(folder, k, folder_with_segs_from_previous_stage=previous) for k in keys)
        return first, second

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Pairs of batches from the two halves; the second comes only when the architecture moves."""
        weights, validation = super().get_dataloaders()
        return PairedBatches(weights, self._architecture_batches, lambda: self.is_joint), validation

    def _architecture_batches(self) -> Iterator[dict]:
        """Batches of the second half. Random numbers go on as if the loader had been there from the start."""
        before, self._half = random_state(), 1
        try:
            with _fewer_workers():
                batches, unused = super().get_dataloaders()
        finally:
            self._half = 0
        finish(unused)
        set_random_state(before)
        return batches

    # the way through a search

    def on_train_start(self) -> None:
        """ExtTrainer's; a search that is continued then goes on with the random numbers at which it stopped."""
        super().on_train_start()
        self.print_to_log_file(self.search.text())
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def on_train_end(self) -> None:
        """nnU-Net's, and the end of the loaders that it does not know."""
        super().on_train_end()
        if isinstance(self.dataloader_train, PairedBatches):
            self.dataloader_train.finish()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing but a line: nobody predicts with a supernet, and to slide it over whole cases takes long."""
        words = ["nnunet_ext", "plan", self.plans_manager.dataset_name, "--method", "dints"]
        words += ["--code", os.path.join(self.output_folder, "architecture.json"), "--name", "DiNTSPlans_searched"]
        self.print_to_log_file(
            "A search ends without a validation of whole cases: its result is the code in architecture.json, not a "
            f"model. Plans of it are made by: {typed_command(words)}"
        )

    def on_train_epoch_start(self) -> None:
        """nnU-Net's, which logs the learning rate."""
        self._set_rate()
        self.pace.start(self.iterations)
        super().on_train_epoch_start()

    def _set_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.search.rate(self.iterations)

    def rates_at(self, epoch: int, num_epochs: int) -> dict[str, float]:
        """The weights' rate, which counts iterations, whatever the length."""
        return {"learning rate": self.search.rate(epoch * self.num_iterations_per_epoch)}

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step of the weights, then, in the joint phase, one of the architecture."""
        self._set_rate()
        result = super().train_step(batch)
        if self.is_joint:
            ramp = self.search.ramp(self.iterations)
            self.architecture.step(*self._on_device(batch["architecture"]), self.loss, ramp)
        elif self.pace.step is None and self.iterations % self.num_iterations_per_epoch == _TRIED_AT:
            self.pace.try_step(lambda: self._try_step(batch))
        self.iterations += 1
        return result

    def _on_device(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        data, target = (batch[key].to(self.device, non_blocking=True) for key in ("data", "target"))
        return data, target

    def _try_step(self, batch: dict) -> None:
        self.architecture.gradients(*self._on_device(batch), self.loss, 0.0)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def on_validation_epoch_start(self) -> None:
        """nnU-Net's; then finds the code that the logits mean, once for all that an epoch says of it."""
        super().on_validation_epoch_start()
        self.snapshot = Snapshot.of(self.architecture, self.configuration_manager.patch_size)

    # results

    def history_row(self) -> dict[str, Any]:
        """Losses of the logits, memory ratios, G, and the code, as the last validation found them."""
        snapshot = self.snapshot or Snapshot.of(self.architecture, self.configuration_manager.patch_size)
        return snapshot.row(self.options.sigma, self.iterations)

    def on_epoch_end(self) -> None:
        """Writes the code, then does nnU-Net's."""
        self.print_to_log_file(row_text(self.history_row()))
        if self.iterations > self.options.joint_start:
            self._write_code()
        self.pace.stop(self.iterations)
        self.print_to_log_file(f"Time left: about {self.pace.left(self.iterations)}")
        super().on_epoch_end()

    def _write_code(self) -> None:
        assert self.snapshot is not None
        if warning := self.snapshot.warning(self.options.sigma):
            self.print_to_log_file(warning)
        if self.local_rank != 0:
            return
        facts = {
            "dataset": self.plans_manager.dataset_name,
            "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "epoch": self.current_epoch,
            "iterations": self.iterations,
            "seed": self.seed,
            "sigma": self.options.sigma,
            "versions": versions(),
        }
        dice = float(self.logger.get_value("mean_fg_dice", step=-1))
        file = self.snapshot.code_file(facts, self.configuration_manager.patch_size, dice)
        file.write(os.path.join(self.output_folder, "architecture.json"))

    # checkpoints

    def method_state(self) -> dict[str, Any]:
        """The clock, Adam of the logits, and all random numbers; the logits are in the state dict."""
        return {"iterations": self.iterations, **self.architecture.state_dict(), "random": random_state()}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Continues from `method_state()`."""
        self.iterations = state["iterations"]
        self.architecture.load_state_dict(state)
        if not self.is_ddp:  # the state is that of the first rank, and ranks must draw other data
            self._random_state = state["random"]
            set_random_state(state["random"])


@contextmanager
def _fewer_workers() -> Iterator[None]:
    """Within it, nnU-Net's loaders get half of the worker processes that it would give them; one at least, if any."""
    before, count = os.environ.get(_WORKERS), get_allowed_n_proc_DA()
    os.environ[_WORKERS] = str((count + 1) // 2)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_WORKERS]
        else:
            os.environ[_WORKERS] = before
