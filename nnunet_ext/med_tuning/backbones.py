"""timm's vision transformers as backbones: built for any slice size without weights, and weights fitted to them.

No function here reads or downloads weights. A backbone is the timm model itself, so its state-dict keys are timm's; it
has no class token and no head, and the position embedding has no row for the class token.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import IO, Any, NamedTuple

import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv, is_model_in_modules, swin_transformer, vision_transformer
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError

SWIN_DEPTHS = (2, 2, 2, 2)  # the published code's, not Swin-T's 2-2-6-2
STAGES = 4  # groups of blocks into which a ViT is divided
FEW_TOKENS = 256  # up to which `attend_in_steps` is the faster way
_NO_DROPOUT = {"drop_rate": 0.0, "proj_drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0}
# What classification and pretraining need and a backbone without class token does without; buffers of older files.
_DISPENSABLE = re.compile(
    r"(cls_token|dist_token|reg_token|register_tokens|mask_token)$"
    r"|(head|head_dist|fc_norm|pre_logits|attn_pool|visual_projection)\."
    r"|.*\.(relative_position_index|attn_mask)$"
)
_CONTAINERS = ("model", "state_dict", "teacher", "model_state_dict")
_ENCODERS = ("base_encoder", "teacher")  # of files that hold two: MoCo v3, DINO
_KINDS = {"vit": ("vision_transformer", "deit"), "swin": ("swin_transformer",)}


@dataclass(frozen=True)
class Layout:
    """The shape of a backbone: what adapters and decoders are built from.

    Attributes:
        kind: "vit" or "swin".
        size: height and width in pixels of the padded slices.
        depths, widths, grids: per stage the blocks, the channels, and the height and width in tokens.
        token: height and width in pixels of the tokens that the backbone was pretrained with, where `patch_size` in
            its settings gives it others; else None.
    """

    kind: str
    size: tuple[int, int]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    token: tuple[int, int] | None = None

    @property
    def block_widths(self) -> list[int]:
        """The channels of every block, in order."""
        return [width for width, depth in zip(self.widths, self.depths, strict=True) for _ in range(depth)]


def build_backbone(
    name: str,
    input_channels: int,
    size: Sequence[int],
    *,
    depths: Sequence[int] | None = None,
    window: int = 4,
    settings: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Layout]:
    """A timm ViT or Swin with random weights for slices of `size` (height, width in pixels), padded as it needs.

    Args:
        name: timm's, with or without the tag of pretrained weights.
        depths: blocks per stage. Default for a Swin: 2-2-2-2; for a ViT: its own depth in four equal stages.
        window: tokens along a side of a Swin's windows; smaller grids have smaller windows.
        settings: further arguments of timm's constructor.

    Raises:
        ConfigurationError: timm does not know the name, or it is neither a ViT nor a Swin, or timm refuses a setting.
    """
    kind = _kind(name)
    if depths is not None and (not depths or any(type(depth) is not int or depth < 1 for depth in depths)):
        raise ConfigurationError(f"'depths' must be positive numbers of blocks, one a stage, found {depths!r}.")
    arguments: dict[str, Any] = {"in_chans": input_channels, "num_classes": 0, "global_pool": "", **_NO_DROPOUT}
    if kind == "swin":
        arguments |= {"depths": tuple(depths or SWIN_DEPTHS), "window_size": window}
    else:
        arguments |= {"class_token": False, "reg_tokens": 0, "fc_norm": False}
        if depths is not None:
            arguments["depth"] = sum(depths)
    named = dict(arguments)
    arguments |= settings or {}
    shallow = {"depths": (1,) * len(arguments["depths"])} if kind == "swin" else {"depth": 1}
    with torch.device("meta"):
        trial = _create(name, arguments | shallow | {"weight_init": "skip"})
        token = None
        if "patch_size" in (settings or {}):
            token = tuple(_create(name, named | shallow | {"weight_init": "skip"}).patch_embed.patch_size)
    stages = len(trial.layers) if kind == "swin" else 1
    side = [patch * 2 ** (stages - 1) for patch in trial.patch_embed.patch_size]
    padded = (math.ceil(size[0] / side[0]) * side[0], math.ceil(size[1] / side[1]) * side[1])
    if torch.get_default_device().type == "meta":
        arguments["weight_init"] = "skip"  # nothing is there to be drawn
    backbone = _create(name, arguments | {"img_size": padded})
    return backbone, replace(_layout(kind, backbone, padded, depths), token=token)


def attend_in_steps(network: nn.Module) -> None:
    """Attention over few tokens in bfloat16 autocast on CPUs: products and softmax one by one from now on.

    torch's fused function, which timm calls, takes up to four times as long there (`benchmarks/cpu_attention.py`).
    """
    for module in network.modules():
        if getattr(module, "fused_attn", False):
            module.register_forward_pre_hook(_choose_attention)


def _choose_attention(attention: Any, inputs: tuple[Tensor, ...]) -> None:
    tokens = inputs[0]
    in_steps = tokens.device.type == "cpu" and torch.is_autocast_enabled("cpu") and tokens.shape[-2] <= FEW_TOKENS
    if attention.fused_attn == in_steps:
        attention.fused_attn = not in_steps


def _kind(name: str) -> str:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(["vit_*", "deit*", "swin_*"]), n=3)
        hint = f" Close names: {', '.join(close)}." if close else ""
        raise ConfigurationError(f"timm {timm.__version__} has no model '{name}'.{hint}")
    for kind, modules in _KINDS.items():
        if is_model_in_modules(name, modules):
            return kind
    raise ConfigurationError(f"'{name}' is neither a plain ViT nor a Swin (first version) of timm.")


def _create(name: str, arguments: Mapping[str, Any]) -> Any:
    try:
        backbone = timm.create_model(name, pretrained=False, **arguments)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ConfigurationError(f"timm cannot build '{name}': {error}") from error
    if type(backbone) not in (vision_transformer.VisionTransformer, swin_transformer.SwinTransformer):
        raise ConfigurationError(f"'{name}' is neither a plain ViT nor a Swin (first version) of timm.")
    return backbone


def _layout(kind: str, backbone: Any, size: tuple[int, int], depths: Sequence[int] | None) -> Layout:
    if kind == "swin":
        blocks = [stage.blocks for stage in backbone.layers]
        widths = tuple(stage[0].dim for stage in blocks)
        grids = tuple(tuple(stage[0].input_resolution) for stage in blocks)
        return Layout(kind, size, tuple(map(len, blocks)), widths, grids)
    depth = len(backbone.blocks)
    if depths is not None and len(depths) != STAGES:
        raise ConfigurationError(f"'depths' of a ViT must be {STAGES} numbers of blocks, found {list(depths)}.")
    if depth < STAGES:
        raise ConfigurationError(f"A ViT of {depth} blocks cannot be divided into {STAGES} stages.")
    ends = [(stage + 1) * depth // STAGES for stage in range(STAGES)]
    even = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    own = tuple(depths or even)
    grid = backbone.patch_embed.grid_size
    return Layout(kind, size, own, (backbone.embed_dim,) * STAGES, (tuple(grid),) * STAGES)


def embed(backbone: Any, layout: Layout, slices: Tensor) -> Tensor:
    """`slices [N, C, H, W]` of the layout's size -> tokens with positions `[N, h, w, d]`."""
    x = backbone.patch_embed(slices)
    if layout.kind == "vit":
        x = backbone.norm_pre(backbone._pos_embed(x)).unflatten(1, layout.grids[0])
    # timm's tokens are a view of [N, d, h, w], and every sum would keep that order: each norm and product would copy.
    return x.contiguous()


