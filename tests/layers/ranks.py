"""What a rank does in a process of its own."""

import torch
from torch import nn

from nnunet_ext.layers.gradients import average_gradients


def average_on_one_rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    part = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    part[1].bias.requires_grad_(False)
    for number, parameter in enumerate(p for p in part.parameters() if p.requires_grad):
        parameter.grad = torch.full_like(parameter, float((rank + 1) * (number + 1)))
    average_gradients(part)
    torch.save([None if p.grad is None else p.grad for p in part.parameters()], f"{folder}/rank{rank}")
    torch.distributed.barrier()  # torch 2.6 can wait for ever for a thread that still lets go of the gradients
    torch.distributed.destroy_process_group()
