"""The networks of DiNTS (He et al., CVPR 2021): the supernet that is searched, and the discrete net of one code.

Stems feed the D nodes of layer 0 from the image at each resolution; each layer's nodes are sums of cells over edges;
the head goes from the coarsest node of the last layer up to the image's resolution. Where the paper's text is open,
this follows the published code of the paper's model: its 152 M parameters and 334 G multiply-adds come out exactly.
Resolutions follow the plan's strides, axis by axis, instead of 2 everywhere.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_ext.costs.complexity import kept_elements
from nnunet_ext.dints.affine import StackedAffine
from nnunet_ext.dints.architecture_code import CVPR_CODE, code_of
from nnunet_ext.dints.cells import (
    Affine,
    Cell,
    HeadStep,
    Stem,
    Weight,
    affine,
    convolution,
    instance_norm,
    normed,
    resize,
)
from nnunet_ext.dints.lean import lean_convolution
from nnunet_ext.dints.relaxation import Relaxed, relax
from nnunet_ext.dints.search_space import OPERATIONS, Structure, edges, search_structure
from nnunet_ext.layers.padding import crop, pad_to

CellWeights = Sequence[Sequence[Sequence[Weight] | Tensor]]


class Head(nn.Module):
    """From the last layer's nodes to logits: steps up with sums, then ReLU-conv-norm and the 1x1 convolution."""

    def __init__(self, structure: Structure, num_classes: int) -> None:
        super().__init__()
        self.outputs = structure.outputs
        downsampled = structure.use_downsample
        self.ups = nn.ModuleDict()
        for scale in structure.ups:
            c_out = structure.widths[scale if downsampled else max(scale - 1, 0)]
            self.ups[str(scale)] = HeadStep(structure.width(scale), c_out, structure.strides[structure.level(scale)])
        width = structure.widths[0]
        self.conv = convolution(width, width, [3] * structure.dimensions)
        self.norm = instance_norm(width, structure.dimensions)
        kind: Any = nn.Conv2d if structure.dimensions == 2 else nn.Conv3d
        # nnU-Net skips "*.seg_layers.*" when it loads pretrained weights.
        self.seg_layers = nn.ModuleList([kind(width, num_classes, 1)])

    def forward(self, nodes: Mapping[int, Tensor]) -> Tensor:
        """Nodes by scale -> logits `[B, K, *]`."""
        x: Tensor | None = None
        step: HeadStep | None = None
        for scale in reversed(range(self.outputs[-1] + 1)):
            if step is not None:
                x = step.enlarged(cast(Tensor, x), *affine(step.norm))
            node = nodes.get(scale)
            if node is not None:
                x = node if x is None else x + node
            if x is not None:
                step = cast(HeadStep, self.ups[str(scale)])
                x = step(x)
        assert x is not None and step is not None
        enlarged, norm = step.enlarged, self.norm
        x = lean_convolution(self.conv, lambda *z: F.relu(enlarged(*z)), x, *affine(step.norm))
        return lean_convolution(self.seg_layers[0], lambda *z: normed(norm, *z), x, *affine(norm))


