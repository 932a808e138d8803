"""What a rank does in a process of its own."""

import torch
import torch.nn.functional as F
from dints.small import CUBES, random_code
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext.dints.architecture_step import ArchitectureOptimizer
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet
from nnunet_ext.dints.options import DiNTSSearchOptions

SIZE = (16, 16, 16)


def patches(rank):
    rng = torch.Generator().manual_seed(rank)
    return torch.randn(1, 1, *SIZE, generator=rng), torch.randint(0, 2, (1, *SIZE), generator=rng)


def networks():
    torch.manual_seed(0)
    net = DiNTSNet(1, 2, strides=CUBES, base_features=2, **random_code(2, layers=2).settings())
    return net, DiNTSSearchNet(1, 2, strides=CUBES, base_features=2, num_layers=2, num_depths=2)


def gradients_on_one_rank(rank, folder):
    """Gradients of both networks inside DDP, and the supernet's logits after a step of the architecture."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    data, target = patches(rank)
    found = []
    net, supernet = networks()
    for each in (net, supernet):
        wrapped = DistributedDataParallel(each)
        F.cross_entropy(wrapped(data), target).backward()
        found.append([p.grad for p in each.parameters() if p.requires_grad])
    architecture = ArchitectureOptimizer(supernet, SIZE, DiNTSSearchOptions())
    architecture.step(data, target, F.cross_entropy, 0.5)
    found.append([logits.detach() for logits in architecture.logits])
    torch.save(found, f"{folder}/rank{rank}")
    torch.distributed.barrier()  # torch 2.6 can wait for ever for a thread that still lets go of the gradients
    torch.distributed.destroy_process_group()
