"""Convolutions whose output channels share their inputs in blocks: sparse connections that processors can use.

The C_out outputs are cut into groups of `connection_block` neighbours, and each group reads its own `fan_in` of the
C_in input channels, as many in every group (constant fan-in: Lasby et al., SRigL, ICLR 2024, arXiv 2305.02299, where a
group is one output). So a group is a copy of its channels and a small dense convolution, forward and backward, in any
precision, and parameters, gradients and momentum are of active kernels only. It is a form of its own, beside the
paper's single kernels (`masked.py`).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.e2enet import grouped
from nnunet_ext.e2enet.depth_shift import add_shifted, gather_shifted, shifted_concat, split_shifted
from nnunet_ext.e2enet.fused import by_triton
from nnunet_ext.e2enet.masked import Connections, SparseConnections, active_kernels, problem_of_index
from nnunet_ext.layers.convolutions import convolution_gradients

Shifts = Sequence[tuple[int, int]]
AT_ONCE = 4096  # voxels of a volume up to which its groups cost more by themselves than by their products
SMALL = 20480  # B C D H of what torch's convolution on CPUs keeps from oneDNN (`use_mkldnn` in ATen's Convolution.cpp)


def block_of(out_channels: int, connection_block: int) -> int:
    """Outputs in a group: the divisor of `out_channels` that is nearest to `connection_block` by ratio.

    For blocks of 16 and 48 outputs that is 16, for 60 it is 15, for 58 29, for 4 all of them.
    """
    divisors = [d for d in range(1, out_channels + 1) if out_channels % d == 0]
    return min(divisors, key=lambda d: max(d / connection_block, connection_block / d))


def fan_in_of(in_channels: int, density: float, multiple: int = 1) -> int:
    """Inputs of a group: round(C_in * density), then the nearest multiple, the larger of two; not 0, at most C_in."""
    multiples = math.floor(active_kernels(in_channels, density) / multiple + 0.5)
    return min(in_channels, max(1, multiples) * multiple)


class SharedInputs(SparseConnections):
    """Mixin for convolutions without groups of torch's: `weight` becomes groups of outputs with inputs of their own.

    Attributes:
        values: parameter `[groups, block, fan_in, *kernel]`, of transposed convolutions too.
        inputs: int64 buffer `[groups, fan_in]`, which input channel each slot of a group reads, in any order.
    """

    inputs: Tensor

    def init_groups(self, density: float, connection_block: int, fan_in_multiple: int) -> None:
        """Replaces `weight` by groups for about the share `density` of its kernels, at first of the lowest inputs."""
        weight, bias = self._parameters.pop("weight"), self._parameters.pop("bias")
        assert weight is not None
        self.dense_shape = tuple(weight.shape)
        rows = self._by_output(weight.detach())
        self.connection_block = block_of(rows.shape[0], connection_block)
        fan_in = fan_in_of(rows.shape[1], density, fan_in_multiple)
        self.values = nn.Parameter(rows[:, :fan_in].unflatten(0, (-1, self.connection_block)).clone())
        self.register_parameter("bias", bias)  # in the order of the parameters the values stand for the weight
        self.register_buffer("inputs", torch.arange(fan_in).repeat(len(self.values), 1))

    @property
    def candidates(self) -> int:
        """The input channels."""
        return self.dense_shape[1 if self.outputs_first else 0]

    @property
    def pools(self) -> Tensor:
        """`inputs`: each group is a pool."""
        return self.inputs

    def by_slot(self, tensor: Tensor) -> Tensor:
        """`[groups, block, fan_in, *kernel] -> [groups, fan_in, block, *kernel]`."""
        return tensor.transpose(1, 2)

    @property
    def kernel_mask(self) -> Tensor:
        """Bool `[C_out, C_in]`, of a transposed convolution `[C_in, C_out]`, a new tensor: True = active."""
        mask = torch.zeros(len(self.inputs), self.candidates, dtype=torch.bool, device=self.inputs.device)
        return self._by_output(mask.scatter(1, self.inputs, True).repeat_interleave(self.connection_block, 0))

    @staticmethod
    def whole(slots: float) -> int:
        """The nearest number: rounded up, each group would give up an input, of ten or twenty, until the very end."""
        return round(slots)

    def dense_weight(self, values: Tensor | None = None) -> Tensor:
        """The weight `dense_shape`, a new tensor, zero elsewhere; nothing here computes with it."""
        values = self.values if values is None else values
        slots = self.by_slot(values).flatten(0, 1)
        rows = values.new_zeros(len(self.inputs) * self.candidates, *slots.shape[1:])
        starts = torch.arange(len(self.inputs), device=self.inputs.device) * self.candidates
        rows = rows.index_copy(0, (self.inputs + starts[:, None]).flatten(), slots)
        return self._by_output(self.by_slot(rows.unflatten(0, (-1, self.candidates))).flatten(0, 1))

    @torch.no_grad()
    def draw_kernels(self, weight: Tensor) -> None:
        """Takes for each group as many inputs of a dense `weight` as it has slots, drawn without replacement."""
        groups = self._by_output(weight).unflatten(0, (-1, self.connection_block))
        for values, inputs, rows in zip(self.values, self.inputs, groups, strict=True):
            inputs.copy_(torch.randperm(self.candidates)[: len(inputs)].sort().values)
            values.copy_(rows.index_select(1, inputs))

    @torch.no_grad()
    def active_connections(self) -> Connections:
        """See `SparseConnections`; the outputs of a group have the same inputs."""
        groups, block, fan_in = self.values.shape[:3]
        inputs, order = self.inputs.sort(1)
        kernels = [values.index_select(1, slots) for values, slots in zip(self.values, order, strict=True)]
        starts = torch.arange(groups * block + 1, device=inputs.device) * fan_in
        return Connections(starts, inputs.repeat_interleave(block, 0).flatten(), torch.cat(kernels).flatten(0, 1))

    def _by_output(self, weight: Tensor) -> Tensor:
        """The weight with its outputs first, and back."""
        return weight if self.outputs_first else weight.transpose(0, 1)

    def _problem_in(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        inputs = state_dict.get(prefix + "inputs")
        if inputs is None:
            single = any(prefix + name in state_dict for name in ("index", "kernel_mask", "kernel_bits"))
            return (
                "its connections are single kernels, this network's are in blocks (connection_block)" * single or None
            )
        if inputs.shape != self.inputs.shape:
            return (
                f"{len(inputs)} groups with {inputs.shape[-1]} inputs each are stored, this network has "
                f"{len(self.inputs)} with {self.inputs.shape[1]}: its connection_block or sparsity is another"
            )
        return problem_of_index(inputs, self.candidates)


class _Group(NamedTuple):
    """The convolution of one group, or of all: its bias, and what `convolution_gradients` asks for."""

    bias: Tensor | None
    out_channels: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        convolve: Any = F.conv2d if x.ndim == 4 else F.conv3d
        return convolve(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SharedInputConv3d(SharedInputs, nn.Conv3d):
    """`nn.Conv3d` of stride 1 whose outputs share their inputs in blocks.

    Without gradients on a CPU each group's channels are copied alone, out of the sources and shifted on the way, and
    the result goes to its place: nothing is concatenated. For small volumes, elsewhere, with gradients, and under
    torch.compile, it is one gather and a convolution with groups; `rebuilding.py` trains by the ways without gradients,
    with `gradients`. With `nnUNet_ext_fused=1` both are those of `grouped.py`.
    """

    def __init__(
        self, *sizes: Any, density: float = 1.0, connection_block: int = 1, fan_in_multiple: int = 1, **kwargs: Any
    ) -> None:
        nn.Conv3d.__init__(self, *sizes, **kwargs)
        if self.stride != (1, 1, 1):
            raise ValueError(f"blocks of connections are of convolutions with stride 1, found {self.stride}")
        self.init_groups(density, connection_block, fan_in_multiple)
        self.shift_axis = self.kernel_size.index(1) if 1 in self.kernel_size else 0  # spatial: 0 = D

    def forward(
        self,
        input: Tensor | Sequence[Tensor],
        shifts: Shifts = (),
        gathered: bool = False,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """`[B, C_in, D, H, W]`, or several tensors with as many channels in all, -> `[B, C_out, D', H', W']`.

        `shifts`: of the channels along the axis on which the kernel is 1, as `channel_shifts` gives them. `gathered`:
        the input is what `gather` has made. `inputs`: of `Read`, where the tensors have only what is read.
        """
        sources = [input] if isinstance(input, Tensor) else list(input)
        if not gathered and not torch.is_grad_enabled() and by_triton(sources[0]) and grouped.applies(self, sources):
            return grouped.convolve(self, sources, shifts)
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if gathered or traced or torch.is_grad_enabled() or not _reads_sources(sources[0]) or _at_once(sources[0]):
            x = sources[0] if gathered else self.gather(sources, shifts)
            return self._all_groups()(x, self.values.flatten(0, 1))
        out = None
        sources, shifts = self._readable(sources, shifts)
        axis = self._batched_axis(sources[0])
        for number, channels, order, group in self._groups(axis, inputs):
            x = self._gathered(sources, channels, shifts, axis)
            z = _volume(group(_slices(x, axis), self._kernel(self.values, number, order, axis)), axis, x)
            if out is None:
                out = z.new_empty(len(z), self.out_channels, *z.shape[2:])
            out[:, self._outputs(number)].copy_(z)
        assert out is not None
        return out

    def gather(self, sources: Sequence[Tensor], shifts: Shifts = ()) -> Tensor:
        """What all groups read, `[B, groups * fan_in, D, H, W]`, with gradients."""
        return shifted_concat(list(sources), list(shifts), self.shift_axis).index_select(1, self.inputs.flatten())

    def gradients(
        self,
        gradient: Tensor,
        sources: Sequence[Tensor],
        shifts: Shifts,
        values: Tensor,
        wanted: Sequence[bool],
        inputs: Tensor | None = None,
    ) -> tuple[list[Tensor] | None, Tensor | None, Tensor | None]:
        """The gradients of sources, values and bias; `wanted` says which of the three, the others are None.

        Args:
            gradient: of the result, `[B, C_out, D', H', W']`.
            sources, shifts, inputs: what `forward` read.
            values: in the place of the module's own.
        """
        if _at_once(sources[0]):
            return self._gradients_at_once(gradient, sources, list(shifts), values, wanted)
        given, given_shifts = sources, list(shifts)
        sources, shifts = self._readable(sources, shifts)
        of_sources = [torch.zeros_like(source, dtype=gradient.dtype) for source in sources] if wanted[0] else None
        of_values = torch.empty_like(values) if wanted[1] else None
        of_bias = gradient.new_empty(self.out_channels) if wanted[2] and self.bias is not None else None
        asked = [part is not None for part in (of_sources, of_values, of_bias)]
        axis = self._batched_axis(sources[0])
        for number, channels, order, group in self._groups(axis, inputs):
            x, outputs = self._gathered(sources, channels, shifts, axis), self._outputs(number)
            gz = _slices(gradient[:, outputs], axis).contiguous()
            weight = self._kernel(values, number, order, axis)
            gx, gw, gb = convolution_gradients(group, gz, _slices(x, axis), weight, asked)
            if of_sources is not None and gx is not None:
                add_shifted(of_sources, channels, list(shifts), self.shift_axis, _volume(gx, axis, x))
            if of_values is not None and gw is not None:
                slots = gw.reshape(self.connection_block, len(order), *self.kernel_size).transpose(0, 1)
                self.by_slot(of_values)[number, order] = slots.to(of_values.dtype)
            if of_bias is not None and gb is not None:
                of_bias[outputs] = gb
        if of_sources is not None and not _reads_sources(given[0]):
            counts = [source.shape[1] for source in given]
            of_sources = split_shifted(of_sources[0], counts, given_shifts, self.shift_axis)
        return of_sources, of_values, of_bias

    def _gradients_at_once(
        self, gradient: Tensor, sources: Sequence[Tensor], shifts: Shifts, values: Tensor, wanted: Sequence[bool]
    ) -> tuple[list[Tensor] | None, Tensor | None, Tensor | None]:
        channels = [source.shape[1] for source in sources]
        x, weight = self.gather(sources, shifts), values.flatten(0, 1)
        asked = [*wanted[:2], wanted[2] and self.bias is not None]
        gx, gw, gb = convolution_gradients(self._all_groups(), gradient, x, weight, asked)
        of_values = None if gw is None else gw.reshape(values.shape).to(values.dtype)
        if gx is None:
            return None, of_values, gb
        of_all = gx.new_zeros(len(gx), sum(channels), *gx.shape[2:]).index_add_(1, self.inputs.flatten(), gx)
        return split_shifted(of_all, channels, list(shifts), self.shift_axis), of_values, gb

    def _all_groups(self) -> "_Group":
        padding: Any = self.padding
        return _Group(self.bias, self.out_channels, (1, 1, 1), padding, (1, 1, 1), len(self.inputs))

    def _readable(self, sources: Sequence[Tensor], shifts: Shifts) -> tuple[list[Tensor], Shifts]:
        """What the groups' channels are copied from."""
        if _reads_sources(sources[0]):
            return list(sources), shifts
        return [shifted_concat(list(sources), list(shifts), self.shift_axis)], ()

    def _batched_axis(self, x: Tensor) -> int | None:
        """The axis, if any, whose slices go into the batch, with a 2D convolution for a kernel that is 1 along it.

        On a CPU, for what torch computes with a slow 3D convolution of its own: one volume that it takes for small.
        """
        small = x.is_cpu and len(x) == 1 and self.inputs.shape[1] * x.shape[2] * x.shape[3] <= SMALL
        return self.shift_axis if small and self.kernel_size[self.shift_axis] == 1 else None

    def _groups(self, axis: int | None, inputs: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor, _Group]]:
        """Of each group: its number, its input channels ascending, their slots, and its convolution."""
        ascending, order = (self.inputs if inputs is None else inputs).sort(1)
        padding: Any = tuple(self.padding[k] for k in range(3) if k != axis)
        ones = (1,) * len(padding)
        for number in range(len(self.inputs)):
            bias = None if self.bias is None else self.bias[self._outputs(number)]
            yield number, ascending[number], order[number], _Group(bias, self.connection_block, ones, padding, ones)

    def _outputs(self, group: int) -> slice:
        return slice(group * self.connection_block, (group + 1) * self.connection_block)

    def _kernel(self, values: Tensor, group: int, order: Tensor, axis: int | None) -> Tensor:
        weight = values[group].index_select(1, order)
        return weight if axis is None else weight.squeeze(axis + 2)

    def _gathered(self, sources: Sequence[Tensor], channels: Tensor, shifts: Shifts, axis: int | None) -> Tensor:
        """`[B, fan_in, D, H, W]`, in whose memory `axis` stands beside the batch."""
        x = sources[0]
        dtype = x.dtype
        for source in sources[1:]:
            dtype = torch.promote_types(dtype, source.dtype)
        sizes = [len(x), len(channels), *x.shape[2:]]
        if axis is None:
            out = x.new_empty(sizes, dtype=dtype)
        else:
            sizes.insert(1, sizes.pop(axis + 2))
            out = x.new_empty(sizes, dtype=dtype).movedim(1, axis + 2)
        gather_shifted(list(sources), channels, list(shifts), self.shift_axis, out)
        return out


