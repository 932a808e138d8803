"""The Med-Adapter (Med-Tuning, section 3.2): a bottleneck that mixes slices and scales, after a transformer block."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.layers.precision import without_autocast

BRANCHES = ("conv3", "conv5", "frequency", "conv9", "conv11")
INTERACTIONS = ("concat", "add", "max", "none")
FREQUENCY_FORMS = ("circulant", "fft")


def hidden_width(width: int, alpha: float) -> int:
    """Channels inside of an adapter, int(width / alpha).

    Raises:
        ConfigurationError: alpha is below 1 or above the width.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 1 <= alpha <= width:
        raise ConfigurationError(f"'alpha' must be a number from 1 to the backbone's width {width}, found {alpha!r}.")
    return int(width / alpha)


class FrequencyBranch(nn.Module):
    """|IFFT(W_F * FFT(Z) + b_F)| over slices, height and width (equation 7), with the magnitude as published.

    W_F and b_F, `[1, 1, D, 1, 1]`, are real and start at one. As they depend on the frequency along the slices alone,
    the transforms in the plane cancel: W_F is a circular convolution along the slices, and b_F adds to the first token
    of each slice. Form "circulant" computes that, by two D x D matrices and without complex numbers; "fft" computes
    the equation as it stands. Both work in float32 under autocast, because half precision has no room for the sums.
    """

    waves: Tensor
    turned: Tensor

    def __init__(self, slices: int, form: str = "circulant") -> None:
        super().__init__()
        if form not in FREQUENCY_FORMS:
            raise ConfigurationError(f"'frequency' must be one of {', '.join(FREQUENCY_FORMS)}, found {form!r}.")
        self.form = form
        self.weight = nn.Parameter(torch.ones(1, 1, slices, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, 1, slices, 1, 1))
        self._make_waves()

    def _make_waves(self) -> None:
        """Constants in dtype and on device of the weights: cos and sin of 2 pi n k / D, and what turns them."""
        waves = _waves(self.weight.flatten())
        cos, sin = waves.chunk(2)
        turned = torch.stack([torch.cat([cos, sin]), torch.cat([sin, -cos])], dim=1) / len(cos)
        self.register_buffer("waves", waves, persistent=False)
        self.register_buffer("turned", turned, persistent=False)  # [2D, 2, D]

    def _apply(self, fn: Any, recurse: bool = True) -> "FrequencyBranch":
        """nn.Module's; the waves are made anew, because those of another precision are not exact in this one."""
        super()._apply(fn, recurse)
        self._make_waves()
        return self

    def forward(self, z: Tensor, made: "Filter | None" = None) -> Tensor:
        """`z [B, h, D, H, W]` -> the same shape and dtype. `made`: this branch's of `filters`, made here if None."""
        dtype = torch.promote_types(z.dtype, torch.float32)
        with without_autocast(z.device):
            if self.form == "circulant":
                result = self._circulant(z.to(dtype), made or filters([self])[0])
            else:
                result = self._fft(z.to(dtype))
        return result.to(z.dtype)

    def kernel(self) -> Tensor:
        """`[2, D]`: real and imaginary part of the circular filter along the slices, IDFT(W_F)."""
        spectrum = self.weight.flatten()
        return (self.waves @ spectrum).unflatten(0, (2, -1)) / len(spectrum)

    def _circulant(self, z: Tensor, made: "Filter") -> Tensor:
        tokens = z.movedim(1, -1)
        rows = tokens.flatten(2)  # [B, D, H * W * h]
        filtered = torch.matmul(made.matrix.to(z.dtype), rows)
        filtered[..., : z.shape[1]].add_(made.bias.to(z.dtype).unsqueeze(1))  # += would copy it to itself too
        return magnitude(filtered.unflatten(1, (2, -1))).view(tokens.shape).movedim(-1, 1)

    def _fft(self, z: Tensor) -> Tensor:
        spectrum = torch.fft.fftn(z, dim=(2, 3, 4)) * self.weight.to(z.dtype) + self.bias.to(z.dtype)
        return torch.fft.ifftn(spectrum, dim=(2, 3, 4)).abs()


