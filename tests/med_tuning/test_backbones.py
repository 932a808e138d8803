"""Pretrained weights fitted to a network: channels, grids, windows, depths, and the layouts of their authors."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from med_tuning.tiny import TINY_VIT, tiny
from timm.layers import resample_abs_pos_embed

SMALL_VIT = {"embed_dim": 48, "num_heads": 3, "depth": 5}
SMALL_SWIN = {"embed_dim": 24, "depths": (2, 2, 3, 2)}


def vit(**settings):
    """A ViT as timm publishes it: class token, head, 224 pixels, 3 channels; one block more than the network has."""
    torch.manual_seed(7)
    return timm.create_model("vit_tiny_patch16_224", **{"num_classes": 10, **SMALL_VIT, **settings}).eval()


def swin(**settings):
    torch.manual_seed(7)
    return timm.create_model("swin_tiny_patch4_window7_224", **{"num_classes": 10, **SMALL_SWIN, **settings}).eval()


def load(network, state):
    fitted = network.backbone_state_from_timm(state)
    unexpected = network.load_state_dict(fitted.state, strict=False).unexpected_keys
    assert not unexpected
    return fitted


def test_a_vits_weights_arrive_whole():
    source = vit()
    network = tiny("vit", (2, 224, 224), 3, tuning="head").eval()
    fitted = load(network, source.state_dict())
    assert fitted.missing == []
    assert {name.split(".")[0] for name in fitted.unused} == {"cls_token", "head", "blocks"}
    assert {name.split(".")[1] for name in fitted.unused if name.startswith("blocks.")} == {"4"}
    twin = vit(depth=4, class_token=False, global_pool="", num_classes=0)
    state = {name: value for name, value in source.state_dict().items() if name in twin.state_dict()}
    twin.load_state_dict(state | {"pos_embed": source.pos_embed[:, 1:]})
    x = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(network._encode(x)[1][-1].flatten(1, 2), twin.forward_features(x))


@pytest.mark.parametrize("side", [5, 8, 20])
def test_kernels_are_resampled_to_the_tokens_that_were_asked_for(side):
    """FlexiViT's pseudoinverse resize, from the resize of unit vectors: kernels answer resized patches as they did."""
    source = vit()
    settings = {**TINY_VIT["backbone_settings"], "patch_size": side}
    network = tiny("vit", (2, 40, 60), 3, tuning="head", backbone_settings=settings)
    assert network.layout.grids[0] == (-(-40 // side), -(-60 // side))
    fitted = load(network, source.state_dict())
    assert fitted.missing == []
    units = torch.eye(256).view(256, 1, 16, 16)
    resize = F.interpolate(units, (side, side), mode="bicubic", antialias=True, align_corners=False).flatten(1)
    kernels = source.patch_embed.proj.weight.detach().flatten(2)  # resize [256, side^2]
    expected = (kernels.double() @ torch.linalg.pinv(resize.double()).T).unflatten(2, (side, side))
    torch.testing.assert_close(network.backbone.patch_embed.proj.weight, expected.float(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("patch", [(2, 112, 448), (2, 40, 56), (2, 320, 256)])
def test_positions_are_resized_to_any_grid(patch):
    """The first has as many tokens as the pretrained model, in another shape."""
    source, network = vit(), tiny("vit", patch, tuning="head")
    load(network, source.state_dict())
    expected = resample_abs_pos_embed(source.pos_embed[:, 1:], list(network.layout.grids[0]), num_prefix_tokens=0)
    assert torch.equal(network.backbone.pos_embed, expected)
    square = torch.randn(1, 14, 14, 48)
    kept = tiny("vit", (2, 224, 224), tuning="head")
    load(kept, {**source.state_dict(), "pos_embed": square.flatten(1, 2)})
    assert torch.equal(kept.backbone.pos_embed, square.flatten(1, 2)), "positions without a class token"


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_one_channel_sees_what_three_equal_ones_see(kind):
    source = (vit if kind == "vit" else swin)().state_dict()
    grey, colour = (tiny(kind, (2, 64, 96), channels, tuning="head").eval() for channels in (1, 3))
    load(grey, source)
    load(colour, source)
    x = torch.randn(2, 1, 64, 96)
    torch.testing.assert_close(
        grey._encode(x)[1][-1], colour._encode(x.expand(-1, 3, -1, -1))[1][-1], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_channels_repeat_the_three_and_keep_their_sum(kind, channels):
    source = (vit if kind == "vit" else swin)().state_dict()
    network = tiny(kind, (2, 64, 64), channels, tuning="head")
    load(network, source)
    kernels = source["patch_embed.proj.weight"]
    expected = torch.stack([kernels[:, n % 3] for n in range(channels)], dim=1) * 3 / channels
    torch.testing.assert_close(network.backbone.patch_embed.proj.weight, expected)


def test_swins_weights_arrive_as_timm_loads_them(tmp_path):
    """Against timm's own path from a file, for a shape where windows and tables change."""
    state = swin(depths=(1, 2, 1, 1)).state_dict()
    torch.save(state, tmp_path / "swin.pth")
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "swin.pth"), "num_classes": 10},
        **{**SMALL_SWIN, "depths": (1, 2, 1, 1)},
        img_size=(96, 160),
        window_size=4,
        in_chans=1,
        num_classes=0,
    ).state_dict()
    network = tiny("swin", (2, 96, 160), 1)
    fitted = load(network, state)
    assert fitted.missing == [] and all(name.startswith("head.") for name in fitted.unused)
    mine = network.backbone.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_tables_of_relative_positions_keep_their_meaning():
    """One that grows with the rows' distance, and with nothing else, does so at every window."""
    state = swin().state_dict()
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    distances = torch.arange(-6.0, 7.0).view(13, 1, 1).expand(13, 13, 3)
    network = tiny("swin", (2, 64, 64), window=4)
    load(network, state | {name: distances.reshape(169, 3)})
    table = network.backbone.get_parameter(name).detach().view(7, 7, 3)
    rows = table[:, 0, 0]
    torch.testing.assert_close(table, rows.view(7, 1, 1).expand(7, 7, 3))
    torch.testing.assert_close(rows, -rows.flip(0))
    assert rows.diff().min() > 0 and rows[3] == 0


def original_layout(state):
    """As Swin's authors store it: patch mergings at the end of stages, buffers in the state, the head's other name."""
    renamed = {}
    for name, value in state.items():
        place = name.split(".")
        if "downsample" in name:
            place[1] = str(int(place[1]) - 1)
        renamed[".".join(place).replace("head.fc.", "head.")] = value
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    return renamed


def test_every_layout_of_swin_gives_the_same():
    state = swin().state_dict()
    bare = {name: value for name, value in state.items() if not name.startswith("head.")}
    results = []
    for layout in (state, bare, original_layout(state), {"model": original_layout(bare)}):
        network = tiny("swin", (2, 64, 64), depths=[2, 2, 2, 2])
        fitted = network.backbone_state_from_timm(layout)
        assert fitted.missing == []
        assert {name for name in fitted.unused if not name.startswith("head.")} == {
            name for name in state if name.startswith("layers.2.blocks.2.")
        }
        results.append(fitted.state)
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


def test_swin_unets_decoder_starts_with_the_encoders_blocks():
    network = tiny("swin", (2, 96, 160))
    load(network, swin().state_dict())
    for stage, mine in zip((2, 1, 0), network.decoder.stages, strict=True):
        theirs = network.backbone.layers[stage].blocks.state_dict()
        copied = mine.blocks.state_dict()
        assert copied.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in copied.items())


def test_moco_v3s_names_are_known():
    state = vit().state_dict()
    stored = {f"module.base_encoder.{name}": value for name, value in state.items()}
    stored |= {f"module.momentum_encoder.{name}": torch.zeros_like(value) for name, value in state.items()}
    networks = [tiny("vit", (2, 64, 64)) for _ in range(2)]
    torch.manual_seed(0)
    fitted = [load(networks[0], {"epoch": 300, "state_dict": stored}), load(networks[1], state)]
    assert fitted[0].missing == fitted[1].missing == []
    assert all(torch.equal(value, fitted[1].state[name]) for name, value in fitted[0].state.items())


def test_openais_names_are_known_and_the_norm_before_the_blocks_is_kept():
    settings = {"backbone": "vit_base_patch16_clip_quickgelu_224.openai"}
    network = tiny("vit", (2, 64, 64), **settings)
    width, state = 48, {}
    for name, value in network.backbone.state_dict().items():
        for ours, theirs in (
            ("patch_embed.proj", "conv1"),
            ("blocks.", "transformer.resblocks."),
            ("norm_pre", "ln_pre"),
            ("norm1", "ln_1"),
            ("norm2", "ln_2"),
            ("attn.qkv.", "attn.in_proj_"),
            ("attn.proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            name = name.replace(ours, theirs)
        name = name.replace("norm.", "ln_post.")
        state[f"visual.{name}"] = torch.randn_like(value)
    del state["visual.pos_embed"]
    state["visual.positional_embedding"] = torch.randn(197, width)
    state["visual.class_embedding"] = torch.randn(width)
    state["visual.conv1.weight"] = torch.randn(width, 3, 16, 16)
    state["visual.proj"] = torch.randn(width, 32)
    fitted = load(network, state)
    assert fitted.missing == []
    assert {"head.weight", "head.bias", "cls_token"} == set(fitted.unused)
    assert torch.equal(network.backbone.norm_pre.weight, state["visual.ln_pre.weight"])
    assert "QuickGELU" in type(network.backbone.blocks[0].mlp.act).__name__
    assert network.backbone.blocks[0].norm1.eps == 1e-5


def test_dinov2s_registers_are_dropped():
    """As its authors store them: the position of the class token stays in the table, those of registers never were."""
    state = vit().state_dict()
    stored = state | {"mask_token": torch.zeros(1, 48), "register_tokens": torch.randn(1, 4, 48)}
    networks = [tiny("vit", (2, 64, 96)) for _ in range(2)]
    assert load(networks[0], stored).missing == load(networks[1], state).missing == []
    assert torch.equal(networks[0].backbone.pos_embed, networks[1].backbone.pos_embed)


def test_what_does_not_fit_is_named():
    state = vit().state_dict()
    del state["blocks.2.attn.qkv.weight"]
    state["blocks.1.mlp.fc1.weight"] = torch.zeros(3, 3)
    state["patch_embed.proj.weight"] = torch.zeros(48, 7, 16, 16)
    fitted = tiny("vit", (2, 64, 64)).backbone_state_from_timm(state)
    expected = {"blocks.2.attn.qkv.weight", "blocks.1.mlp.fc1.weight", "patch_embed.proj.weight"}
    assert set(fitted.missing) == {f"backbone.{name}" for name in expected}
    assert expected - set(fitted.unused) == {"blocks.2.attn.qkv.weight"}
    other = tiny("vit", (2, 64, 64)).backbone_state_from_timm(swin().state_dict())
    assert "backbone.blocks.0.attn.qkv.weight" in other.missing
    nothing = tiny("swin", (2, 64, 64)).backbone_state_from_timm({})
    assert nothing.state == {} and len(nothing.missing) > 50


def test_models_that_pool_before_their_norm_keep_it():
    state = vit().state_dict()
    for part in ("weight", "bias"):
        state[f"fc_norm.{part}"] = state.pop(f"norm.{part}") + 2
    network = tiny("vit", (2, 64, 64))
    assert load(network, state).missing == []
    assert torch.equal(network.backbone.norm.weight, state["fc_norm.weight"])


def test_positions_of_another_resolution_are_resized_once():
    source = vit(img_size=384)
    network = tiny("vit", (2, 224, 224))
    load(network, source.state_dict())
    expected = resample_abs_pos_embed(source.pos_embed[:, 1:], [14, 14], num_prefix_tokens=0)
    assert math.isqrt(source.pos_embed.shape[1]) == 24
    assert torch.equal(network.backbone.pos_embed, expected)
