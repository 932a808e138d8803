"""What is inserted into the frozen encoder and trained: the Med-Adapters, and the methods that the paper compares with.

The positions and activations of those methods are not in the Med-Tuning paper; its tables fix their sizes, and the
rest follows their own papers and published code. All of them start as the identity, prompts excepted.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.layers.padding import pad_to_multiple
from nnunet_ext.med_tuning.adapters import DepthwiseConv, MedAdapter, check_adapter, filters, hidden_width
from nnunet_ext.med_tuning.backbones import Layout, run_block

METHODS = (
    "med_adapter",
    "full",
    "head",
    "scratch",
    "vpt_shallow",
    "vpt_deep",
    "adapter",
    "adaptformer",
    "pro_tuning",
    "st_adapter",
    "lora",
)
TRAINED_WHOLE = ("full", "scratch")


class Tuning(nn.Module):
    """Runs the encoder's blocks. This one inserts nothing: the methods full, head and scratch.

    Tokens are `[B * D, H, W, d]` throughout; `carried` is whatever a method hands on from block to block.
    """

    def enter(self, merging: nn.Module | None, x: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """The step into a stage: patch merging where there is one."""
        return x if merging is None else merging(x), carried

    def forward(self, block: nn.Module, stage: int, number: int, x: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """Block `number` of `stage` with what belongs to it."""
        return run_block(block, x), carried


class _PerBlock(Tuning):
    """One inserted module a block."""

    def __init__(self, layout: Layout, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.depths = layout.depths
        self.blocks = nn.ModuleList(modules)

    def of(self, stage: int, number: int) -> Any:
        """The module of a block."""
        return self.blocks[sum(self.depths[:stage]) + number]


class MedAdapters(_PerBlock):
    """A Med-Adapter after every block; the last of each stage takes in the features of the stage before.

    The first `adapted_from` blocks have none, so that nothing is propagated back through them.
    """

    def __init__(
        self,
        layout: Layout,
        slices: int,
        *,
        alpha: float,
        interaction: str,
        branches: Sequence[str],
        mix: bool,
        frequency: str,
        zero_init: bool,
        adapted_from: int = 0,
    ) -> None:
        check_adapter(branches, interaction)
        if type(adapted_from) is not int or not 0 <= adapted_from < sum(layout.depths):
            raise ConfigurationError(
                f"'adapted_from' must be a number of blocks that get no adapter, 0 to {sum(layout.depths) - 1}, found "
                f"{adapted_from!r}."
            )
        hidden = [hidden_width(width, alpha) for width in layout.widths]
        stride = 2 if layout.kind == "swin" else 1
        before = [max(1, hidden[0] // stride), *hidden]
        modules = [
            MedAdapter(
                layout.widths[stage],
                hidden[stage],
                slices,
                branches=branches,
                mix=mix,
                interaction=interaction if number == depth - 1 else "none",
                previous=before[stage],
                stride=stride,
                frequency=frequency,
                zero_init=zero_init,
            )
            for stage, depth in enumerate(layout.depths)
            for number in range(depth)
        ]
        super().__init__(layout, [*(nn.Identity() for _ in range(adapted_from)), *modules[adapted_from:]])
        self.adapted_from = adapted_from
        self.filters_at_once = frequency == "circulant" and "frequency" in branches

    def enter(self, merging: nn.Module | None, x: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """Before the first stage, the filters of all frequency branches; carried with the features of stages."""
        x, carried = super().enter(merging, x, carried)
        if carried is None:
            adapters: Any = self.blocks[self.adapted_from :]
            made = (
                filters([a.branches["frequency"] for a in adapters]) if self.filters_at_once else [None] * len(adapters)
            )
            carried = None, made
        return x, carried

    def forward(self, block: nn.Module, stage: int, number: int, x: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """The block, then its adapter."""
        x = run_block(block, x)
        index = sum(self.depths[:stage]) + number - self.adapted_from
        if index < 0:
            return x, carried
        before, made = carried
        x, before = self.of(stage, number)(x, before, made[index])
        return x, (before, made)


class _InsideBlocks(_PerBlock):
    """Modules between the parts of a block: attention, then MLP, both residual and behind a norm."""

    def forward(self, block: Any, stage: int, number: int, x: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """The block with its module's three methods in place."""
        inserted = self.of(stage, number)
        if isinstance(block, SwinTransformerBlock):
            x = x + inserted.after_attention(block._attn(block.norm1(x)))
            x = inserted.before_mlp(x)
            return x + inserted.after_mlp(block.mlp(block.norm2(x)), x), carried
        attended = block.ls1(block.attn(block.norm1(x).flatten(1, 2))).unflatten(1, x.shape[1:3])
        x = x + inserted.after_attention(attended)
        x = inserted.before_mlp(x)
        return x + inserted.after_mlp(block.ls2(block.mlp(block.norm2(x))), x), carried


