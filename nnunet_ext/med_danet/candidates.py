"""The candidates' networks: the modified 2D UNet and the 2D TransBTS of Med-DANet (arXiv 2206.06575, section 3.2).

The paper gives their costs; the layers are those of TransBTS (Wang et al., MICCAI 2021) in 2D. Both down-sample
eightfold, pad height and width with zeros on the right to a multiple of 8, and crop the logits.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.layers.norm import SliceNorm
from nnunet_ext.layers.padding import crop, pad_to_multiple
from nnunet_ext.med_danet.bank import STRIDE, Candidate

DROPOUT = 0.2  # of the stem's channels
TOKEN_DROPOUT = 0.1
BLOCKS = (1, 2, 2, 4)  # residual blocks of the four encoder stages


def build_candidate(candidate: Candidate, input_channels: int, num_classes: int, grid: Sequence[int]) -> nn.Module:
    """The network of a candidate: `[N, C, H, W]` -> logits `[N, K, H, W]`.

    Args:
        grid: height and width of the position embedding in tokens.

    Raises:
        ConfigurationError: a class path that leads to no class, or a class that cannot be built so.
    """
    if candidate.type == "unet":
        return UNet2D(input_channels, num_classes, candidate.width)
    if candidate.type == "transbts":
        return TransBTS2D(input_channels, num_classes, candidate, grid)
    kwargs = dict(candidate.kwargs)
    try:
        for name in candidate.kw_requires_import:
            kwargs[name] = None if kwargs[name] is None else _locate(kwargs[name])
        network = _locate(candidate.type)(input_channels=input_channels, num_classes=num_classes, **kwargs)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"The candidate {candidate.type} cannot be built: {error}.") from error
    if not isinstance(network, nn.Module):
        raise ConfigurationError(f"The candidate {candidate.type} is no torch.nn.Module.")
    return network


def _locate(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


class PreActivation(nn.Module):
    """x + two times norm, ReLU, convolution 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = SliceNorm(width), SliceNorm(width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, width, H, W]` -> the same shape."""
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class PostActivation(nn.Module):
    """Two times convolution 3x3, norm, ReLU; plus x where the widths are equal and `residual` is set."""

    def __init__(self, c_in: int, width: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.conv1, self.conv2 = nn.Conv2d(c_in, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm1, self.norm2 = SliceNorm(width), SliceNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, c_in, H, W]` -> `[N, width, H, W]`."""
        y = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return x + y if self.residual else y


class Encoder(nn.Module):
    """The CNN encoder of all candidates: widths b, 2b, 4b, 8b at 1, 1/2, 1/4, 1/8."""

    def __init__(self, input_channels: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(4)]
        self.stem = nn.Conv2d(input_channels, width, 3, padding=1)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.stages = nn.ModuleList(
            nn.Sequential(*(PreActivation(w) for _ in range(blocks))) for w, blocks in zip(widths, BLOCKS, strict=True)
        )
        self.downs = nn.ModuleList(nn.Conv2d(w, 2 * w, 3, stride=2, padding=1) for w in widths[:-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """`[N, C, H, W]` -> the four stages' outputs, full resolution first."""
        x = self.stages[0](self.dropout(self.stem(x)))
        outputs = [x]
        for down, stage in zip(self.downs, self.stages[1:], strict=True):
            x = stage(down(x))
            outputs.append(x)
        return outputs


