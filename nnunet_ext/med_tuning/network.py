"""Med-Tuning (arXiv 2304.10880): slices through a frozen 2D transformer, volumes through adapters, a 2D decoder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.costs.complexity import kept_elements
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.layers.padding import crop, pad_to
from nnunet_ext.layers.precision import has_bfloat16
from nnunet_ext.med_tuning.adapters import BRANCHES
from nnunet_ext.med_tuning.backbones import (
    FittedState,
    attend_in_steps,
    backbone_state_from_timm,
    build_backbone,
    embed,
    encoder_parameters,
    stage_blocks,
    stage_entry,
)
from nnunet_ext.med_tuning.decoders import SwinUNet, build_decoder
from nnunet_ext.med_tuning.tuning import TRAINED_WHOLE, build_tuning

BACKBONE = "vit_base_patch16_224.orig_in21k"
TOKEN_SIDE = 16  # pixels of its tokens
FEWEST_TOKENS = 8  # along a side of a slice


class MedTuningNet(nn.Module):
    """A timm ViT or Swin whose encoder stays as it was pretrained, with what a tuning method inserts, and a decoder.

    Weights are random; see `backbone_state_from_timm`. Nothing is downloaded. Slices lie along the first spatial axis;
    images in 2D are one slice. Height and width are padded with zeros at the end to what the backbone divides by, and
    the logits are cropped. An image smaller than `patch_size` is padded to it; a larger one is refused, because the
    frequency branch and the positions belong to one size.

    Args:
        input_channels: C of the input.
        num_classes: K of the logits (regions or classes with background).
        patch_size: `[D, H, W]` or `[H, W]` in voxels.
        strides: of the plan, which nnU-Net reads; the network steps down by its backbone's rules.
        deep_supervision: accepted, because nnU-Net gives it to every network, and without effect.
        backbone: a name of timm's, with or without tag: any plain ViT, or a Swin of the first version.
        tuning: see `tuning.METHODS`. All but "full" and "scratch" freeze patch embedding, blocks and patch mergings.
            "scratch" is "full" for a trainer that loads no weights.
        decoder: see `decoders.DECODERS`; None for UPerNet behind a ViT and Swin-UNet behind a Swin.
        alpha: how much narrower a Med-Adapter is than its tokens.
        frequency: how the Med-Adapter's frequency branch computes, "circulant" or "fft"; the weights are the same.
        zero_init: start Med-Adapters as the identity, instead of the published random start.
        interaction: between the last Med-Adapters of stages: concat (the paper), add, max or none.
        branches: of the Med-Adapter: conv3, conv5 and frequency (the paper); conv9 and conv11 are table 4's.
        mix: the Med-Adapter's 1x1x1 convolution behind its branches.
        adapted_from: so many blocks get no Med-Adapter; nothing is propagated back through them, if `tune_positions` is
            False too.
        tune_positions: whether the position embedding of a ViT is trained, as in the published code.
        cpu_bfloat16: compute in bfloat16 autocast on CPUs that have its instructions, in training and prediction.
        prompts: number of VPT's prompts.
        rank: of LoRA's updates.
        dropout: of whole channels in UPerNet.
        depths: blocks per stage; None for 2-2-2-2 in a Swin (the paper) and the backbone's own in a ViT.
        window: side of a Swin's windows in tokens; 4 in the published code.
        backbone_settings: further arguments of timm's constructor.

    Raises:
        ConfigurationError: what cannot work, in words.
    """

    supports_2d = True
    supports_compile = True
    supports_deep_supervision = False

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        patch_size: Sequence[int],
        strides: Sequence[Sequence[int]] | None = None,
        deep_supervision: bool = False,
        backbone: str = BACKBONE,
        tuning: str = "med_adapter",
        decoder: str | None = None,
        alpha: float = 6,
        frequency: str = "circulant",
        zero_init: bool = True,
        interaction: str = "concat",
        branches: Sequence[str] = BRANCHES[:3],
        mix: bool = True,
        adapted_from: int = 0,
        tune_positions: bool = True,
        cpu_bfloat16: bool = False,
        prompts: int = 10,
        rank: int = 8,
        dropout: float = 0.1,
        depths: Sequence[int] | None = None,
        window: int = 4,
        backbone_settings: Mapping[str, Any] | None = None,
    ) -> None:
        arguments = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        if len(patch_size) not in (2, 3) or any(type(side) is not int or side < 1 for side in patch_size):
            raise ConfigurationError(f"'patch_size' must be [D, H, W] or [H, W] in voxels, found {patch_size!r}.")
        if strides and len(strides[0]) != len(patch_size):
            raise ConfigurationError(f"'strides' and 'patch_size' differ in dimensions: {strides!r}, {patch_size!r}.")
        self._arguments = arguments
        self.input_channels, self.num_classes = input_channels, num_classes
        self.deep_supervision = deep_supervision
        self.backbone_name, self.tuning_name = backbone, tuning
        self.patch_size = tuple(patch_size)
        self.slices = patch_size[0] if len(patch_size) == 3 else 1
        self.backbone, self.layout = build_backbone(
            backbone, input_channels, patch_size[-2:], depths=depths, window=window, settings=backbone_settings
        )
        blocks = [stage_blocks(self.backbone, self.layout, stage) for stage in range(len(self.layout.depths))]
        self.tuning = build_tuning(
            tuning,
            self.layout,
            [block for stage in blocks for block in stage],
            self.slices,
            prompts=prompts,
            rank=rank,
            alpha=alpha,
            interaction=interaction,
            branches=branches,
            mix=mix,
            frequency=frequency,
            zero_init=zero_init,
            adapted_from=adapted_from,
        )
        self.in_bfloat16 = cpu_bfloat16 and has_bfloat16()
        self.decoder = build_decoder(decoder, self.layout, num_classes, dropout, blocks)
        attend_in_steps(self)
        if tuning not in TRAINED_WHOLE:
            for parameter in encoder_parameters(self.backbone):
                parameter.requires_grad_(False)
            if not tune_positions:
                for name, parameter in self.backbone.named_parameters():
                    parameter.requires_grad_(parameter.requires_grad and name != "pos_embed")
        self.register_load_state_dict_pre_hook(_check_sizes)

    def forward(self, x: Tensor) -> Tensor:
        """`x [B, C, (D,) H, W]` -> logits `[B, K, (D,) H, W]`."""
        if self.in_bfloat16 and x.device.type == "cpu":
            with torch.autocast("cpu", torch.bfloat16):
                return self._segment(x).float()
        return self._segment(x)

    def _segment(self, x: Tensor) -> Tensor:
        flat = x.ndim == 4
        volume = self._pad(x.unsqueeze(2) if flat else x)
        inputs, outputs = self._encode(volume.transpose(1, 2).flatten(0, 1))
        logits = self.decoder(inputs, outputs).unflatten(0, (-1, self.slices)).transpose(1, 2)
        logits = crop(logits, (1, *x.shape[2:]) if flat else x.shape[2:])
        return (logits.squeeze(2) if flat else logits).contiguous()

    def _encode(self, slices: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Padded slices `[B * D, C, H, W]` -> inputs and outputs of the stages `[B * D, h, w, d]`."""
        x = embed(self.backbone, self.layout, slices)
        carried = None
        inputs, outputs = [], []
        for stage in range(len(self.layout.depths)):
            x, carried = self.tuning.enter(stage_entry(self.backbone, self.layout, stage), x, carried)
            inputs.append(x)
            for number, block in enumerate(stage_blocks(self.backbone, self.layout, stage)):
                x, carried = self.tuning(block, stage, number, x, carried)
            outputs.append(x)
        norm: Any = self.backbone.norm
        outputs[-1] = norm(x)
        return inputs, outputs

    def _pad(self, volume: Tensor) -> Tensor:
        size = (self.slices, *self.layout.size)
        if any(side > full for side, full in zip(volume.shape[2:], size, strict=True)):
            raise ConfigurationError(
                f"An image of {list(volume.shape[2:])} voxels is larger than the patch {list(self.patch_size)} "
                f"for which this network was built."
            )
        return pad_to(volume, size)

    def frozen_names(self) -> list[str]:
        """The state dict's names of tensors that the tuning method leaves as they were pretrained."""
        return [name for name, parameter in self.named_parameters() if not parameter.requires_grad]

    def backbone_state_from_timm(self, state: Mapping[str, Any]) -> FittedState:
        """Pretrained weights fitted to this network, for `load_state_dict(fitted.state, strict=False)`.

        See `backbones.backbone_state_from_timm`. As published, Swin-UNet's blocks start with the weights of the
        encoder's stage with the same grid.
        """
        fitted = backbone_state_from_timm(self.backbone, self.layout, state)
        named = {f"backbone.{name}": value for name, value in fitted.state.items()}
        if isinstance(self.decoder, SwinUNet):
            stages = len(self.layout.depths)
            for name, value in fitted.state.items():
                for stage in range(stages - 1):
                    prefix = f"layers.{stage}.blocks."
                    if name.startswith(prefix):
                        rest = name[len(prefix) :]
                        named[f"decoder.stages.{stages - 2 - stage}.blocks.{rest}"] = value
        return fitted._replace(state=named, missing=[f"backbone.{name}" for name in fitted.missing])

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> int:
        """Elements that a training step keeps for one sample, in a network built for `patch_size` (voxels).

        What autograd saves is counted on torch's meta device.
        """
        with torch.device("meta"):
            shadow = type(self)(**{**self._arguments, "patch_size": [int(side) for side in patch_size]}).train()
        # Two samples, because a batch norm refuses a single value.
        x = torch.empty(2, self.input_channels, *patch_size, device="meta")
        return math.ceil(kept_elements(shadow, x) / 2)


