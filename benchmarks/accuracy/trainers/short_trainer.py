"""nnU-Net's trainer with the budget and the arithmetic of the comparison."""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.discovery.devices import cpu_threads
from nnunet_ext.layers.precision import train_in_bfloat16


class ShortTrainer(nnUNetTrainer):
    """1000 steps; training passes in bfloat16 autocast and threads as in our trainers with `train_bfloat16`."""

    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 10, 100, 10
        super().initialize()
        torch.set_num_threads(cpu_threads())
        train_in_bfloat16(self.network)
