"""Batch normalisation of slices."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SliceNorm(nn.BatchNorm2d):
    """BatchNorm2d that takes its running statistics where one value a channel is all there is."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


@torch.no_grad()
def settle_statistics(part: nn.Module, x: Tensor) -> None:
    """Gives every BatchNorm of `part` the statistics of `x` under the weights as they are, instead of running ones."""
    norms = [module for module in part.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta, training = [norm.momentum for norm in norms], part.training
    for norm in norms:
        norm.momentum = 1.0
    try:
        part.train()
        part(x)
    finally:
        part.train(training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