class _DiNTS(nn.Module):
    """What both networks share: modules from a `Structure`, and the pass through them."""

    supports_2d = True
    supports_deep_supervision = False
    paper_flops_per_mac = 1  # table 1 of the paper calls multiply-adds FLOPs

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        structure: Structure,
        deep_supervision: bool,
        checkpoint_cells: bool,
    ) -> None:
        super().__init__()
        self.structure = structure
        self.input_channels, self.num_classes = input_channels, num_classes
        self.strides = [list(stride) for stride in structure.strides]
        self.features_per_stage = list(structure.widths)
        self.deep_supervision = deep_supervision  # nnU-Net sets it; there is one output in any case
        self.checkpoint_cells = checkpoint_cells
        widths, downsampled = structure.widths, structure.use_downsample
        self.stems = nn.ModuleDict(
            {
                str(scale): Stem(
                    input_channels,
                    widths[scale],
                    widths[scale + 1] if downsampled else None,
                    structure.strides[structure.level(scale)],
                )
                for scale in structure.stems
            }
        )
        self.edges = ends = edges(structure.depth)
        self.cells = nn.ModuleDict(
            {
                f"{layer}_{edge}": Cell(
                    structure.kind(edge),
                    structure.width(ends[edge][0]),
                    structure.width(ends[edge][1]),
                    structure.step(edge),
                    operations,
                )
                for (layer, edge), operations in structure.cells.items()
            }
        )
        self.head = Head(structure, num_classes)

    def _norms(self) -> list[list[tuple[Any, tuple[int, int, int] | None]]]:
        """The norms of the cells, those of one width in a list, each with layer, edge and number of its operation."""
        of_width: dict[int, list[Any]] = {}
        for name, cell in self.cells.items():
            layer, edge = map(int, name.split("_"))
            for norm, number in cast(Cell, cell).norms():
                place = None if number is None else (layer, edge, number)
                of_width.setdefault(norm.num_features, []).append((norm, place))
        return list(of_width.values())

    def _affine(self, batch: int, weights: Tensor | None) -> Callable[[Any, Weight], Affine]:
        """What gives the cells scale and shift of their norms; compilers join what is computed for each."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return affine
        return StackedAffine([[norm for norm, _ in group] for group in self._norms()], batch, weights)

    def _run(self, image: Tensor, weights: CellWeights, weights_of_norms: Tensor | None = None) -> Tensor:
        """`image [B, C, *patch]` -> logits `[B, K, *patch]`; `weights_of_norms`: in the order of `_norms`."""
        size = image.shape[2:]
        of_norm = self._affine(len(image), weights_of_norms)
        image = pad_to(image, self.structure.padded_size(size))
        nodes = {}
        for name, stem in self.stems.items():
            level = [s // f for s, f in zip(image.shape[2:], self.structure.total_stride(int(name)), strict=True)]
            fed = stem(resize(image, level))
            if int(name) in self.structure.inputs:
                nodes[int(name)] = fed
        for layer in range(self.structure.num_layers):
            nodes = self._layer(layer, nodes, weights[layer], of_norm)
        return crop(self.head(nodes), size)

    def _layer(
        self,
        layer: int,
        nodes: dict[int, Tensor],
        weights: Sequence[Sequence[Weight] | Tensor],
        of_norm: Callable[[Any, Weight], Affine],
    ) -> dict[int, Tensor]:
        """The nodes of the next layer by scale; scales that nothing reaches are absent."""
        rectified: dict[int, Tensor] = {}
        reached: dict[int, Tensor] = {}
        for edge, (source, target) in enumerate(self.edges):
            of_edge = weights[edge]
            if f"{layer}_{edge}" not in self.cells:
                continue
            cell: Any = self.cells[f"{layer}_{edge}"]
            if cell.reads_rectified and source not in rectified:
                rectified[source] = F.relu(nodes[source])
            inputs = (nodes[source], rectified.get(source) if cell.reads_rectified else None, of_edge, of_norm)
            if self.checkpoint_cells and torch.is_grad_enabled():
                out = checkpoint(cell, *inputs, use_reentrant=False)
            else:
                out = cell(*inputs)
            reached[target] = reached[target] + out if target in reached else out
        return reached

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> int:
        """Feature-map elements that a training step keeps for one sample of `patch_size` (voxels), cells not redone."""
        redone, self.checkpoint_cells = self.checkpoint_cells, False
        try:
            return kept_elements(self, torch.empty(1, self.input_channels, *patch_size, device="meta"))
        finally:
            self.checkpoint_cells = redone


class DiNTSNet(_DiNTS):
    """The discrete network of one architecture code.

    Args:
        input_channels: C of the input.
        num_classes: K of the logits (regions or classes with background).
        strides: one per level as nnU-Net plans them, all ones first. Levels beyond the code's scales are not used; a
            plan with fewer levels has its last stride repeated.
        arch_code_a: `[L][E]` of 0 and 1; None for the paper's published code (both or none).
        arch_code_c: `[L][E]`, index of each edge's operation. In 2D the pseudo-3D operations are the convolution.
        base_features: F_0; the width doubles from level to level.
        features_per_stage: the widths by level instead.
        use_downsample: the finest nodes lie at half resolution (the paper), else at the image's.
        checkpoint_cells: compute each cell again in the backward pass instead of keeping its feature maps.
        keep_unused: keep stems and head steps that the code does not use, as the reference implementation does. They
            get no gradient, which DDP refuses; for comparisons only.
        deep_supervision: accepted for nnU-Net; there is one output.

    Any patch is accepted: it is padded with zeros at the end to a multiple of the strides, and the logits are cropped.

    Raises:
        ConfigurationError: what cannot work, in words.
    """

    supports_compile = True

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        strides: Sequence[Sequence[int]],
        arch_code_a: Sequence[Sequence[int]] | None = None,
        arch_code_c: Sequence[Sequence[int]] | None = None,
        base_features: int = 32,
        features_per_stage: Sequence[int] | None = None,
        use_downsample: bool = True,
        checkpoint_cells: bool = False,
        keep_unused: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        code = code_of({"strides": strides, "arch_code_a": arch_code_a, "arch_code_c": arch_code_c})
        structure = code.structure(
            strides,
            base_features=base_features,
            features_per_stage=features_per_stage,
            use_downsample=use_downsample,
            keep_unused=keep_unused,
        )
        super().__init__(input_channels, num_classes, structure, deep_supervision, checkpoint_cells)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        """`x [B, C, *patch]` -> logits `[B, K, *patch]`."""
        return self._run(x, [[(1.0,)] * len(self.edges)] * self.structure.num_layers)


class DiNTSSearchNet(_DiNTS):
    """The supernet: all edges, all operations, weighted by the probabilities of its logits.

    The logits `log_alpha_a [L, E]` and `log_alpha_c [L, E, N]` start at N(0, 0.01) and N(1, 0.01). They are parameters
    without gradient: an optimizer of the weights, and DDP, leave them alone, and a step of the architecture passes
    them to `forward` as `Relaxed`.

    Args:
        input_channels, num_classes: see `DiNTSNet`.
        strides: one per level as nnU-Net plans them, all ones first; see `DiNTSNet`.
        num_layers: L.
        num_depths: D, the number of scales, 2 to 5.
        base_features: F_0; the paper searches with half of the width of the final network.
        features_per_stage: the widths by level instead.
        use_downsample: the finest nodes lie at half resolution (the paper), else at the image's.
        checkpoint_cells: compute each cell again in the backward pass instead of keeping its feature maps.
        deep_supervision: accepted for nnU-Net; there is one output.

    Raises:
        ConfigurationError: what cannot work, in words.
    """

    supports_compile = False  # it could be, in minutes

    weight_of_norm: Tensor

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        strides: Sequence[Sequence[int]],
        num_layers: int = 12,
        num_depths: int = 4,
        base_features: int = 16,
        features_per_stage: Sequence[int] | None = None,
        use_downsample: bool = True,
        checkpoint_cells: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        structure = search_structure(
            strides,
            num_layers=num_layers,
            num_depths=num_depths,
            base_features=base_features,
            features_per_stage=features_per_stage,
            use_downsample=use_downsample,
        )
        super().__init__(input_channels, num_classes, structure, deep_supervision, checkpoint_cells)
        shape = (num_layers, len(edges(num_depths)))
        operations = len(OPERATIONS[structure.dimensions])
        # Of each norm the place of its operation's weight in `[L, E, N]`, or behind them.
        ones = math.prod(shape) * operations
        places = [p for group in self._norms() for _, p in group]
        index = [ones if p is None else (p[0] * shape[1] + p[1]) * operations + p[2] for p in places]
        self.register_buffer("weight_of_norm", torch.tensor(index), persistent=False)
        self.log_alpha_a = nn.Parameter(0.01 * torch.randn(shape), requires_grad=False)
        self.log_alpha_c = nn.Parameter(1 + 0.01 * torch.randn(*shape, operations), requires_grad=False)

    def relaxed(self) -> Relaxed:
        """The probabilities of the logits as they are now."""
        return relax(self.log_alpha_a, self.log_alpha_c)

    def forward(self, x: Tensor, relaxed: Relaxed | None = None) -> Tensor:
        """`x [B, C, *patch]` -> logits `[B, K, *patch]`.

        Args:
            relaxed: probabilities through which gradients are wanted; by default those of the own logits.
        """
        weights = (self.relaxed() if relaxed is None else relaxed).weights
        with_one = torch.cat([weights.flatten(), weights.new_ones(1)])
        of_norms = with_one.index_select(0, self.weight_of_norm)
        return self._run(x, [layer.unbind(0) for layer in weights.unbind(0)], of_norms)


def arch_kwargs_at(strides: Sequence[Sequence[int]], patch_size: Sequence[int] | None = None) -> dict[str, Any]:
    """The paper's retrained model for a plan, JSON values only; it takes any patch."""
    return {
        "strides": [list(map(int, stride)) for stride in strides],
        **CVPR_CODE.for_dimensions(len(strides[0])).settings(),
        "base_features": 32,
        "use_downsample": True,
    }


def search_arch_kwargs_at(strides: Sequence[Sequence[int]], patch_size: Sequence[int] | None = None) -> dict[str, Any]:
    """The paper's supernet for a plan, JSON values only; it takes any patch."""
    return {
        "strides": [list(map(int, stride)) for stride in strides],
        "num_layers": 12,
        "num_depths": 4,
        "base_features": 16,
        "use_downsample": True,
        "checkpoint_cells": False,
    }