class Up(nn.Module):
    """Half the width, twice the size, joined with the encoder's stage of that size."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        width = c_in // 2
        self.reduce = nn.Conv2d(c_in, width, 1)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.join = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """`[N, 2c, H, W]`, `[N, c, 2H, 2W]` -> `[N, c, 2H, 2W]`."""
        return self.join(torch.cat([skip, self.up(self.reduce(x))], 1))


class Decoder(nn.Module):
    """Three steps up, each with its block, and the head."""

    def __init__(self, width: int, num_classes: int, pre_activation: bool) -> None:
        super().__init__()
        widths = [4 * width, 2 * width, width]
        self.ups = nn.ModuleList(Up(2 * w) for w in widths)
        self.blocks = nn.ModuleList(PreActivation(w) if pre_activation else PostActivation(w, w, True) for w in widths)
        self.seg_layers = nn.ModuleList([nn.Conv2d(width, num_classes, 1)])

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """The coarsest maps and the stages above, full resolution first -> logits at full resolution."""
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips), strict=True):
            x = block(up(x, skip))
        return self.seg_layers[0](x)


class Padded(nn.Module):
    """A network that sees its slices padded to a multiple of 8; the logits are cropped back."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> logits `[N, K, H, W]`."""
        return crop(self.segment(pad_to_multiple(x, (STRIDE, STRIDE))), x.shape[2:])

    def segment(self, x: Tensor) -> Tensor:
        """Logits of slices whose sides are multiples of 8."""
        raise NotImplementedError


class UNet2D(Padded):
    """M1 (width 12) and M2 (width 16)."""

    def __init__(self, input_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.encoder = Encoder(input_channels, width)
        self.decoder = Decoder(width, num_classes, pre_activation=True)

    def segment(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> logits `[N, K, H, W]`."""
        *skips, x = self.encoder(x)
        return self.decoder(x, skips)


class TransformerLayer(nn.Module):
    """Self-attention and MLP, each after a LayerNorm and added to its input."""

    def __init__(self, embedding: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(embedding), nn.LayerNorm(embedding)
        self.qkv = nn.Linear(embedding, 3 * embedding, bias=False)
        self.out = nn.Linear(embedding, embedding)
        self.dropout = nn.Dropout(TOKEN_DROPOUT)
        self.mlp = nn.Sequential(
            nn.Linear(embedding, hidden),
            nn.GELU(),
            nn.Dropout(TOKEN_DROPOUT),
            nn.Linear(hidden, embedding),
            nn.Dropout(TOKEN_DROPOUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, embedding]` -> the same shape."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = TOKEN_DROPOUT if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # [N, heads, T, d]
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.mlp(self.norm2(x))


class TransBTS2D(Padded):
    """M3 (1 layer) and M4 (4 layers): encoder, Transformer on the maps of 1/8, decoder.

    Position embeddings are learned for `grid` tokens and resized bilinearly for slices of another size. The decoder
    reads the output of the last LayerNorm, which TransBTS's code computes but does not use.
    """

    def __init__(self, input_channels: int, num_classes: int, candidate: Candidate, grid: Sequence[int]) -> None:
        super().__init__()
        width, embedding = candidate.width, candidate.embedding
        self.grid = (int(grid[0]), int(grid[1]))
        self.encoder = Encoder(input_channels, width)
        self.norm = SliceNorm(8 * width)
        self.embed = nn.Conv2d(8 * width, embedding, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], embedding))
        self.dropout = nn.Dropout(TOKEN_DROPOUT)
        self.layers = nn.ModuleList(
            TransformerLayer(embedding, candidate.heads, candidate.hidden) for _ in range(candidate.layers)
        )
        self.last_norm = nn.LayerNorm(embedding)
        self.reduce = PostActivation(embedding, 8 * width, residual=False)
        self.refine = PostActivation(8 * width, 8 * width, residual=True)
        self.decoder = Decoder(width, num_classes, pre_activation=False)

    def segment(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> logits `[N, K, H, W]`."""
        *skips, x = self.encoder(x)
        x = self.embed(F.relu(self.norm(x)))
        size = (x.shape[2], x.shape[3])
        tokens = self.dropout(x.flatten(2).transpose(1, 2) + self._positions(size))
        for layer in self.layers:
            tokens = layer(tokens)
        x = self.last_norm(tokens).transpose(1, 2).unflatten(2, size)
        return self.decoder(self.refine(self.reduce(x)), skips)

    def _positions(self, size: tuple[int, int]) -> Tensor:
        if size == self.grid:
            return self.position
        planar = self.position.transpose(1, 2).unflatten(2, self.grid)
        return F.interpolate(planar, size, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
