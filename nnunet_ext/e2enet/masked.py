"""Convolutions of which only some kernels exist: the sparse feature-map connections of E2ENet (section 2.2).

A kernel is everything that joins one input to one output channel: the spatial taps at one index of the weight's first
two dimensions. A masked convolution, the paper's form, has a fixed number of slots, each with one active kernel; the
parameter is the slots' values, a buffer says which kernel each of them is. The dense weight, zero elsewhere, is made
anew in each forward pass, so that what is inactive has no value, no gradient and no momentum. The other form, blocks of
outputs that share their inputs, is in `shared_inputs.py`; `SparseConnections` is what both have in common.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.e2enet.older_forms import to_slots


def active_kernels(kernels: int, density: float) -> int:
    """round(kernels * density), at least 1, without the binary noise of 1 - sparsity (0.19999999999999996)."""
    return max(1, round(kernels * round(density, 9)))


class Connections(NamedTuple):
    """The active kernels of a convolution in compressed rows, one row for each output channel.

    Row `o` is `starts[o]:starts[o + 1]` of the input channels `inputs` (int64 `[active]`, ascending in a row) and of
    `kernels` (`[active, *kernel]`); `starts` is int64 `[C_out + 1]`.
    """

    starts: Tensor
    inputs: Tensor
    kernels: Tensor


class SparseConnections(nn.Module):
    """Mixin for convolutions of which only some kernels exist; what both forms, single kernels and blocks, have.

    A convolution has one or several pools, each with a fixed number of slots. A slot holds one of the pool's
    candidates and keeps it until it is overwritten, so that averages of `values` are averages of kernels.

    Attributes:
        values: the parameter, all that exists of the weight.
        dense_shape: of the weight; `[C_out, C_in, *kernel]`, and of a transposed convolution `[C_in, C_out, *kernel]`.
        connection_block: output channels that share their input channels; 1 for single kernels.
        computes_zeros: whether the forward pass computes inactive kernels too.
    """

    values: nn.Parameter
    dense_shape: tuple[int, ...]
    outputs_first = True  # in the weight
    connection_block = 1
    computes_zeros = False

    @property
    def kernels(self) -> int:
        """How many kernels there are, active or not."""
        return self.dense_shape[0] * self.dense_shape[1]

    @property
    def candidates(self) -> int:
        """From how many a slot's content is one."""
        raise NotImplementedError

    @property
    def pools(self) -> Tensor:
        """What the slots hold, int64 `[pools, slots]`, a view of the buffer; no two in a pool the same."""
        raise NotImplementedError

    def by_slot(self, tensor: Tensor) -> Tensor:
        """A view `[pools, slots, ...]` of a tensor like `values`."""
        raise NotImplementedError

    @property
    def kernel_mask(self) -> Tensor:
        """Bool, a new tensor of the first two dimensions of `dense_shape`: True = active."""
        raise NotImplementedError

    def count_active(self) -> int:
        """Active kernels, which are as many for the whole life of the module."""
        return self.pools.numel() * self.connection_block

    @staticmethod
    def whole(slots: float) -> int:
        """How many slots of a pool an update exchanges, of their number times the drop rate (algorithm 1)."""
        return math.ceil(slots)

    def dense_weight(self, values: Tensor | None = None) -> Tensor:
        """The weight `dense_shape`, a new tensor; `values` stand in for the module's own where given."""
        raise NotImplementedError

    def draw_kernels(self, weight: Tensor) -> None:
        """Fills the slots from a dense `weight`, drawn without replacement."""
        raise NotImplementedError

    def active_connections(self) -> Connections:
        """The kernels by output channel, for code that computes nothing for the others."""
        raise NotImplementedError

    @torch.no_grad()
    def overwrite(self, slots: Tensor, content: Tensor, pool: int = 0) -> None:
        """Gives `slots` (int64 `[n]`) of a pool to other candidates (int64 `[n]`), which start at zero."""
        self.pools[pool, slots] = content
        self.by_slot(self.values)[pool, slots] = 0

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """torch's. Damage, another sparsity and connections of the other form are errors, and change nothing."""
        problem = self._problem_in(state_dict, prefix)
        if problem is not None:
            error_msgs.append(f"{prefix}values: {problem}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _problem_in(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        """What is wrong with the module's entries; those of an older form are replaced by today's."""
        raise NotImplementedError


def problem_of_index(index: Tensor, candidates: int) -> str | None:
    """What is wrong with the slots `[pools, slots]` of a checkpoint, in words."""
    if index.is_meta:
        return None
    if index.is_floating_point() or int(index.min()) < 0 or int(index.max()) >= candidates:
        return "the index names kernels that are not there; the checkpoint is damaged or of another network"
    ordered = index.sort(1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        return "the index names a kernel twice; the checkpoint is damaged, or an average that took in the index"
    return None


class KernelSlots(SparseConnections):
    """Single kernels, the paper's connections: a parameter and a buffer in place of the dense `weight [a, b, *kernel]`.

    Attributes:
        values: parameter `[active, *kernel]`, the kernel of each slot.
        index: int64 buffer `[active]`, which kernel a slot holds: `row * b + column`, no two the same.
    """

    index: Tensor
    computes_zeros = True

    def init_slots(self, density: float) -> None:
        """Replaces `weight` by slots for the share `density` of its kernels, at first those with the lowest index."""
        weight, bias = self._parameters.pop("weight"), self._parameters.pop("bias")
        assert weight is not None
        self.dense_shape = tuple(weight.shape)
        count = active_kernels(self.kernels, density)
        self.values = nn.Parameter(weight.detach().flatten(0, 1)[:count].clone())
        self.register_parameter("bias", bias)  # in the order of the parameters the values stand for the weight
        self.register_buffer("index", torch.arange(count))

    @property
    def candidates(self) -> int:
        """All kernels."""
        return self.kernels

    @property
    def pools(self) -> Tensor:
        """`index` as one pool `[1, active]`."""
        return self.index.unsqueeze(0)

    def by_slot(self, tensor: Tensor) -> Tensor:
        """`[active, *kernel] -> [1, active, *kernel]`."""
        return tensor.unsqueeze(0)

    @property
    def kernel_mask(self) -> Tensor:
        """Bool `[a, b]`, a new tensor: True = active."""
        mask = torch.zeros(self.kernels, dtype=torch.bool, device=self.index.device)
        return mask.index_fill(0, self.index, True).view(self.dense_shape[:2])

    def dense_weight(self, values: Tensor | None = None) -> Tensor:
        """The weight `dense_shape`, a new tensor; `values` stand in for the module's own where given."""
        values = self.values if values is None else values
        rows = values.new_zeros(self.kernels, *values.shape[1:])
        return rows.index_copy(0, self.index, values).view(self.dense_shape)

    @torch.no_grad()
    def set_kernels(self, weight: Tensor, mask: Tensor) -> None:
        """Takes the kernels of a dense `weight` at which `mask [a, b]` is True, in ascending order.

        Raises:
            ValueError: they are not as many as there are slots.
        """
        index = mask.flatten().nonzero().squeeze(1)
        if len(index) != len(self.index):
            raise ValueError(f"{len(index)} kernels for {len(self.index)} slots")
        self.index.copy_(index)
        self.values.copy_(weight.flatten(0, 1)[index.to(weight.device)])

    @torch.no_grad()
    def draw_kernels(self, weight: Tensor) -> None:
        """Takes as many kernels of a dense `weight` as there are slots, drawn without replacement."""
        self.index.copy_(torch.randperm(self.kernels)[: len(self.index)].sort().values)
        self.values.copy_(weight.flatten(0, 1)[self.index])

    def _problem_in(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        if prefix + "inputs" in state_dict:
            return "its connections are in blocks, this network's are single kernels (connection_block 1)"
        problem = to_slots(state_dict, prefix, self.dense_shape)
        index = state_dict.get(prefix + "index")
        if problem is not None or index is None:
            return problem
        if len(index) != len(self.index):
            return (
                f"{len(index)} active kernels are stored, this network has {len(self.index)}: its sparsity is another"
            )
        return problem_of_index(index.unsqueeze(0), self.kernels)

    @torch.no_grad()
    def active_connections(self) -> Connections:
        """See `SparseConnections`."""
        rows, columns = self.index // self.dense_shape[1], self.index % self.dense_shape[1]
        outputs, inputs = (rows, columns) if self.outputs_first else (columns, rows)
        order = torch.argsort(outputs * self.kernels + inputs)
        counts = torch.bincount(outputs, minlength=self.dense_shape[0 if self.outputs_first else 1])
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Connections(starts, inputs[order], self.values[order])


class MaskedConv3d(KernelSlots, nn.Conv3d):
    """`nn.Conv3d` of which the share `density` of the kernels is active."""

    def __init__(self, *args: Any, density: float = 1.0, **kwargs: Any) -> None:
        nn.Conv3d.__init__(self, *args, **kwargs)
        self.init_slots(density)

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C_in, D, H, W]` -> `[B, C_out, D', H', W']`."""
        return self._conv_forward(input, self.dense_weight(), self.bias)


class MaskedConvTranspose3d(KernelSlots, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` without padding of which the share `density` of the kernels is active."""

    outputs_first = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int],
        stride: tuple[int, int, int],
        *,
        bias: bool = True,
        density: float = 1.0,
    ) -> None:
        nn.ConvTranspose3d.__init__(self, in_channels, out_channels, kernel_size, stride, bias=bias)
        self.init_slots(density)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """`[B, C_in, D, H, W]` -> `[B, C_out, D', H', W']`, of the size that follows from kernel and stride."""
        return F.conv_transpose3d(input, self.dense_weight(), self.bias, self.stride)


def masked_modules(network: nn.Module) -> Iterator[tuple[str, SparseConnections]]:
    """`(name, module)` of every convolution with sparse connections, in the order of the network's construction."""
    for name, module in network.named_modules():
        if isinstance(module, SparseConnections):
            yield name, module