def _check_sizes(network: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Says in a sentence what torch would list: weights of a network that was built for another patch.

    Raises:
        ConfigurationError: a stored tensor, heads aside, has another shape than this network's.
    """
    for name, own in network.state_dict().items():
        stored = state_dict.get(prefix + name)
        if isinstance(stored, Tensor) and stored.shape != own.shape and ".seg_layers." not in name:
            raise ConfigurationError(
                f"The weights are of another network: {name} is stored as {list(stored.shape)}, here it is "
                f"{list(own.shape)}. Positions and slice filters are learned for one patch, here "
                f"{list(network.patch_size)}: weights and plans must be of the same training."  # type: ignore[arg-type]
            )


def token_side(patch_size: Sequence[int]) -> int:
    """Pixels along a side of a token: the backbone's 16, or less where the patch's slices would have below 8x8 tokens.

    The pretrained embedding is resampled to it when the weights are loaded (FlexiViT, arXiv 2212.08013).
    """
    return max(1, min(TOKEN_SIDE, min(patch_size[-2:]) // FEWEST_TOKENS))


def arch_kwargs_at(strides: Sequence[Sequence[int]], patch_size: Sequence[int] | None = None) -> dict[str, Any]:
    """The paper's ViT-B/16 with UPerNet and Med-Adapters for a plan, JSON values only.

    Args:
        strides: of the plan.
        patch_size: of the plan in voxels, which the network cannot do without; to be added where it is left out.
    """
    kwargs: dict[str, Any] = {
        "strides": [list(map(int, stride)) for stride in strides],
        "backbone": BACKBONE,
        "tuning": "med_adapter",
        "decoder": "upernet",
        "alpha": 6,
        "frequency": "circulant",
        "zero_init": True,
    }
    if patch_size is None:
        return kwargs
    if token_side(patch_size) < TOKEN_SIDE:
        kwargs["backbone_settings"] = {"patch_size": token_side(patch_size)}
    return {"patch_size": [int(side) for side in patch_size], **kwargs}
