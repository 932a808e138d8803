"""DiNTSTrainer: trains the discrete network of one architecture code (He et al., CVPR 2021), the same for all folds."""

from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_ext.dints.architecture_code import ArchitectureCode
from nnunet_ext.dints.code_file import origin_text
from nnunet_ext.dints.network import DiNTSNet, arch_kwargs_at
from nnunet_ext.dints.options import DiNTSOptions
from nnunet_ext.dints.schedule import stepped_rate
from nnunet_ext.trainers.base import ExtTrainer, NoScheduler


class DiNTSTrainer(ExtTrainer):
    """nnU-Net's recipe by default, the paper's by options; the code comes from the plans."""

    method = "dints"
    network_class = DiNTSNet
    options_class = DiNTSOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)
    options: DiNTSOptions

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """SGD, with nnU-Net's scheduler for 'poly'; for 'steps' the trainer sets the rate before each step."""
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            self.initial_lr,
            weight_decay=self.weight_decay,
            momentum=self.options.momentum,
            nesterov=self.options.nesterov,
        )
        if self.options.schedule == "steps":
            return optimizer, NoScheduler()
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def on_initialized(self) -> None:
        """Counts iterations, and says which code is trained."""
        self.iterations = 0
        code = self.net.code
        assert isinstance(code, ArchitectureCode)
        self.print_to_log_file(origin_text(code, self.options.code_origin))
        self.print_to_log_file(
            f"Architecture: {code.num_layers} layers, {code.depth} scales, {code.num_edges} active edges"
        )

    def on_train_epoch_start(self) -> None:
        """nnU-Net's, which logs the rate."""
        self._set_rate()
        super().on_train_epoch_start()

    def _set_rate(self) -> None:
        if self.options.schedule == "steps":
            for group in self.optimizer.param_groups:
                group["lr"] = self._stepped(self.iterations)

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's, at the schedule's rate."""
        self._set_rate()
        self.iterations += 1
        return super().train_step(batch)

    def rates_at(self, epoch: int, num_epochs: int) -> dict[str, float]:
        """The schedule's rate; 'steps' counts iterations, whatever the length."""
        if self.options.schedule == "steps":
            return {"learning rate": self._stepped(epoch * self.num_iterations_per_epoch)}
        return super().rates_at(epoch, num_epochs)

    def _stepped(self, iterations: int) -> float:
        peak, options = self.initial_lr, self.options
        return stepped_rate(iterations, peak, peak / 8, options.warmup_iterations, options.halve_every)

    def method_state(self) -> dict[str, Any]:
        """The schedule's clock; the code is in the plans."""
        return {"iterations": self.iterations}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Sets the schedule's clock."""
        self.iterations = state["iterations"]