class Read(NamedTuple):
    """What the groups of a `SharedInputConv3d` read of its sources, where those are made for it and may leave out more.

    Attributes:
        rows: for each source the channels to be made, ascending, at least one; None where it is there as a whole.
        inputs, shifts: the module's and the block's, of the channels that are left.
    """

    rows: list[Tensor | None]
    inputs: Tensor | None
    shifts: Shifts

    @classmethod
    def of(cls, conv: SharedInputConv3d, channels: Sequence[int], shifts: Shifts, made: Sequence[bool]) -> "Read":
        """Of sources with so many `channels`, of which some are `made` for this convolution."""
        reads = torch.zeros(conv.candidates, dtype=torch.bool).index_fill_(0, conv.inputs.flatten(), True)
        rows: list[Tensor | None] = []
        left, first = [], 0
        for count, is_made in zip(channels, made, strict=True):
            there = reads[first : first + count].nonzero()[:, 0] if is_made else torch.arange(count)
            there = there if len(there) else torch.zeros(1, dtype=torch.int64)
            rows.append(there if is_made else None)
            left.append(there + first)
            first += count
        kept = torch.cat(left)
        ends = torch.tensor([size for size, _ in shifts]).cumsum(0)
        sizes = torch.searchsorted(kept, ends).diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist()
        moved = [(size, shift) for size, (_, shift) in zip(sizes, shifts, strict=True) if size]
        return cls(rows, torch.searchsorted(kept, conv.inputs), moved)