class _Inserted(nn.Module):
    def after_attention(self, attended: Tensor) -> Tensor:
        return attended

    def before_mlp(self, x: Tensor) -> Tensor:
        return x

    def after_mlp(self, out: Tensor, x: Tensor) -> Tensor:
        return out


def _bottleneck(width: int, hidden: int, activation: nn.Module) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, width))
    _zero(layers[2])
    return layers


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class BottleneckAdapters(_Inserted):
    """Adapter (Houlsby et al., 2019): residual bottlenecks of width d / 8 behind the attention and behind the MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = _bottleneck(width, max(1, width // 8), nn.GELU())
        self.mlp = _bottleneck(width, max(1, width // 8), nn.GELU())

    def after_attention(self, attended: Tensor) -> Tensor:
        """Before the residual sum."""
        return attended + self.attention(attended)

    def after_mlp(self, out: Tensor, x: Tensor) -> Tensor:
        """Before the residual sum."""
        return out + self.mlp(out)


class AdaptFormer(_Inserted):
    """AdaptFormer (Chen et al., 2022): a bottleneck of width 64 parallel to norm and MLP, scaled by 0.1."""

    def __init__(self, width: int, hidden: int = 64, scale: float = 0.1) -> None:
        super().__init__()
        self.scale = scale
        self.branch = _bottleneck(width, hidden, nn.ReLU())

    def after_mlp(self, out: Tensor, x: Tensor) -> Tensor:
        """The branch reads what the MLP's norm reads."""
        return out + self.scale * self.branch(x)


