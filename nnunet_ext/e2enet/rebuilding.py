"""Training steps that keep the outputs of convolutions and make the rest again in the backward pass.

Autograd keeps what an operation reads: of a fusion node the up-convolved and the pooled flow, the shifted
concatenation, the convolution's output and its activation. All of it follows from the outputs of the convolutions
before, at the cost of copies, of one multiply-add a voxel for norm and activation, and of the up-convolution. So a
block keeps the output z of its convolution, with mean and deviation; the activation LeakyReLU(scale (z - mean) + bias)
carries along what it is made of, and whoever needs it in the backward pass keeps that. In the forward pass nothing is
computed twice.

Gradients are those of the plain formulation: the same kernels get the same numbers. Under torch.compile, whose
partitioner decides what is kept, these functions are not used. With `nnUNet_ext_fused=1` norm and activation are those
of `fused.py`, in both passes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call
from torch.nn.modules import module as torch_modules

from nnunet_ext.e2enet import grouped
from nnunet_ext.e2enet.depth_shift import shifted_concat, split_shifted
from nnunet_ext.e2enet.fused import Pending, by_triton, concatenate, written
from nnunet_ext.e2enet.masked import KernelSlots, MaskedConv3d, SparseConnections
from nnunet_ext.e2enet.shared_inputs import Read, SharedInputConv3d, SharedInputConvTranspose3d, reads_alone
from nnunet_ext.layers.convolutions import convolution_gradients
from nnunet_ext.layers.precision import same_autocast

Shifts = list[tuple[int, int]]
KNOWN = (nn.Conv3d, MaskedConv3d, SharedInputConv3d)


class _MadeOf(NamedTuple):
    """An activation is `LeakyReLU(scale (z - mean) + bias)`; `z [B, C, D, H, W]`, the others `[B C]`."""

    z: Tensor
    mean: Tensor
    scale: Tensor
    bias: Tensor
    slope: float
    version: int  # of the activation: it was changed in place where it has another


def rebuilds() -> bool:
    """Whether gradients are recorded, operation by operation."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def can_rebuild(conv: nn.Module, norm: nn.Module | None = None, act: nn.Module | None = None) -> bool:
    """Whether these modules compute what this file does in their place: of known types, without hooks."""
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        return False
    known: bool = type(conv) in KNOWN and conv.groups == 1 and conv.padding_mode == "zeros"  # type: ignore
    if norm is not None:
        known = known and type(norm) is nn.InstanceNorm3d and norm.affine and not norm.track_running_stats
        known = known and type(act) is nn.LeakyReLU
    return known and all(_unchanged(module) for module in (conv, norm, act) if module is not None)


