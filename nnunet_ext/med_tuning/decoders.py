"""Decoders, which work slice by slice: from the encoder's stages to logits.

`UPerNet` and `SwinUNet` are those of the published code, to the parameter. `UNet`, `SETRNaive`, `SETRPUP` and `SETRMLA`
are our own plain versions of what table 8 names: the paper says nothing about them by which they could be rebuilt.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.layers.norm import SliceNorm
from nnunet_ext.med_tuning.backbones import Layout

_WIDTH = 256


def _conv(c_in: int, c_out: int, size: int) -> nn.Sequential:
    layers = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False), SliceNorm(c_out), nn.ReLU(inplace=True)
    return nn.Sequential(*layers)


def _resize(x: Tensor, size: Sequence[int], aligned: bool = False) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=aligned)


class Decoder(nn.Module):
    """Base of all: `seg_layers[0]` is the last convolution, by a name that nnU-Net's -pretrained_weights skips.

    Called with the inputs of all stages and with their outputs, `[N, h, w, d]` each; gives `[N, K, H, W]`.
    """

    kinds: tuple[str, ...] = ("vit", "swin")

    def __init__(self, layout: Layout, num_classes: int, last: int, size: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.size = layout.size
        self.seg_layers = nn.ModuleList([nn.Conv2d(last, num_classes, size, padding=size // 2, bias=bias)])

    def logits(self, x: Tensor) -> Tensor:
        """Features at any size -> logits at the slices' size."""
        return _resize(self.seg_layers[0](x), self.size)