def stage_entry(backbone: Any, layout: Layout, stage: int) -> nn.Module | None:
    """The patch merging before a stage, where there is one."""
    return backbone.layers[stage].downsample if layout.kind == "swin" and stage else None


def stage_blocks(backbone: Any, layout: Layout, stage: int) -> list[Any]:
    """The blocks of a stage, in order."""
    if layout.kind == "swin":
        return list(backbone.layers[stage].blocks)
    start = sum(layout.depths[:stage])
    return [backbone.blocks[start + number] for number in range(layout.depths[stage])]


def run_block(block: Any, x: Tensor) -> Tensor:
    """One transformer block on tokens `[N, h, w, d]`."""
    if isinstance(block, swin_transformer.SwinTransformerBlock):
        return block(x)
    return block(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


def encoder_parameters(backbone: Any) -> list[nn.Parameter]:
    """What is frozen unless the whole network is trained: patch embedding, blocks and patch mergings.

    The position embedding and the norms before and after all blocks are trained in any case, as in the published code.
    """
    parts = [
        backbone.patch_embed,
        *(getattr(backbone, name) for name in ("blocks", "layers") if hasattr(backbone, name)),
    ]
    return [parameter for part in parts for parameter in part.parameters()]


class FittedState(NamedTuple):
    """Weights fitted to a network.

    Attributes:
        state: by the network's names.
        missing: the backbone's names for which the file has nothing that fits.
        unused: the file's names that have no place (class token, head, blocks beyond the depth, wrong shapes).
        foreign: those of them with which the file's own network computes its features (layer scale, norms of queries
            and keys and the like): without them the features are others.
        prefix: what stood before the file's names.
    """

    state: dict[str, Tensor]
    missing: list[str]
    unused: list[str]
    foreign: list[str]
    prefix: str


def backbone_state_from_timm(backbone: Any, layout: Layout, state: Mapping[str, Any]) -> FittedState:
    """Fits weights of the original model to `backbone`: its channels, slice size, windows and depths.

    The kernels of the input are summed for one channel, else repeated and rescaled (`adapt_input_conv`), those of one
    channel are shared by all; position embeddings are resized bicubically with antialiasing from their square grid,
    relative-position tables as timm does; the row of a class token is dropped.

    Args:
        state: a state dict in the layout of timm, of Swin's or MoCo v3's authors, or any other that timm converts;
            also inside of "model", "state_dict", "teacher" or "model_state_dict", and behind prefixes such as
            "module." or "backbone.". See `vit_state_from_npz` for .npz files.

    Raises:
        ConfigurationError: several encoders in one file, or positions that are no square grid.
    """
    state, prefix = _unwrapped(state)
    fitted = _fit_swin(backbone, layout, state) if layout.kind == "swin" else _fit_vit(backbone, layout, state)
    own = backbone.state_dict()
    kernels = fitted.get("patch_embed.proj.weight")
    channels = own["patch_embed.proj.weight"].shape[1]
    if kernels is not None and kernels.shape[1] == 3 != channels:
        fitted["patch_embed.proj.weight"] = adapt_input_conv(channels, kernels)
    elif kernels is not None and kernels.shape[1] == 1 != channels:
        fitted["patch_embed.proj.weight"] = kernels.repeat(1, channels, 1, 1) / channels
    taken = {name: value for name, value in fitted.items() if name in own and value.shape == own[name].shape}
    missing = [name for name in own if name not in taken]
    unused = sorted(fitted.keys() - taken.keys())
    foreign = [name for name in unused if not _DISPENSABLE.match(name) and _has_place(layout, name)]
    return FittedState(taken, missing, unused, foreign, prefix)


def _unwrapped(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file by their names without a common prefix, and the prefix."""
    state = content
    while (inner := next((state[key] for key in _CONTAINERS if isinstance(state.get(key), Mapping)), None)) is not None:
        state = inner
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    first = "patch_embed.proj.weight"
    found = [name.removesuffix(first) for name in tensors if name.endswith(first)]
    if len(found) > 1:
        found = [prefix for prefix in found if any(part in _ENCODERS for part in prefix.split("."))] or found
    if len(found) > 1:
        raise ConfigurationError(f"it holds several encoders, {', '.join(sorted(found))}: keep one of them in it")
    wrappers = ("_orig_mod.module.", "module.", "_orig_mod.")  # where the first layer has another name
    prefix = found[0] if found else next((p for p in wrappers if all(name.startswith(p) for name in tensors)), "")
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}, prefix


def _has_place(layout: Layout, name: str) -> bool:
    """Whether a block of this name is within the depths; True for what is in no block."""
    if layout.kind == "vit":
        place = re.match(r"blocks\.(\d+)\.", name)
        return place is None or int(place[1]) < sum(layout.depths)
    place = re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name)
    return place is None or (int(place[1]) < len(layout.depths) and int(place[2]) < layout.depths[int(place[1])])


class _AnyLength(int):
    """A length to which timm's filter finds every other one equal."""

    def __ne__(self, other: object) -> bool:
        return False


def _fit_vit(backbone: Any, layout: Layout, state: dict[str, Tensor]) -> dict[str, Tensor]:
    # timm would resize for a class token that our model has not, and not at all where the numbers of tokens agree but
    # the grids do not. So its filter is shown a model whose positions have any length, and they are resized here. Its
    # tokens have any size: kernels are resampled below, and only from the size of the named backbone to one that was
    # asked for, because those of another backbone see other images.
    positions = SimpleNamespace(shape=(1, _AnyLength()))
    own = backbone.patch_embed.proj.weight.shape
    kernels = SimpleNamespace(shape=(*own[:2], *map(_AnyLength, own[2:])))
    patches = SimpleNamespace(proj=SimpleNamespace(weight=kernels), grid_size=backbone.patch_embed.grid_size)
    shown: Any = SimpleNamespace(patch_embed=patches, head=backbone.head, pos_embed=positions)
    fitted = vision_transformer.checkpoint_filter_fn(state, shown, adapt_layer_scale=True)
    embedding = fitted.get("patch_embed.proj.weight")
    if embedding is not None and layout.token == tuple(embedding.shape[2:]):
        fitted["patch_embed.proj.weight"] = resample_patch_embed(embedding, list(own[2:]))
    if "pos_embed" in fitted:
        prefix = _tokens_before_the_grid(fitted)
        grid = list(layout.grids[0])
        fitted["pos_embed"] = resample_abs_pos_embed(fitted["pos_embed"][:, prefix:], grid, num_prefix_tokens=0)
    for part in ("weight", "bias"):  # models that pool before their last norm
        if f"norm.{part}" not in fitted and f"fc_norm.{part}" in fitted:
            fitted[f"norm.{part}"] = fitted.pop(f"fc_norm.{part}")
    return fitted


def _tokens_before_the_grid(state: Mapping[str, Tensor]) -> int:
    """How many positions belong to tokens of the file itself: class and distillation token, registers, or none."""
    length = state["pos_embed"].shape[1]
    one = sum(name in state for name in ("cls_token", "dist_token"))
    registers = sum(state[name].shape[1] for name in ("reg_token", "register_tokens") if name in state)
    for prefix in (one, one + registers, 0):
        if math.isqrt(max(0, length - prefix)) ** 2 == length - prefix:
            return prefix
    raise ConfigurationError(
        f"its position embeddings of {length} tokens are no square grid, with or without its class token and registers"
    )


def _fit_swin(backbone: Any, layout: Layout, state: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {name: value for name, value in state.items() if _has_place(layout, name) and not name.startswith("head.")}
    if not any(name.startswith("layers.0.downsample.") for name in kept):
        kept["head.fc.weight"] = torch.empty(0)  # by this name timm's filter knows its own layout
    fitted = swin_transformer.checkpoint_filter_fn(kept, backbone)
    fitted.pop("head.fc.weight", None)
    return fitted | {name: value for name, value in state.items() if name not in kept}


def vit_state_from_npz(name: str, file: str | IO[bytes]) -> dict[str, Tensor]:
    """The state dict in timm's layout of a ViT's .npz file, as its authors publish them; nothing is resized.

    Args:
        name: timm's name of the model.
        file: path or open file; no pickled objects are read from it.

    Raises:
        KeyError, ValueError, RuntimeError: the file is of another model.
    """
    import numpy as np

    with np.load(file) as arrays:
        positions = [arrays[key].shape[1] for key in arrays.files if key.endswith("pos_embedding")]
    if hasattr(file, "seek"):
        file.seek(0)
    if not positions:
        raise KeyError("no position embedding")
    with torch.device("meta"):
        trial: Any = timm.create_model(name, pretrained=False, num_classes=0)
    patch = trial.patch_embed.patch_size[0]
    model = timm.create_model(name, pretrained=False, num_classes=0, img_size=patch * math.isqrt(positions[0]))
    with torch.no_grad():
        vision_transformer._load_weights(model, file)  # type: ignore[arg-type]
    return model.state_dict()
