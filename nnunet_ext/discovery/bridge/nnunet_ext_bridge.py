"""The one module that nnU-Net's own `nnUNet_extTrainer` search finds where the start-up file does not run."""

from nnunet_ext.discovery.registry import resolver

__getattr__ = resolver("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