def magnitude(parts: Tensor) -> Tensor:
    """Absolute values of complex numbers, `[B, 2, ...]` of real and imaginary parts -> `[B, ...]`.

    A norm over two numbers is one of torch's slow cases on a CPU.
    """
    if torch.compiler.is_compiling():  # fuses it; and OpenVINO knows no hypot
        return torch.linalg.vector_norm(parts, dim=1)
    return _Magnitude.apply(parts)


class _Magnitude(torch.autograd.Function):
    """With the gradient 0 at 0, where that of `torch.hypot` is none."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor) -> Tensor:
        found = torch.hypot(*parts.unbind(1))
        ctx.save_for_backward(parts, found)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        parts, found = ctx.saved_tensors
        smallest = torch.finfo(found.dtype).tiny ** 0.5  # of which the inverse is far from infinite
        return parts * (gradient / found.clamp_min(smallest)).unsqueeze(1)


class Filter(NamedTuple):
    """What a frequency branch does to the slices: their product with `matrix [2D, D]`, real parts above the imaginary
    ones, and `bias [2D]`, which adds to each slice's first token.
    """

    matrix: Tensor
    bias: Tensor


def filters(branches: Sequence[FrequencyBranch]) -> list[Filter]:
    """Of frequency branches of one number of slices, all in five kernels; in float32 or better."""
    first = branches[0]
    dtype = torch.promote_types(first.weight.dtype, torch.float32)
    with without_autocast(first.weight.device):
        waves, turned = first.waves.to(dtype), first.turned.to(dtype)
        spectra, biases = (
            torch.cat([getattr(branch, name).flatten(1, 3) for branch in branches]).to(dtype).flatten(1)
            for name in ("weight", "bias")
        )
        # The circulant matrices of the filter's real and imaginary part, M[d, e] = kernel[d - e]. The addition theorem
        # for (d - e) makes sums of products of them: no gather, whose backward pass is random.
        matrices = (turned * spectra[:, None, None]).flatten(2) @ waves
        return [Filter(*made) for made in zip(matrices, biases @ turned[:, 0].T, strict=True)]


def _waves(like: Tensor) -> Tensor:
    """cos and below it sin of 2 pi n k / D, `[2D, D]`, in dtype and on device of `like [D]`; exact in the angle."""
    number = torch.arange(len(like), device=like.device)
    angles = torch.outer(number, number).remainder(len(like)).to(like.dtype) * (2 * math.pi / len(like))
    return torch.cat([angles.cos(), angles.sin()])


class DepthwiseConv(nn.Conv3d):
    """A depthwise 1xKxK or Kx1x1 convolution, computed in 2D: two to three times as fast on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """`x [B, h, D, H, W]` -> the same shape."""
        tokens = x.movedim(1, -1)  # views of this order keep strides by which conv2d knows that channels are last
        along = self.kernel_size[1] == 1
        axis = 2 if along else 0  # the plane becomes one axis, or the slices become the batch
        merged, weight = tokens.flatten(axis, axis + 1).movedim(-1, 1), self.weight.flatten(axis + 1, axis + 2)
        padding = self.padding[:2] if along else self.padding[1:]
        y = F.conv2d(merged, weight, self.bias, padding=padding, groups=self.groups)
        return y.movedim(1, -1).unflatten(axis, tokens.shape[axis : axis + 2]).movedim(-1, 1)


class PointwiseConv(nn.Conv3d):
    """A 1x1x1 convolution, computed as a linear layer of the tokens, which lie in memory one after the other."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x [B, C, D, H, W]` -> `[B, K, D, H, W]`."""
        return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class SeparableBranch(nn.Sequential):
    """Depthwise 1xKxK and Kx1x1 convolutions (equation 8), with the batch norm and ReLU of the published code."""

    def __init__(self, width: int, size: int) -> None:
        pad = size // 2
        super().__init__(
            DepthwiseConv(width, width, (1, size, size), padding=(0, pad, pad), groups=width),
            DepthwiseConv(width, width, (size, 1, 1), padding=(pad, 0, 0), groups=width),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )


