"""Small networks with masked convolutions, and their training, one process or one rank of two."""

import torch
from torch import nn

from nnunet_ext.e2enet.masked import MaskedConv3d, MaskedConvTranspose3d, masked_modules
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.shared_inputs import SharedInputConv3d, SharedInputConvTranspose3d
from nnunet_ext.e2enet.topology import DynamicTopology


class SmallNetwork(nn.Module):
    """Maps [B, 3, 2, 3, 3] to [B, 2, 2, 6, 6]."""

    def __init__(self, sparsity=0.7):
        super().__init__()
        self.layers = nn.Sequential(
            MaskedConvTranspose3d(3, 8, (1, 2, 2), (1, 2, 2), bias=False, density=1 - sparsity),
            MaskedConv3d(8, 10, (1, 3, 3), 1, (0, 1, 1), density=1 - sparsity),
            nn.InstanceNorm3d(10, affine=True),
            nn.LeakyReLU(0.01),
            MaskedConv3d(10, 6, (1, 1, 3), 1, (0, 0, 1), density=1 - sparsity),
            nn.Conv3d(6, 2, 1),
        )
        for _, module in masked_modules(self):
            draw(module)

    def forward(self, x):
        return self.layers(x)

    @staticmethod
    def image(generator):
        return torch.randn(1, 3, 2, 3, 3, generator=generator)


class SmallNetworkInBlocks(SmallNetwork):
    """The same shapes, in which 4, 5 and 3 outputs share their inputs."""

    def __init__(self, sparsity=0.4):
        super().__init__()

        def blocks(size):
            return {"density": 1 - sparsity, "connection_block": size}

        self.layers[0] = SharedInputConvTranspose3d(3, 8, (1, 2, 2), bias=False, **blocks(4))
        self.layers[1] = SharedInputConv3d(8, 10, (1, 3, 3), 1, (0, 1, 1), **blocks(5))
        self.layers[4] = SharedInputConv3d(10, 6, (1, 1, 3), 1, (0, 0, 1), **blocks(3))
        for _, module in masked_modules(self):
            draw(module)


class SmallE2ENet(E2ENet):
    def __init__(self, sparsity=0.7, **kwargs):
        strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
        kwargs = {"features_per_stage": [4, 5, 6], "sparsity": sparsity, "deep_supervision": True, **kwargs}
        super().__init__(1, 2, strides=strides, **kwargs)

    @staticmethod
    def image(generator):
        return torch.randn(1, 1, 2, 8, 8, generator=generator)


class SmallE2ENetInBlocks(SmallE2ENet):
    def __init__(self, sparsity=0.5):
        super().__init__(sparsity, features_per_stage=[4, 6, 8], connection_block=2)


def build(kind=SmallNetwork, seed=0, **kwargs):
    torch.manual_seed(seed)
    return kind(**kwargs)


def sgd(network):
    return torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)


def loss_at(network, step, rank=0):
    """The loss of a batch that belongs to (step, rank); it has no minimum at which training could come to rest."""
    generator = torch.Generator().manual_seed(2 * step + rank)
    outputs = network(getattr(network, "module", network).image(generator))
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return sum((output - torch.randn(output.shape, generator=generator)).square().mean() for output in outputs)


def train(network, optimizer, steps, start=0, rank=0, after_backward=None, after_step=None):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_at(network, step, rank).backward()
        if after_backward is not None:
            after_backward(step)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        if after_step is not None:
            after_step(step + 1)


def draw(module):
    """Other kernels with other values, drawn from the global random numbers."""
    module.draw_kernels(nn.init.kaiming_uniform_(torch.empty(module.dense_shape), a=5**0.5))


def masks_of(network):
    return {name: module.kernel_mask for name, module in masked_modules(network)}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def tensors(network):
    """Copies of all parameters and buffers, in the form in which the network uses them."""
    return {n: t.detach().clone() for n, t in (*network.named_parameters(), *network.named_buffers())}


def by_candidate(module, tensor):
    """What belongs to the slots of a tensor like `values`, at what they hold: `[pools, candidates, *]`, else zero.

    Of single kernels `[1, kernels, *kernel]`; of blocks `[groups, C_in, block, *kernel]`.
    """
    slots = tensor.detach() if tensor.ndim == 4 else tensor.detach().transpose(1, 2)
    slots = slots[None] if tensor.ndim == 4 else slots
    rows = slots.new_zeros(len(slots), module.candidates, *slots.shape[2:])
    for row, values, held in zip(rows, slots, held_by(module), strict=True):
        row[held] = values
    return rows


def held_by(module):
    """What the slots hold, `[pools, slots]`, a copy."""
    return module.inputs.clone() if hasattr(module, "inputs") else module.index[None].clone()


def active_in(module):
    """Bool `[pools, candidates]`."""
    held = held_by(module)
    return torch.zeros(len(held), module.candidates, dtype=torch.bool).scatter(1, held, True)


def train_one_rank(rank, folder, kind):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network = build(kind)
    torch.manual_seed(rank)
    parallel = nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
    optimizer = sgd(network)
    topology = DynamicTopology(network, optimizer, total_steps=40, update_every=2)
    start = masks_of(network)
    train(parallel, optimizer, 10, rank=rank)
    with torch.no_grad():
        losses = [float(loss_at(network, step, rank)) for step in range(3)]
    result = {"start": start, "masks": masks_of(network), "weights": tensors(network), "losses": losses}
    torch.save({**result, "random": torch.rand(1).item(), "summary": topology.summary()}, f"{folder}/rank{rank}")
    torch.distributed.destroy_process_group()