class STAdapter(_Inserted):
    """ST-Adapter (Pan et al., 2022): a residual bottleneck of width d / 2 with a depthwise convolution over slices."""

    def __init__(self, width: int, slices: int) -> None:
        super().__init__()
        self.slices = slices
        hidden = max(1, width // 2)
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.conv = DepthwiseConv(hidden, hidden, (3, 1, 1), padding=(1, 0, 0), groups=hidden)
        _zero(self.conv)
        nn.init.zeros_(self.up.bias)

    def before_mlp(self, x: Tensor) -> Tensor:
        """Before the MLP's norm."""
        volume = self.down(x).unflatten(0, (-1, self.slices)).permute(0, 4, 1, 2, 3)
        return x + self.up(self.conv(volume).permute(0, 2, 3, 4, 1).flatten(0, 1))


class ProTuning(Tuning):
    """Pro-tuning (Nie et al., 2022): a residual 1x1, depthwise 5x5, 1x1 convolution behind each stage."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.depths = layout.depths
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 1),
                nn.Conv2d(width, width, 5, padding=2, groups=width),
                nn.GELU(),
                nn.Conv2d(width, width, 1),
            )
            for width in layout.widths
        )
        for stage in self.stages:
            _zero(stage[3])  # type: ignore[index]

    def forward(self, block: nn.Module, stage: int, number: int, x: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """The block, and behind the last of a stage its convolutions."""
        x = run_block(block, x)
        if number == self.depths[stage] - 1:
            x = x + self.stages[stage](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x, carried


class Prompts(Tuning):
    """VPT (Jia et al., 2022): learned tokens that every token, in a Swin every window, attends to.

    Shallow: the prompts enter before the first block and go through the network; a Swin averages them over the windows
    of a slice and merges each with itself between stages. Deep: every block has its own, and drops them behind it.
    """

    def __init__(self, layout: Layout, count: int, deep: bool) -> None:
        super().__init__()
        if type(count) is not int or count < 1:
            raise ConfigurationError(f"'prompts' must be a positive integer, found {count!r}.")
        self.depths, self.deep = layout.depths, deep
        widths = layout.block_widths if deep else layout.block_widths[:1]
        self.prompts = nn.ParameterList(nn.Parameter(torch.empty(1, count, width)) for width in widths)
        for prompts in self.prompts:
            limit = math.sqrt(6 / (3 * 16**2 + prompts.shape[2]))
            nn.init.uniform_(prompts, -limit, limit)

    def enter(self, merging: Any, x: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """Patch merging, of shallow prompts too."""
        if merging is None:
            return x, carried
        if not self.deep:
            carried = merging.reduction(merging.norm(torch.cat([carried] * 4, dim=-1)))
        return merging(x), carried

    def forward(self, block: Any, stage: int, number: int, x: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """The block on tokens and prompts `[B * D, P, d]`."""
        index = sum(self.depths[:stage]) + number
        if self.deep or index == 0:
            carried = self.prompts[index].expand(len(x), -1, -1)
        if isinstance(block, SwinTransformerBlock):
            return _prompted_swin_block(block, x, carried)
        count = carried.shape[1]
        both = block(torch.cat([carried, x.flatten(1, 2)], dim=1))
        return both[:, count:].unflatten(1, x.shape[1:3]), both[:, :count]


def _prompted_swin_block(block: Any, x: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """A Swin block whose windows have the slice's prompts `[N, P, d]` besides their tokens of `x [N, H, W, d]`."""
    count, (height, width) = prompts.shape[1], x.shape[1:3]
    (rows, columns), shift = block.window_size, block.shift_size
    shifted = torch.roll(block.norm1(x), shifts=(-shift[0], -shift[1]), dims=(1, 2))
    shifted = pad_to_multiple(shifted.movedim(-1, 1), (rows, columns)).movedim(1, -1)
    windows = window_partition(shifted, (rows, columns)).flatten(1, 2)
    number = len(windows) // len(x)
    attended = _attention(block, windows, block.norm1(prompts).repeat_interleave(number, dim=0))
    tokens = attended[:, count:].unflatten(1, (rows, columns))
    tokens = window_reverse(tokens, (rows, columns), *shifted.shape[1:3])[:, :height, :width]
    x = x + torch.roll(tokens, shifts=shift, dims=(1, 2))
    prompts = prompts + attended[:, :count].unflatten(0, (-1, number)).mean(1)
    return x + block.mlp(block.norm2(x)), prompts + block.mlp(block.norm2(prompts))


def _attention(block: Any, windows: Tensor, prompts: Tensor) -> Tensor:
    """Window attention over `[windows, P + L, d]`: the position bias and the mask are between tokens only."""
    attention, count = block.attn, prompts.shape[1]
    both = torch.cat([prompts, windows], dim=1)
    query, key, value = attention.qkv(both).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    bias = attention._get_rel_pos_bias()
    if block.attn_mask is not None:
        bias = (bias + block.attn_mask.unsqueeze(1)).repeat(len(windows) // len(block.attn_mask), 1, 1, 1)
    bias = F.pad(bias, (count, 0, count, 0)).to(query.dtype)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return attention.proj(out.transpose(1, 2).flatten(2))


class LowRankUpdate(nn.Module):
    """LoRA (Hu et al., 2022): updates of rank r to the weights of queries and values."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, 2 * rank, bias=False)
        self.query, self.value = nn.Linear(rank, width, bias=False), nn.Linear(rank, width, bias=False)
        _zero(self.query)
        _zero(self.value)

    def hook(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Adds to the output of the layer that computes queries, keys and values."""
        query, value = self.down(inputs[0]).chunk(2, dim=-1)
        query = self.query(query)
        return output + torch.cat([query, torch.zeros_like(query), self.value(value)], dim=-1)


class LoRA(_PerBlock):
    """Low-rank updates of every block's queries and values, as hooks, so that the backbone's names stay."""

    def __init__(self, layout: Layout, blocks: Sequence[Any], rank: int) -> None:
        if type(rank) is not int or rank < 1:
            raise ConfigurationError(f"'rank' must be a positive integer, found {rank!r}.")
        super().__init__(layout, [LowRankUpdate(width, rank) for width in layout.block_widths])
        for block, update in zip(blocks, self.blocks, strict=True):
            block.attn.qkv.register_forward_hook(update.hook)


def build_tuning(
    method: str,
    layout: Layout,
    blocks: Sequence[nn.Module],
    slices: int,
    *,
    prompts: int = 10,
    rank: int = 8,
    **adapter: Any,
) -> Tuning:
    """The inserted modules of a tuning method, with the sizes of the paper's tables 1 and 2.

    Args:
        method: of `METHODS`.
        blocks: the encoder's, in order.
        slices: D of the patch, 1 for images in 2D.
        prompts: number of VPT's prompts.
        rank: of LoRA's updates.
        adapter: options of `MedAdapters`.

    Raises:
        ConfigurationError: unknown method, or one that cannot follow the backbone's blocks.
    """
    if method not in METHODS:
        raise ConfigurationError(f"Unknown tuning '{method}'. Known: {', '.join(METHODS)}.")
    inside = method in ("adapter", "adaptformer", "st_adapter", "lora")
    if inside and not all(type(block) in (Block, SwinTransformerBlock) for block in blocks):
        raise ConfigurationError(f"tuning '{method}' needs blocks of attention, then MLP; this backbone's are others.")
    if method == "med_adapter":
        return MedAdapters(layout, slices, **adapter)
    if method in ("vpt_shallow", "vpt_deep"):
        return Prompts(layout, prompts, deep=method == "vpt_deep")
    if method == "pro_tuning":
        return ProTuning(layout)
    if method == "lora":
        return LoRA(layout, blocks, rank)
    if method == "adapter":
        return _InsideBlocks(layout, [BottleneckAdapters(width) for width in layout.block_widths])
    if method == "adaptformer":
        return _InsideBlocks(layout, [AdaptFormer(width) for width in layout.block_widths])
    if method == "st_adapter":
        return _InsideBlocks(layout, [STAdapter(width, slices) for width in layout.block_widths])
    return Tuning()