def reads_alone(x: Tensor) -> bool:
    """Whether a convolution of volumes like `x [B, C, D, H, W]` copies channels group by group out of its sources."""
    return _reads_sources(x) and not _at_once(x)


def _reads_sources(x: Tensor) -> bool:
    """Off the CPU the concatenation is read: copies out of the sources need the inputs on the host, at every step."""
    return x.is_cpu


def _at_once(x: Tensor) -> bool:
    return x.is_cpu and math.prod(x.shape[2:]) <= AT_ONCE


def _slices(x: Tensor, axis: int | None) -> Tensor:
    """`[B, C, D, H, W]` with the slices across `axis` in the batch: for axis 0 `[B D, C, H, W]`."""
    return x if axis is None else x.movedim(axis + 2, 1).flatten(0, 1)


def _volume(x: Tensor, axis: int | None, like: Tensor) -> Tensor:
    """The way back of `_slices`, for a batch and slices as in `like [B, C, D, H, W]`."""
    return x if axis is None else x.unflatten(0, (len(like), like.shape[axis + 2])).movedim(1, axis + 2)


class SharedInputConvTranspose3d(SharedInputs, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` whose kernel is its stride, without padding, whose outputs share their inputs in blocks."""

    outputs_first = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: tuple[int, int, int],
        *,
        bias: bool = True,
        density: float = 1.0,
        connection_block: int = 1,
        fan_in_multiple: int = 1,
    ) -> None:
        nn.ConvTranspose3d.__init__(self, in_channels, out_channels, stride, stride, bias=bias)
        self.init_groups(density, connection_block, fan_in_multiple)

    def forward(self, input: Tensor, output_size: list[int] | None = None, rows: Tensor | None = None) -> Tensor:
        """`[B, C_in, D, H, W]` -> `[B, C_out, D', H', W']`, larger by the stride.

        No two taps meet: one matrix product a group gives the taps of all its outputs, which then go to their places.
        `rows`: the output channels to be computed, ascending; None for all.
        """
        groups, block, fan_in = self.values.shape[:3]
        batch, _, *size = input.shape
        x = input.index_select(1, self.inputs.flatten()).view(batch, groups, fan_in, -1)
        if rows is None:
            y = self._taps(self.values.flatten(3).transpose(2, 3).reshape(groups, -1, fan_in) @ x, size)
        else:
            parts = []
            for number, (values, read) in enumerate(zip(self.values.unbind(0), x.unbind(1), strict=True)):
                wanted = rows[(rows >= number * block) & (rows < (number + 1) * block)] - number * block
                if len(wanted):
                    weight = values.index_select(0, wanted).flatten(2).transpose(1, 2).reshape(-1, fan_in)
                    parts.append(self._taps(weight @ read, size))
            y = torch.cat(parts, 1)
        y = y.reshape(batch, -1, *(n * k for n, k in zip(size, self.kernel_size, strict=True)))
        if self.bias is None:
            return y
        bias = self.bias if rows is None else self.bias.index_select(0, rows)
        return y + bias.to(y.dtype)[:, None, None, None]

    def _taps(self, products: Tensor, size: Sequence[int]) -> Tensor:
        """Rows of channels and taps, `[B, ..., D H W]` -> `[B, C, D, kD, H, kH, W, kW]`."""
        return products.view(len(products), -1, *self.kernel_size, *size).permute(0, 1, 5, 2, 6, 3, 7, 4)
