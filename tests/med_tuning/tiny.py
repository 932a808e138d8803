"""Tiny backbones for the tests of Med-Tuning: timm's own models, narrow and shallow."""

from torch import nn

from nnunet_ext.med_tuning.network import MedTuningNet

TINY_VIT = {
    "backbone": "vit_tiny_patch16_224",
    "depths": [1, 1, 1, 1],
    "backbone_settings": {"embed_dim": 48, "num_heads": 3},
}
TINY_SWIN = {
    "backbone": "swin_tiny_patch4_window7_224",
    "depths": [1, 2, 1, 1],
    "backbone_settings": {"embed_dim": 24},
}
TINY = {"vit": TINY_VIT, "swin": TINY_SWIN}


def tiny(kind="vit", patch_size=(3, 40, 56), input_channels=2, num_classes=3, **settings):
    """A network on a tiny backbone; dropout is off unless it is set."""
    arguments = {**TINY[kind], "dropout": 0.0, **settings}
    return MedTuningNet(input_channels, num_classes, patch_size=list(patch_size), **arguments)


class FixedStatistics(MedTuningNet):
    """Batch norms do not move their running statistics, which are each rank's own without SyncBatchNorm."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0
