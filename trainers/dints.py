"""DiNTSTrainer: trains the discrete network of one architecture code (He et al., CVPR 2021), the same for all folds."""

import os
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.dints.architecture_code import CVPR_CODE, ArchitectureCode, code_of
from nnunet_ext.dints.network import DiNTSNet, arch_kwargs_at
from nnunet_ext.dints.options import DiNTSOptions
from nnunet_ext.dints.schedule import stepped_rate
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json
from nnunet_ext.trainers.base import ExtTrainer, NoScheduler, named_arch_kwargs


class DiNTSTrainer(ExtTrainer):
    """nnU-Net's recipe by default, the paper's by options; the code comes from the plans."""

    method = "dints"
    network_class = DiNTSNet
    options_class = DiNTSOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)
    options: DiNTSOptions

    @classmethod
    def checked_options(cls, plans: dict, configuration: str, dataset_json: dict) -> DiNTSOptions:
        """As `ExtTrainer`'s; and the results folder must hold no fold of another code.

        Raises:
            ConfigurationError: in one sentence what is wrong and what to do.
        """
        options = super().checked_options(plans, configuration, dataset_json)
        assert isinstance(options, DiNTSOptions)
        names = (cls.__name__, str(plans["plans_name"]), configuration)
        folder = os.path.join(str(nnUNet_results), plans["dataset_name"], "__".join(names))
        there = os.path.join(folder, "plans.json")
        code = planned_code(plans, configuration)
        if os.path.isfile(there) and planned_code(read_json(there), configuration) != code:
            raise ConfigurationError(
                f"{folder} holds folds that were trained with another architecture code, and prediction needs one code "
                f"for all folds. Give the new plans another name (nnunet_ext plan --name), or move that folder away."
            )
        return options

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
        if code == CVPR_CODE.for_dimensions(len(self.configuration_manager.patch_size)):
            self.print_to_log_file(
                "The plans hold no searched architecture: this trains the code that the authors of DiNTS published "
                "(CVPR 2021, sigma 0.8, searched on MSD Pancreas). DiNTSSearchTrainer searches one on this data."
            )
        assert isinstance(code, ArchitectureCode)
        self.print_to_log_file(
            f"Architecture: {code.num_layers} layers, {code.depth} scales, {code.num_edges} active edges"
        )

    def on_train_epoch_start(self) -> None:
        """nnU-Net's, which logs the rate."""
        self._set_rate()
        super().on_train_epoch_start()

    def _set_rate(self) -> None:
        if self.options.schedule == "steps":
            peak, options = self.initial_lr, self.options
            rate = stepped_rate(self.iterations, peak, peak / 8, options.warmup_iterations, options.halve_every)
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's, at the schedule's rate."""
        self._set_rate()
        self.iterations += 1
        return super().train_step(batch)

    def method_state(self) -> dict[str, Any]:
        """The schedule's clock; the code is in the plans."""
        return {"iterations": self.iterations}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Sets the schedule's clock."""
        self.iterations = state["iterations"]


def planned_code(plans: dict[str, Any], configuration: str) -> ArchitectureCode:
    """The code that a plans file means for `DiNTSTrainer`; the published one where it names another network."""
    manager = PlansManager(plans).get_configuration(configuration)
    planned = named_arch_kwargs(manager, DiNTSNet)
    return code_of({"strides": manager.pool_op_kernel_sizes} if planned is None else planned)
