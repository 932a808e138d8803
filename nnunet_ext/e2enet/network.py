"""The E2ENet network: backbone, fusion grid, heads (Wu et al., E2ENet, NeurIPS 2024, arXiv 2312.04727).

With L levels, stage 0 is the backbone x^{0,l}, l = 0..L-1. Stage j = 1..L-1 has the nodes x^{j,l}, l = 0..L-1-j, each
fusing three directions of the stage before it, concatenated in this order:

    forward x^{j-1,l} | up ConvT(x^{j-1,l+1}) | down MaxPool(x^{j-1,l-1}), the last for l >= 1 only

The last node of each level (l + j = L-1) has a second convolution, and all of them but the lowest a head. Where the
paper's text and the authors' published counts disagree, this follows the counts: an up path that reduces to the
node's own width, masked transposed convolutions, and the second convolution.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.costs.complexity import kept_elements
from nnunet_ext.e2enet.blocks import NEGATIVE_SLOPE, ConvBlock, FusionNode, Sparse
from nnunet_ext.e2enet.depth_shift import ChannelSplit
from nnunet_ext.e2enet.fused import written
from nnunet_ext.e2enet.masked import SparseConnections, masked_modules
from nnunet_ext.e2enet.packed.dispatch import packed_logits, reason_against_engine, release
from nnunet_ext.e2enet.rebuilding import can_rebuild, rebuilding_convolution, rebuilds
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.layers.padding import crop, pad_to_multiple
from nnunet_ext.planning.patches import total_strides

KERNELS = ([1, 3, 3], [3, 1, 3], [3, 3, 1], [3, 3, 3])


class E2ENet(nn.Module):
    """E2ENet for 3D volumes.

    Args:
        input_channels: C of the input.
        num_classes: K of the logits (regions or classes with background).
        strides: one `[d, h, w]` per level; the first is `[1, 1, 1]`, the others divide the level above.
        features_per_stage: channels per level; default `min(base_features * 2**level, max_features)`.
        base_features, max_features: the default's width (48 and 320 in the paper).
        deep_supervision: return a list of L-2 logits, highest resolution first.
        sparsity: share of inactive kernels in the fusion, strictly between 0 and 1, or None for the dense network.
        density_overrides: `{"48": 0.2}` gives the fusion convolutions with 48 output channels density 0.2 instead.
        kernel_size: `[1, 3, 3]`, or the ablations `[3, 1, 3]`, `[3, 3, 1]`, `[3, 3, 3]`. The shift runs along the
            axis of the 1. With `[3, 3, 3]` nothing is shifted, and, as in the paper's tables, only the backbone and
            the last node of each level have this kernel; the other nodes have `[1, 3, 3]`.
        shift_size: m; channels are shifted by -m..m slices; 0 = no shift.
        channel_split: "balanced" groups, or "reference" for the authors' chunk rule (see `depth_shift`).
        memory_efficient: a training step keeps the outputs of the convolutions, and makes the rest again in the
            backward pass; False keeps all that autograd would keep. Results and state dict are the same.
        connection_block: 1 for the paper's connections, single kernels. Above, neighbouring outputs of a fusion
            convolution share their inputs, in blocks of this size or of the divisor of the width that is nearest (see
            `shared_inputs.py`): an option of ours, not of the paper.
        fan_in_multiple: inputs of each block are rounded to the nearest multiple of this.

    Any patch is accepted: it is padded with zeros at the end to a multiple of the strides, and the logits are cropped.

    Raises:
        ConfigurationError: what cannot work, in words.
    """

    supports_2d = False
    supports_compile = True
    supports_deep_supervision = True

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        strides: Sequence[Sequence[int]],
        features_per_stage: Sequence[int] | None = None,
        base_features: int = 48,
        max_features: int = 320,
        deep_supervision: bool = False,
        sparsity: float | None = 0.8,
        density_overrides: Mapping[str, float] | None = None,
        kernel_size: Sequence[int] = (1, 3, 3),
        shift_size: int = 1,
        channel_split: ChannelSplit = "balanced",
        memory_efficient: bool = True,
        connection_block: int = 1,
        fan_in_multiple: int = 1,
    ) -> None:
        super().__init__()
        self.strides = _checked_strides(strides)
        levels = len(self.strides)
        if features_per_stage is None:
            features_per_stage = [min(base_features * 2**level, max_features) for level in range(levels)]
        self.features_per_stage = widths = list(features_per_stage)
        kernel_size = list(kernel_size)
        _check_options(levels, widths, sparsity, density_overrides, kernel_size, shift_size, channel_split)
        _check_blocks(connection_block, fan_in_multiple, sparsity)
        self.connection_block, self.fan_in_multiple = connection_block, fan_in_multiple
        self.input_channels, self.num_classes = input_channels, num_classes
        self.deep_supervision = deep_supervision
        self.sparsity = sparsity
        self.memory_efficient = memory_efficient
        self.density_overrides = {str(channels): density for channels, density in (density_overrides or {}).items()}

        def block(c_in: int, c_out: int, stride: Sequence[int]) -> ConvBlock:
            return ConvBlock(c_in, c_out, kernel_size, stride, shift_size, channel_split, None, memory_efficient)

        self.backbone = nn.ModuleList(
            nn.Sequential(block(c_in, c_out, stride), block(c_out, c_out, (1, 1, 1)))
            for c_in, c_out, stride in zip([input_channels, *widths], widths, self.strides, strict=False)
        )
        self.fusion = nn.ModuleList()
        for stage in range(1, levels):
            nodes = nn.ModuleList()
            for level in range(levels - stage):
                last = level + stage == levels - 1
                nodes.append(
                    FusionNode(
                        widths[level],
                        widths[level + 1],
                        widths[level - 1] if level else None,
                        self.strides[level + 1],
                        self.strides[level] if level else None,
                        last,
                        kernel_size if last or 1 in kernel_size else [1, 3, 3],
                        shift_size if 1 in kernel_size else 0,
                        channel_split,
                        self._sparse(widths[level]),
                        memory_efficient,
                    )
                )
            self.fusion.append(nodes)
        # nnU-Net skips "*.seg_layers.*" when it loads pretrained weights.
        self.heads = nn.Module()
        self.heads.seg_layers = nn.ModuleList(
            nn.Conv3d(widths[level], num_classes, 1, bias=False) for level in range(levels - 2)
        )
        self._init_weights()

    def _sparse(self, width: int) -> tuple[Sparse, Sparse] | None:
        """How a node's up-convolution is sparse, and its convolutions with `width` outputs."""
        if self.sparsity is None:
            return None
        blocks = self.connection_block, self.fan_in_multiple
        density = self.density_overrides.get(str(width), 1 - self.sparsity)
        return Sparse(1 - self.sparsity, *blocks), Sparse(density, *blocks)

    def _init_weights(self) -> None:
        """Kaiming-normal weights, zero biases, and random kernels of the exact density (paper, section 2.2)."""
        drawn: dict[nn.Module, Tensor] = {}  # weights in full: their variance is that of the dense network's
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                drawn[module] = (
                    torch.empty(module.dense_shape) if isinstance(module, SparseConnections) else module.weight
                )
                nn.init.kaiming_normal_(drawn[module], a=NEGATIVE_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for _, masked in masked_modules(self):
            masked.draw_kernels(drawn[masked])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """`x [B, C, D, H, W]` -> logits `[B, K, D, H, W]`; with deep supervision a list, highest resolution first."""
        size = x.shape[2:]
        self.check_patch_size(size)
        x = pad_to_multiple(x, self._total_stride(-1))
        packed = packed_logits(self, x)
        if packed is not None:
            return self._crop(packed, size, 0)
        features = []
        for stage in self.backbone:
            x = stage(x)
            features.append(x)
        nodes: Any
        ends = []  # the lowest node of each stage, the last node of its level; level 0 comes last
        for nodes in self.fusion:
            features = [
                node(features[level], features[level + 1], features[level - 1] if level else None)
                for level, node in enumerate(nodes)
            ]
            ends.append(features[-1])
        seg_layers: Any = self.heads.seg_layers
        heads = seg_layers if self.deep_supervision else seg_layers[:1]
        logits = [self._crop(self._head(head, ends[-1 - level]), size, level) for level, head in enumerate(heads)]
        return logits if self.deep_supervision else logits[0]

    def _head(self, head: nn.Module, x: Any) -> Tensor:
        if self.memory_efficient and rebuilds() and can_rebuild(head):
            return rebuilding_convolution(head, [x])
        return head(written(x))

    def reason_against_sparse_engine(self) -> str | None:
        """Why the engine of active connections cannot compute this network here; None where it can."""
        return reason_against_engine(self)

    def train(self, mode: bool = True) -> "E2ENet":
        """torch's; training frees what prediction has packed."""
        if mode:
            release(self)
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "E2ENet":
        """torch's, behind `.to()`, `.cuda()` and the like; moving frees what prediction has packed."""
        release(self)
        return super()._apply(*args, **kwargs)

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Raises a `ConfigurationError` where InstanceNorm would get a single voxel at the lowest level."""
        lowest = [math.ceil(p / f) for p, f in zip(patch_size, self._total_stride(-1), strict=True)]
        if math.prod(lowest) < 2:
            raise ConfigurationError(
                f"Patch {list(patch_size)} is too small for strides {self.strides}: the lowest level has one voxel, "
                f"which InstanceNorm cannot normalise. Use a larger patch or fewer levels."
            )

    def _total_stride(self, level: int) -> list[int]:
        return total_strides(self.strides)[level]

    def _crop(self, logits: Tensor, size: Sequence[int], level: int) -> Tensor:
        """Crops to the size to which nnU-Net samples the target of this level down, round(size / stride)."""
        target = [max(1, round(s / f)) for s, f in zip(size, self._total_stride(level), strict=True)]
        return crop(logits, target)

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> int:
        """Feature-map elements that a training step keeps for one sample of `patch_size` (voxels)."""
        return kept_elements(self, torch.empty(1, self.input_channels, *patch_size, device="meta"))

    def paper_flops(self, name: str, module: nn.Module, active_kernels: int, output_voxels: int) -> int:
        """FLOPs of one layer as the papers' tables count them (eq. 5): (2 K active + bias C_out) output voxels.

        A transposed convolution counts all its taps at each output voxel (8x too many for stride 2), and the biases
        of the backbone are left out; both were inferred from the published figures.
        """
        assert isinstance(module, (nn.Conv3d, nn.ConvTranspose3d))
        taps = math.prod(module.kernel_size)
        bias = 0 if module.bias is None or name.startswith("backbone") else module.out_channels
        return (2 * taps * active_kernels + bias) * output_voxels


def arch_kwargs_at(strides: Sequence[Sequence[int]], patch_size: Sequence[int] | None = None) -> dict[str, Any]:
    """The paper's network (base width 48, sparsity 0.8) for a plan, JSON values only; it takes any patch."""
    return {
        "strides": [list(map(int, stride)) for stride in strides],
        "features_per_stage": [min(48 * 2**level, 320) for level in range(len(strides))],
        "sparsity": 0.8,
    }


def _checked_strides(strides: Sequence[Sequence[int]]) -> list[list[int]]:
    checked = [[int(s) for s in stride] for stride in strides]
    if any(len(stride) != 3 for stride in checked):
        raise ConfigurationError(
            f"E2ENet is a 3D method: every stride needs three numbers, found {checked}. Use a 3d configuration."
        )
    if len(checked) < 3:
        raise ConfigurationError(
            f"E2ENet needs at least 3 levels, the plan has {len(checked)} (strides {checked}). "
            f"Its images are too small for this method; use a plan with more levels or another trainer."
        )
    if checked[0] != [1, 1, 1] or any(s < 1 for stride in checked for s in stride):
        raise ConfigurationError(f"The first stride must be [1, 1, 1] and all must be positive, found {checked}.")
    return checked


def _check_options(
    levels: int,
    widths: list[int],
    sparsity: float | None,
    density_overrides: Mapping[str, float] | None,
    kernel_size: list[int],
    shift_size: int,
    channel_split: str,
) -> None:
    if len(widths) != levels or any(not isinstance(w, int) or w < 1 for w in widths):
        raise ConfigurationError(
            f"features_per_stage must be {levels} positive integers, one a stride, found {widths}."
        )
    if sparsity is not None and not (_is_number(sparsity) and 0 < sparsity < 1):
        raise ConfigurationError(f"sparsity must lie strictly between 0 and 1 (null for dense), found {sparsity!r}.")
    for channels, density in (density_overrides or {}).items():
        if not str(channels).isdigit() or not (_is_number(density) and 0 < density <= 1):
            raise ConfigurationError(
                f"density_overrides maps a number of output channels to a density in (0, 1], "
                f"found {channels}: {density!r}."
            )
        if int(channels) not in widths[:-1]:  # the lowest level has no fusion
            raise ConfigurationError(
                f"density_overrides names {channels} output channels, but the fusion has {widths[:-1]}."
            )
    if density_overrides and sparsity is None:
        raise ConfigurationError("density_overrides needs a sparsity; the dense network (null) has no masks.")
    if kernel_size not in KERNELS:
        raise ConfigurationError(f"kernel_size must be one of {KERNELS}, found {kernel_size}.")
    if not isinstance(shift_size, int) or isinstance(shift_size, bool) or shift_size < 0:
        raise ConfigurationError(f"shift_size must be an integer of at least 0, found {shift_size!r}.")
    if channel_split not in ("balanced", "reference"):
        raise ConfigurationError(f"channel_split must be 'balanced' or 'reference', found {channel_split!r}.")


def _check_blocks(connection_block: int, fan_in_multiple: int, sparsity: float | None) -> None:
    for name, value in (("connection_block", connection_block), ("fan_in_multiple", fan_in_multiple)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{name} must be an integer of at least 1, found {value!r}.")
    if connection_block > 1 and sparsity is None:
        raise ConfigurationError("connection_block needs a sparsity; the dense network (null) has no blocks.")
    if fan_in_multiple > 1 and connection_block == 1:
        raise ConfigurationError("fan_in_multiple needs a connection_block above 1; single kernels have no fan-in.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
