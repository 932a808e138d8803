"""nnU-Net's trainer with the budget and the arithmetic of the comparison."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.layers.precision import train_in_bfloat16


class ShortTrainer(nnUNetTrainer):
    """1000 steps; training passes in bfloat16 autocast, as those of our trainers with `train_bfloat16`."""

    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 10, 100, 10
        super().initialize()
        train_in_bfloat16(self.network)
