"""Gradients of one part of a network, where DDP's forward pass does not see it."""

import torch
from torch import distributed as dist
from torch import nn


def average_gradients(part: nn.Module) -> None:
    """Replaces the gradients of `part` by their mean over the ranks, which have gradients of the same parameters."""
    gradients = [p.grad for p in part.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def forget_moments(optimizer: torch.optim.Optimizer, part: nn.Module) -> None:
    """Drops the optimizer's state of a part that learns no more, or that starts anew."""
    for parameter in part.parameters():
        optimizer.state.pop(parameter, None)
