"""Two convolutions with a norm between them, at full resolution."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.costs.complexity import kept_elements


class Shallow(nn.Module):
    """A network for 3D images.

    Args:
        input_channels: C of the input.
        num_classes: K of the logits.
        strides: of the plan, which nnU-Net reads; the network does not step down.
        width: channels between the convolutions.
        deep_supervision: accepted for nnU-Net; there is one output.
    """

    supports_2d = False
    supports_compile = True
    supports_deep_supervision = False

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        strides: Sequence[Sequence[int]],
        width: int = 8,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.input_channels = input_channels
        self.body = nn.Sequential(
            nn.Conv3d(input_channels, width, 3, padding=1), nn.InstanceNorm3d(width, affine=True), nn.ReLU()
        )
        self.seg_layers = nn.ModuleList([nn.Conv3d(width, num_classes, 1)])  # a name that -pretrained_weights skips

    def forward(self, x: Tensor) -> Tensor:
        """`x [B, C, D, H, W]` -> logits `[B, K, D, H, W]`."""
        return self.seg_layers[0](self.body(x))

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> int:
        """Feature-map elements that a training step keeps for one sample of `patch_size` (voxels)."""
        return kept_elements(self, torch.empty(1, self.input_channels, *patch_size, device="meta"))


def arch_kwargs_at(strides: Sequence[Sequence[int]], patch_size: Sequence[int] | None = None) -> dict[str, Any]:
    """The network for a plan, JSON values only."""
    return {"strides": [list(map(int, stride)) for stride in strides], "width": 8}