def _unchanged(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(module)


def norm_and_activation(z: Tensor, norm: nn.InstanceNorm3d, slope: float) -> Tensor:
    """`LeakyReLU(InstanceNorm(z))` of `z [B, C, D, H, W]`, of which only `z` is kept."""
    y, mean, scale, bias = _NormAndActivation.apply(z, norm.weight, norm.bias, norm.eps, slope)
    y.made_of = _MadeOf(z.detach(), mean, scale, bias, slope, y._version)
    return y


class _NormAndActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Any:
        ctx.fused = by_triton(z)
        if ctx.fused:
            pending, rstd = Pending.of(z, weight, bias, eps, slope)
            known = pending.mean, pending.scale, pending.bias
            ctx.save_for_backward(z, rstd, *known)
            ctx.slope = slope
            ctx.mark_non_differentiable(*known)
            return pending.written, *known
        # As torch.instance_norm: a batch norm of one sample, in which each sample's channels are channels.
        rows, weight, bias = z.reshape(1, -1, *z.shape[2:]), weight.repeat(len(z)), bias.repeat(len(z))
        y, mean, rstd, reserve, kind = torch.ops.aten._batch_norm_impl_index(
            rows, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled
        )
        scale = rstd * weight
        ctx.save_for_backward(z, weight, bias, mean, rstd, scale, reserve)
        ctx.eps, ctx.slope, ctx.kind = eps, slope, kind
        ctx.mark_non_differentiable(mean, scale, bias)
        # Not a view, which could not be changed in place.
        return torch.ops.aten._unsafe_view(F.leaky_relu_(y, slope), z.shape), mean, scale, bias

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> Any:
        if ctx.fused:
            z, rstd, mean, scale, bias = ctx.saved_tensors
            gz, *sums = Pending(z, mean, scale, bias, ctx.slope).gradients(grad, rstd)
            return gz, *(g.view(len(z), -1).sum(0) for g in sums), None, None
        z, weight, bias, mean, rstd, scale, reserve = ctx.saved_tensors
        grad = torch.ops.aten.leaky_relu_backward(grad, _normalised(z, mean, scale, bias), ctx.slope, False)
        rows = z.reshape(1, -1, *z.shape[2:])
        gz, gw, gb = torch.ops.aten._batch_norm_impl_index_backward(
            ctx.kind, rows, grad.reshape(rows.shape), weight, None, None, mean, rstd, True, ctx.eps,
            ctx.needs_input_grad[:3], reserve,
        )  # fmt: skip
        gw, gb = (None if g is None else g.view(len(z), -1).sum(0) for g in (gw, gb))
        return None if gz is None else gz.view_as(z), gw, gb, None, None


def _normalised(z: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """`scale (z - mean) + bias` in z's precision, by the operation that computed it first, with the same rounding."""
    rows = z.reshape(1, -1, *z.shape[2:])
    # Not F.batch_norm, which in some releases of torch (2.11) refuses an eps of 0.
    return torch.batch_norm(rows, scale, bias, mean, torch.ones_like(mean), False, 0.0, 0.0, False).view_as(z)


def convolve(conv: Any, parts: list[Tensor], shifts: Any, axis: int, inputs: Tensor | None = None) -> Tensor:
    """`conv` of the shifted concatenation of `parts`, which one with shared inputs does without; these: of `Read`."""
    if isinstance(conv, SharedInputConv3d):
        return conv(parts, shifts, inputs=inputs)
    return conv(shifted_concat(parts, shifts, axis))


def rebuilding_convolution(
    conv: Any,
    sources: Sequence[Tensor],
    through: Sequence[nn.Module | None] = (None,),
    shifts: Shifts | None = None,
    axis: int = 0,
) -> Tensor:
    """`conv` of the shifted concatenation of `sources`, each of which comes `through` a module where one is given.

    Kept are the sources, or what they are made of, and parameters.
    """
    made_of = [getattr(source, "made_of", None) for source in sources]
    made_of = [m if m is not None and m.version == s._version else None for m, s in zip(made_of, sources, strict=True)]
    reading = _Reading(through, shifts or [], axis)
    stored = conv.values if isinstance(conv, SparseConnections) else conv.weight
    return _Convolution.apply(conv, reading, made_of, stored, conv.bias, *sources, *reading.parameters())


class _Reading:
    """How a convolution's input is made of its sources: each through a module or as it is, shifted, concatenated."""

    def __init__(self, through: Sequence[nn.Module | None], shifts: Shifts, axis: int) -> None:
        self.through, self.shifts, self.axis = through, shifts, axis
        self.names = [[] if module is None else [name for name, _ in module.named_parameters()] for module in through]

    def parameters(self) -> list[Tensor]:
        return [p for module in self.through if module is not None for p in module.parameters()]

    def buffers(self, conv: nn.Module) -> list[Tensor]:
        return [b for module in (conv, *self.through) if module is not None for b in module.buffers()]

    def read(self, conv: Any, sources: Sequence[Tensor], fused: bool) -> Read:
        """What is read of the sources; all of them but where it is copied out of them group by group."""
        channels = [self._channels(*pair) for pair in zip(self.through, sources, strict=True)]
        if fused or None in channels or not isinstance(conv, SharedInputConv3d) or not reads_alone(sources[0]):
            return Read([None for _ in sources], None, self.shifts)
        return Read.of(conv, channels, self.shifts, [module is not None for module in self.through])

    @staticmethod
    def _channels(module: Any, source: Tensor) -> Any:
        """Of the part, where it is known how to make some of them alone; else None."""
        if module is None or _pools_by_maxima(module, source):
            return source.shape[1]
        return module.out_channels if type(module) is SharedInputConvTranspose3d and _unchanged(module) else None

    def gradients(
        self, conv: Any, grad: Tensor, parts: list[Any], stored: Tensor, wanted: Sequence[bool], fused: bool, read: Read
    ) -> tuple[list[Tensor] | None, Tensor | None, Tensor | None]:
        """Of the parts, which this takes out of their list, of what is `stored` of the weight, and of the bias.

        `fused`, `read`: as the forward pass was, whatever is asked for now.
        """
        if isinstance(conv, SharedInputConv3d):
            parts = [written(part) for part in parts]
            if fused and grouped.applies(conv, parts):
                return grouped.gradients(conv, grad, parts, self.shifts, stored, wanted)
            return conv.gradients(grad, parts, read.shifts, stored, wanted, read.inputs)
        channels = [part.shape[1] for part in parts]
        x = concatenate(parts, self.shifts, self.axis)
        parts.clear()
        sparse = isinstance(conv, KernelSlots)
        gx, gw, gb = convolution_gradients(conv, grad, x, conv.dense_weight(stored) if sparse else stored, wanted)
        del x
        if gw is not None and sparse:
            gw = gw.flatten(0, 1).index_select(0, conv.index)
        return None if gx is None else split_shifted(gx, channels, self.shifts, self.axis), gw, gb


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, conv: Any, reading: _Reading, made_of: list[_MadeOf | None], stored: Tensor, bias: Any, *rest: Tensor
    ) -> Tensor:
        sources, parameters = rest[: len(made_of)], rest[len(made_of) :]
        ctx.conv, ctx.reading, ctx.fused = conv, reading, by_triton(sources[0])
        ctx.read = read = reading.read(conv, sources, ctx.fused)
        parts = [_passed(*given) for given in zip(reading.through, sources, read.rows, strict=True)]
        ctx.slopes = [None if m is None else m.slope for m in made_of]
        ctx.autocast = same_autocast(stored.device)
        kept = [t for s, m in zip(sources, made_of, strict=True) for t in ((s,) if m is None else m[:4])]
        # Buffers are saved so that torch notices where the topology moves before the backward pass.
        ctx.save_for_backward(stored, *parameters, *kept, *reading.buffers(conv))
        return convolve(conv, parts, read.shifts, reading.axis, read.inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        conv, reading = ctx.conv, ctx.reading
        stored, *saved = ctx.saved_tensors
        branches = _branches(ctx, saved)
        flows_back = any(ctx.needs_input_grad[5:])
        parts, gw, gb = reading.gradients(
            conv,
            grad,
            [branch.output() for branch in branches],
            stored,
            [flows_back, *ctx.needs_input_grad[3:5]],
            ctx.fused,
            ctx.read,
        )
        if parts is None:
            return None, None, None, gw, gb, *(None for _ in ctx.needs_input_grad[5:])
        of_sources, of_parameters = [], []
        for branch in branches:
            source, *parameters = branch.gradients(parts.pop(0))
            of_sources.append(source)
            of_parameters += parameters
        return None, None, None, gw, gb, *of_sources, *of_parameters


def _passed(module: Any, source: Tensor, rows: Tensor | None) -> Tensor:
    """The source through its module, or those channels of it, without gradients."""
    if module is None:
        return source
    if _pools_by_maxima(module, source):
        return _maxima(source if rows is None else source.index_select(1, rows), _sizes(module))
    return module(source) if rows is None else module(source, rows=rows)


def _pools_by_maxima(module: Any, source: Tensor) -> bool:
    """Whether this is max-pooling that torch computes slowly: on a CPU, with windows of 1 or 2 side by side."""
    if type(module) is not nn.MaxPool3d or not source.is_cpu or not _unchanged(module):
        return False
    return module.stride == module.kernel_size and set(_sizes(module)) <= {1, 2}


def _sizes(pool: nn.MaxPool3d) -> tuple[int, ...]:
    sizes = pool.kernel_size
    return (sizes,) * 3 if isinstance(sizes, int) else tuple(sizes)


def _maxima(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """torch's max-pooling, which on a CPU takes ten times as long."""
    for axis in _halved(sizes):
        x = torch.maximum(*_pair(x, axis))
    return x


class _Maxima(torch.autograd.Function):
    """`_maxima` with gradients: as torch's, to the first of the largest of a window in the order of D, H, W.

    So the innermost axis comes first. Masks are differences: torch's comparisons and selections are slow on CPUs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.steps, gains = [], []
        for axis in reversed(_halved(sizes)):
            first, second = _pair(x, axis)
            ctx.steps.append((axis, x.shape))
            gains.append(second - first)
            x = torch.maximum(first, second)
        ctx.save_for_backward(*gains)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        for (axis, shape), gain in zip(reversed(ctx.steps), reversed(ctx.saved_tensors), strict=True):
            whole = gradient.new_zeros(shape) if shape[axis] % 2 else gradient.new_empty(shape)
            first, second = _pair(whole, axis)
            later = torch.ops.aten.threshold_backward(gradient, gain, 0)  # where the gain is above 0
            torch.sub(gradient, later, out=first)
            second.copy_(later)
            gradient = whole
        return gradient, None


def _halved(sizes: Sequence[int]) -> list[int]:
    return [axis for axis, size in enumerate(sizes, start=2) if size == 2]


def _pair(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Every first and every second slice along an axis; of an odd number the last is left out."""
    pairs = x.narrow(axis, 0, x.shape[axis] // 2 * 2).unflatten(axis, (-1, 2))
    return pairs.select(axis + 1, 0), pairs.select(axis + 1, 1)


def _branches(ctx: Any, saved: list[Tensor]) -> "list[_Branch]":
    """The sources of a convolution, made again of what its forward pass saved."""
    reading, wanted = ctx.reading, ctx.needs_input_grad[5:]
    count = sum(map(len, reading.names))
    parameters, kept = saved[:count], saved[count:]
    branches = []
    sources = zip(reading.through, reading.names, ctx.slopes, ctx.read.rows, wanted, strict=False)
    for module, names, slope, rows, wants in sources:
        source: Any
        alone = rows if type(module) is nn.MaxPool3d else None  # whose channels need no others
        if slope is None:
            source = kept.pop(0).detach()
            channels = source.shape[1]
            source = source if alone is None else source.index_select(1, alone)
        else:
            z, mean, scale, bias = (kept.pop(0) for _ in range(4))
            channels = z.shape[1]
            if alone is not None:
                mean, scale, bias = (t.view(len(z), -1).index_select(1, alone).flatten() for t in (mean, scale, bias))
                z = z.index_select(1, alone)
            if ctx.fused:
                source = Pending(z, mean, scale, bias, slope)
            else:
                source = F.leaky_relu_(_normalised(z, mean, scale, bias), slope)
        own = {name: parameters.pop(0).detach().requires_grad_() for name in names}
        branches.append(_Branch(module, source, wants, own, ctx.autocast, rows, channels))
    return branches


class _Branch:
    """One source in the backward pass: its part of what the convolution reads, and the way back."""

    def __init__(
        self,
        module: nn.Module | None,
        source: Any,
        wanted: bool,
        parameters: dict[str, Tensor],
        autocast: Any,
        rows: Tensor | None,
        channels: int,
    ) -> None:
        """`wanted`: the gradient of the source, a tensor or a `Pending`; of one that is pooled it has the `rows`."""
        self._leaves: list[Tensor] | None = None
        self._output: Any = source
        self._rows, self._channels = rows if type(module) is nn.MaxPool3d else None, channels
        self._dtype = (source.z if isinstance(source, Pending) else source).dtype
        if module is not None:
            source = written(source).requires_grad_(wanted)
            self._leaves = [source, *parameters.values()]
            with torch.enable_grad(), autocast():
                if isinstance(module, nn.MaxPool3d) and _pools_by_maxima(module, source):
                    output = _Maxima.apply(source, _sizes(module))
                else:
                    some = None if rows is None else {"rows": rows}
                    output = functional_call(module, parameters, (source,), some)
            self._dtype, self._output = output.dtype, output.detach()
            self._edge = get_gradient_edge(output) if output.requires_grad else None

    def output(self) -> Any:
        """The part `[B, C, D, H, W]`, a tensor or a `Pending`.

        Only once, so that its memory is free before the gradients come.
        """
        output, self._output = self._output, None
        assert output is not None
        return output

    def gradients(self, grad: Tensor) -> list[Tensor | None]:
        """Of the source and the module's parameters, from that of the part."""
        grad = grad.to(self._dtype)
        if self._leaves is None:
            return [grad]
        if self._edge is None:
            return [None for _ in self._leaves]
        wanted = [leaf for leaf in self._leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(self._edge, wanted, grad))
        gradients = [next(found) if leaf.requires_grad else None for leaf in self._leaves]
        if self._rows is not None and gradients[0] is not None:
            some = gradients[0]
            whole = some.new_zeros(len(some), self._channels, *some.shape[2:])
            gradients[0] = whole.index_copy_(1, self._rows, some)
        return gradients
