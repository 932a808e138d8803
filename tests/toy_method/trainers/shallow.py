"""ShallowTrainer: nnU-Net's recipe with a momentum of the plans."""

from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_ext.shallow.network import Shallow, arch_kwargs_at
from nnunet_ext.shallow.options import ShallowOptions
from nnunet_ext.trainers.base import ExtTrainer


class ShallowTrainer(ExtTrainer):
    """Trains Shallow."""

    method = "shallow"
    network_class = Shallow
    options_class = ShallowOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)
    options: ShallowOptions

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """SGD with the options' momentum, and nnU-Net's scheduler."""
        optimizer = torch.optim.SGD(self.network.parameters(), self.initial_lr, self.options.momentum)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