class UPerNet(Decoder):
    """UPerNet of the published code: one smoothing convolution for three levels, sums of neighbouring levels only."""

    def __init__(self, layout: Layout, num_classes: int, dropout: float, blocks: Any) -> None:
        super().__init__(layout, num_classes, _WIDTH, size=3)
        first, *others = layout.widths
        deepest = layout.widths[-1]
        self.first = nn.Sequential(nn.Conv2d(first, _WIDTH, 1), SliceNorm(_WIDTH), nn.GELU())
        self.bins = (1, 2, 4, 6)
        self.pools = nn.ModuleList(_conv(deepest, deepest // len(self.bins), 1) for _ in self.bins)
        pooled = deepest + len(self.bins) * (deepest // len(self.bins))
        self.pooled = nn.Sequential(_conv(pooled, deepest, 3), nn.Dropout2d(dropout))
        self.laterals = nn.ModuleList(nn.Conv2d(width, _WIDTH, 1) for width in others)
        self.smooth = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)
        self.fuse = _conv(len(layout.widths) * _WIDTH, _WIDTH, 3)

    def forward(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """See `Decoder`."""
        maps = [output.permute(0, 3, 1, 2) for output in outputs]
        first, last = maps[0], maps[-1]
        size = last.shape[2:]
        pools = [
            _resize(pool(F.adaptive_avg_pool2d(last, bin_)), size, aligned=True)
            for bin_, pool in zip(self.bins, self.pools, strict=True)
        ]
        others = [*maps[1:-1], self.pooled(torch.cat([last, *pools], dim=1))]
        levels = [self.first(first), *(lateral(x) for lateral, x in zip(self.laterals, others, strict=True))]
        summed = [  # by index: dynamo of torch 2.6 stumbles over lists of two lengths in one loop
            self.smooth(_resize(levels[k + 1], levels[k].shape[2:], aligned=True) + levels[k])
            for k in range(len(levels) - 1)
        ]
        size = levels[0].shape[2:]
        return self.logits(self.fuse(torch.cat([_resize(x, size, aligned=True) for x in [*summed, levels[-1]]], dim=1)))


class PatchExpand(nn.Module):
    """Swin-UNet's step up: a linear layer whose channels become `factor` x `factor` tokens, and a norm."""

    def __init__(self, width: int, expanded: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(width, expanded, bias=False)
        self.norm = nn.LayerNorm(expanded // factor**2)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, h, w, d]` -> `[N, factor * h, factor * w, expanded / factor ** 2]`."""
        x = self.expand(x).unflatten(-1, (self.factor, self.factor, -1))
        return self.norm(x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2))


class SwinUNetStage(nn.Module):
    """The skip connection, and blocks like those of the encoder's stage with the same grid."""

    def __init__(self, width: int, blocks: Sequence[Any]) -> None:
        super().__init__()
        self.concat = nn.Linear(2 * width, width)
        self.blocks = nn.Sequential(
            *(
                SwinTransformerBlock(
                    width,
                    block.input_resolution,
                    num_heads=block.attn.num_heads,
                    window_size=block.window_size,
                    shift_size=block.shift_size,
                    mlp_ratio=block.mlp_ratio,
                )
                for block in blocks
            )
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """`[N, h, w, d]` both."""
        return self.blocks(self.concat(torch.cat([x, skip], dim=-1)))


class SwinUNet(Decoder):
    """The decoder of Swin-UNet (Cao et al., 2021), as published for Med-Tuning."""

    kinds = ("swin",)

    def __init__(self, layout: Layout, num_classes: int, dropout: float, blocks: Sequence[Sequence[Any]]) -> None:
        widths = layout.widths
        super().__init__(layout, num_classes, widths[0], bias=False)
        reversed_stages = list(range(len(widths) - 1))[::-1]
        self.ups = nn.ModuleList(PatchExpand(widths[k + 1], 4 * widths[k], 2) for k in reversed_stages)
        self.stages = nn.ModuleList(SwinUNetStage(widths[k], blocks[k]) for k in reversed_stages)
        self.norm = nn.LayerNorm(widths[0])
        patch = layout.size[0] // layout.grids[0][0]
        self.last = PatchExpand(widths[0], patch**2 * widths[0], patch)

    def forward(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """See `Decoder`; the skip connections are the inputs of the stages."""
        x = outputs[-1]
        for up, stage, skip in zip(self.ups, self.stages, inputs[-2::-1], strict=True):
            x = stage(up(x), skip)
        return self.seg_layers[0](self.last(self.norm(x)).permute(0, 3, 1, 2))


class UNet(Decoder):
    """Three steps up by two, each with the output of a stage further up; not the paper's, which is not published."""

    widths = (256, 128, 64, 32)

    def __init__(self, layout: Layout, num_classes: int, dropout: float, blocks: Any) -> None:
        super().__init__(layout, num_classes, self.widths[-1])
        self.reduce = _conv(layout.widths[-1], self.widths[0], 1)
        self.skips, self.steps = nn.ModuleList(), nn.ModuleList()
        for c_in, c_out, skip in zip(self.widths, self.widths[1:], layout.widths[-2::-1], strict=False):
            self.skips.append(_conv(skip, c_out, 1))
            self.steps.append(nn.Sequential(_conv(c_in + c_out, c_out, 3), _conv(c_out, c_out, 3)))

    def forward(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """See `Decoder`."""
        maps = [output.permute(0, 3, 1, 2) for output in outputs]
        skips, x = maps[:-1], maps[-1]
        x = self.reduce(x)
        for reduce, step, skip in zip(self.skips, self.steps, skips[::-1], strict=False):
            size = [2 * side for side in x.shape[2:]]
            x = step(torch.cat([_resize(x, size), _resize(reduce(skip), size)], dim=1))
        return self.logits(x)


class SETRNaive(Decoder):
    """A 1x1 convolution and bilinear interpolation of the last output; not the paper's, which is not published."""

    kinds = ("vit",)

    def __init__(self, layout: Layout, num_classes: int, dropout: float, blocks: Any) -> None:
        super().__init__(layout, num_classes, _WIDTH)
        self.reduce = _conv(layout.widths[-1], _WIDTH, 1)

    def forward(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """See `Decoder`."""
        return self.logits(self.reduce(outputs[-1].permute(0, 3, 1, 2)))


class SETRPUP(Decoder):
    """Progressive up-sampling: four 3x3 convolutions, each followed by a step up by two; not the paper's."""

    kinds = ("vit",)
    width = 64

    def __init__(self, layout: Layout, num_classes: int, dropout: float, blocks: Any) -> None:
        super().__init__(layout, num_classes, self.width)
        widths = [layout.widths[-1], *[self.width] * 4]
        self.steps = nn.ModuleList(_conv(c_in, c_out, 3) for c_in, c_out in zip(widths, widths[1:], strict=False))

    def forward(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """See `Decoder`."""
        x = outputs[-1].permute(0, 3, 1, 2)
        for step in self.steps:
            x = step(x)
            x = _resize(x, [2 * side for side in x.shape[2:]])
        return self.logits(x)


class SETRMLA(Decoder):
    """Multi-level aggregation: all outputs, summed from the last to the first, each convolved; not the paper's."""

    kinds = ("vit",)
    width = 128

    def __init__(self, layout: Layout, num_classes: int, dropout: float, blocks: Any) -> None:
        super().__init__(layout, num_classes, self.width * len(layout.widths))
        self.reduce = nn.ModuleList(_conv(width, _WIDTH, 1) for width in layout.widths)
        self.levels = nn.ModuleList(
            nn.Sequential(_conv(_WIDTH, self.width, 3), _conv(self.width, self.width, 3)) for _ in layout.widths
        )

    def forward(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """See `Decoder`."""
        summed: Any = 0
        levels = []
        for output, reduce, level in zip(outputs[::-1], self.reduce, self.levels, strict=True):
            summed = summed + reduce(output.permute(0, 3, 1, 2))
            levels.append(level(summed))
        x = torch.cat(levels, dim=1)
        return self.logits(_resize(x, [4 * side for side in x.shape[2:]]))


DECODERS: dict[str, type[Any]] = {
    "upernet": UPerNet,
    "swin_unet": SwinUNet,
    "unet": UNet,
    "setr_naive": SETRNaive,
    "setr_pup": SETRPUP,
    "setr_mla": SETRMLA,
}
_DEFAULTS = {"vit": "upernet", "swin": "swin_unet"}


def build_decoder(
    name: str | None, layout: Layout, num_classes: int, dropout: float, blocks: Sequence[Sequence[Any]]
) -> Decoder:
    """A decoder for the backbone of `layout`, by default the paper's.

    Args:
        name: of `DECODERS`; None for UPerNet behind a ViT and Swin-UNet behind a Swin.
        dropout: of whole channels in UPerNet.
        blocks: the encoder's blocks by stage, whose shapes Swin-UNet repeats.

    Raises:
        ConfigurationError: unknown name, or a decoder that cannot follow the backbone.
    """
    name = name or _DEFAULTS[layout.kind]
    if name not in DECODERS:
        raise ConfigurationError(f"Unknown decoder '{name}'. Known: {', '.join(DECODERS)}.")
    if layout.kind not in DECODERS[name].kinds:
        able = [known for known, decoder in DECODERS.items() if layout.kind in decoder.kinds]
        title = {"vit": "ViT", "swin": "Swin"}[layout.kind]
        raise ConfigurationError(f"Decoder '{name}' cannot follow a {title}. Those that can: {', '.join(able)}.")
    return DECODERS[name](layout, num_classes, dropout, blocks)