class Interaction(nn.Module):
    """Fuses the features of the adapter at the end of the stage before (equation 9)."""

    def __init__(self, width: int, previous: int, stride: int, mode: str) -> None:
        super().__init__()
        self.previous, self.stride, self.mode = previous, stride, mode
        if stride == 1:
            self.align: nn.Conv3d = PointwiseConv(previous, width)
        else:
            self.align = nn.Conv3d(previous, width, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1))
        self.fuse = PointwiseConv(2 * width, width) if mode == "concat" else None

    def forward(self, x: Tensor, before: Tensor | None) -> Tensor:
        """`x [B, h, D, H, W]`, `before [B, previous, D, stride * H, stride * W]` or None in the first stage."""
        if before is None:  # zeros, of which a single token is enough
            before = x.new_zeros(1, self.previous, 1, self.stride, self.stride)
        aligned = self.align(before)
        if self.fuse is not None:
            return self.fuse(torch.cat([x, aligned.expand_as(x)], dim=1))
        return x + aligned if self.mode == "add" else torch.maximum(x, aligned)


class MedAdapter(nn.Module):
    """X + GELU(up(Z + H)), with Z = GELU(down(X)) and H the sum of the branches, mixed and fused (equations 6 to 10).

    Args:
        width: d, of the tokens.
        hidden: h, of the bottleneck; see `hidden_width`.
        slices: D.
        branches: of `BRANCHES`; conv9 and conv11 are table 4's full depthwise convolutions.
        mix: the 1x1x1 convolution behind the sum.
        interaction: of `INTERACTIONS`, other than "none" in the last adapter of a stage.
        previous: channels of the features of the stage before, for the interaction.
        stride: how much finer their grid is.
        frequency: form of the frequency branch.
        zero_init: start the up-projection at zero, so that the adapter starts as the identity; the published code
            starts it at random.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        slices: int,
        *,
        branches: Sequence[str] = BRANCHES[:3],
        mix: bool = True,
        interaction: str = "none",
        previous: int = 1,
        stride: int = 1,
        frequency: str = "circulant",
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        self.slices = slices
        self.down = nn.Linear(width, hidden)
        self.branches = nn.ModuleDict({name: _branch(name, hidden, slices, frequency) for name in branches})
        self.mix = PointwiseConv(hidden, hidden) if mix else nn.Identity()
        self.interaction = None if interaction == "none" else Interaction(hidden, previous, stride, interaction)
        self.up = nn.Linear(hidden, width)
        if zero_init:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, before: Tensor | None, made: Filter | None = None) -> tuple[Tensor, Tensor | None]:
        """Tokens `x [B * D, H, W, d]` and the features that stages hand on -> the same.

        `made`: the frequency branch's filter, see `filters`; made here if None.
        """
        z = F.gelu(self.down(x)).unflatten(0, (-1, self.slices)).permute(0, 4, 1, 2, 3)
        first, *others = (
            branch(z, made) if name == "frequency" else branch(z) for name, branch in self.branches.items()
        )
        mixed = self.mix(sum(others, first))
        if self.interaction is not None:
            mixed = before = self.interaction(mixed, before)
        enhanced = (z + mixed).permute(0, 2, 3, 4, 1).flatten(0, 1)
        return x + F.gelu(self.up(enhanced)), before


def _branch(name: str, width: int, slices: int, frequency: str) -> nn.Module:
    if name == "frequency":
        return FrequencyBranch(slices, frequency)
    size = int(name.removeprefix("conv"))
    if size < 9:
        return SeparableBranch(width, size)
    return nn.Conv3d(width, width, size, padding=size // 2, groups=width)


def check_adapter(branches: Sequence[str], interaction: str) -> None:
    """Raises a ConfigurationError that lists the known names where one is unknown."""
    if not branches or len(set(branches)) != len(branches) or not set(branches) <= set(BRANCHES):
        raise ConfigurationError(f"'branches' must be one or more of {', '.join(BRANCHES)}, found {branches!r}.")
    if interaction not in INTERACTIONS:
        raise ConfigurationError(f"'interaction' must be one of {', '.join(INTERACTIONS)}, found {interaction!r}.")
