"""Inserted modules and the published decoders, written out once more as plain functions of their weights.

"Starts as the identity" and "does something" hold for wrong formulas too; these compare values, in float64.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from med_tuning.tiny import tiny
from timm.models.swin_transformer import SwinTransformerBlock

from nnunet_ext.med_tuning.decoders import SETRMLA, SETRPUP, PatchExpand
from nnunet_ext.med_tuning.tuning import AdaptFormer, BottleneckAdapters, ProTuning, STAdapter

PATCH = (3, 32, 48)


def moved(module, seed=0):
    """The module in evaluation with weights and statistics that all do something, in float64."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point() or "attn_mask" in name:
                continue
            fan = tensor[0].numel() if tensor.ndim > 1 else 1
            tensor.copy_(torch.randn(tensor.shape, generator=rng) / math.sqrt(fan))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return module.double().eval()


def assert_equal(found, expected):
    assert expected.std() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def linear(state, name, x):
    y = x @ state[f"{name}.weight"].flatten(1).T
    return y if f"{name}.bias" not in state else y + state[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def layer_norm(state, name, x, eps=1e-5):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(var + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]


def tokens(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


# what is inserted


def block_with(kind, tuning):
    """A network's last encoder block with its inserted module, and the inserted module."""
    network = moved(tiny(kind, PATCH, tuning=tuning))
    inserted = network.tuning.of(len(network.layout.depths) - 1, network.layout.depths[-1] - 1)
    stage = len(network.layout.depths) - 1
    from nnunet_ext.med_tuning.backbones import stage_blocks

    block = stage_blocks(network.backbone, network.layout, stage)[-1]
    x = tokens(PATCH[0], *network.layout.grids[-1], network.layout.widths[-1])
    number = network.layout.depths[-1] - 1
    with torch.no_grad():
        return block, inserted, x, network.tuning(block, stage, number, x, None)[0]


def attended(block, x):
    """The block's own attention, behind its norm."""
    if isinstance(block, SwinTransformerBlock):
        return block._attn(block.norm1(x))
    return block.attn(block.norm1(x).flatten(1, 2)).unflatten(1, x.shape[1:3])


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_adapter(kind):
    """Houlsby et al.: both bottlenecks read the outputs of attention and MLP, before the residual sums."""
    block, inserted, x, found = block_with(kind, "adapter")
    assert type(inserted) is BottleneckAdapters
    state = inserted.state_dict()

    def bottleneck(name, y):
        return y + linear(state, f"{name}.2", gelu(linear(state, f"{name}.0", y)))

    with torch.no_grad():
        x = x + bottleneck("attention", attended(block, x))
        assert_equal(found, x + bottleneck("mlp", block.mlp(block.norm2(x))))
    assert state["mlp.0.weight"].shape == (x.shape[-1] // 8, x.shape[-1])


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_adaptformer(kind):
    """Chen et al.: ReLU(x W) W', times 0.1, beside norm and MLP."""
    block, inserted, x, found = block_with(kind, "adaptformer")
    assert type(inserted) is AdaptFormer
    state = inserted.state_dict()
    with torch.no_grad():
        x = x + attended(block, x)
        branch = linear(state, "branch.2", linear(state, "branch.0", x).clamp(min=0))
        assert_equal(found, x + block.mlp(block.norm2(x)) + 0.1 * branch)
    assert state["branch.0.weight"].shape[0] == 64


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_st_adapter(kind):
    """Pan et al.: a depthwise convolution over three slices in a bottleneck, between attention and MLP."""
    block, inserted, x, found = block_with(kind, "st_adapter")
    assert type(inserted) is STAdapter
    state = inserted.state_dict()
    with torch.no_grad():
        x = x + attended(block, x)
        low = linear(state, "down", x)
        taps, bias = state["conv.weight"].flatten(1), state["conv.bias"]
        zero = torch.zeros_like(low[:1])
        padded = torch.cat([zero, low, zero])
        mixed = sum(padded[k : k + len(low)] * taps[:, k] for k in range(3)) + bias
        x = x + linear(state, "up", mixed)
        assert_equal(found, x + block.mlp(block.norm2(x)))


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_pro_tuning(kind):
    """Nie et al.: 1x1, depthwise 5x5, GELU, 1x1 behind the last block of a stage only."""
    network = moved(tiny(kind, PATCH, tuning="pro_tuning"))
    assert type(network.tuning) is ProTuning
    stage = 1
    from nnunet_ext.med_tuning.backbones import run_block, stage_blocks

    blocks = stage_blocks(network.backbone, network.layout, stage)
    x = tokens(PATCH[0], *network.layout.grids[stage], network.layout.widths[stage])
    state = {name: value for name, value in network.tuning.stages[stage].state_dict().items()}
    with torch.no_grad():
        expected = x
        for block in blocks:
            expected = run_block(block, expected)
        y = linear(state, "0", expected)
        padded = F.pad(y.permute(0, 3, 1, 2), (2, 2, 2, 2))
        height, width = y.shape[1:3]
        y = sum(
            padded[:, :, i : i + height, j : j + width] * state["1.weight"][:, 0, i, j, None, None]
            for i in range(5)
            for j in range(5)
        )
        y = gelu(y + state["1.bias"][:, None, None]).permute(0, 2, 3, 1)
        expected = expected + linear(state, "3", y)
        found = x
        for number, block in enumerate(blocks):
            found = network.tuning(block, stage, number, found, None)[0]
        assert_equal(found, expected)


# decoders


def conv_norm_relu(state, name, x):
    x = F.conv2d(x, state[f"{name}.0.weight"], padding=state[f"{name}.0.weight"].shape[-1] // 2)
    mean, var = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
    scale = state[f"{name}.1.weight"] / torch.sqrt(var + 1e-5)
    return (x * scale[:, None, None] + (state[f"{name}.1.bias"] - mean * scale)[:, None, None]).clamp(min=0)


def between(x, size, aligned):
    """Bilinear interpolation as two matrices."""

    def matrix(n, m):
        rows = torch.zeros(m, n, dtype=x.dtype)
        for k in range(m):
            where = (k * (n - 1) / (m - 1) if m > 1 else 0.0) if aligned else max(0.0, (k + 0.5) * n / m - 0.5)
            low = min(int(where), n - 1)
            rows[k, low] += 1 - (where - low)
            rows[k, min(low + 1, n - 1)] += where - low
        return rows

    return matrix(x.shape[2], size[0]) @ x @ matrix(x.shape[3], size[1]).T


def adaptive_mean(x, bins):
    def parts(n):
        return [(k * n // bins, -(-(k + 1) * n // bins)) for k in range(bins)]

    rows = [
        torch.stack([x[:, :, a:b, c:d].mean((2, 3)) for c, d in parts(x.shape[3])], -1) for a, b in parts(x.shape[2])
    ]
    return torch.stack(rows, -2)


def maps_of(layout, count):
    rng = torch.Generator().manual_seed(2)
    return [
        torch.randn(count, *grid, width, generator=rng, dtype=torch.float64)
        for grid, width in zip(layout.grids, layout.widths, strict=True)
    ]


def decoder_of(kind, decoder, patch=(2, 48, 80)):
    network = moved(tiny(kind, patch, decoder=decoder, tuning="head"))
    return network.decoder, network.layout, network.decoder.state_dict()


def test_upernet():
    """Pyramid pooling of 1, 2, 4 and 6 bins, aligned corners, and sums of neighbouring levels."""
    decoder, layout, state = decoder_of("vit", "upernet")
    outputs = maps_of(layout, 2)
    maps = [output.permute(0, 3, 1, 2) for output in outputs]
    last = maps[-1]
    size = last.shape[2:]
    pools = [
        between(conv_norm_relu(state, f"pools.{k}", adaptive_mean(last, bins)), size, aligned=True)
        for k, bins in enumerate((1, 2, 4, 6))
    ]
    pooled = conv_norm_relu(state, "pooled.0", torch.cat([last, *pools], 1))
    first = F.conv2d(maps[0], state["first.0.weight"], state["first.0.bias"])
    mean, var = state["first.1.running_mean"], state["first.1.running_var"]
    first = (first - mean[:, None, None]) / torch.sqrt(var + 1e-5)[:, None, None]
    levels = [gelu(first * state["first.1.weight"][:, None, None] + state["first.1.bias"][:, None, None])]
    for k, x in enumerate([*maps[1:-1], pooled]):
        levels.append(F.conv2d(x, state[f"laterals.{k}.weight"], state[f"laterals.{k}.bias"]))
    summed = [
        F.conv2d(below + between(above, below.shape[2:], True), state["smooth.weight"], state["smooth.bias"], padding=1)
        for below, above in zip(levels[:-1], levels[1:], strict=True)
    ]
    size = levels[0].shape[2:]
    joined = torch.cat([between(x, size, True) for x in [*summed, levels[-1]]], 1)
    logits = F.conv2d(
        conv_norm_relu(state, "fuse", joined), state["seg_layers.0.weight"], state["seg_layers.0.bias"], padding=1
    )
    with torch.no_grad():
        assert_equal(decoder(None, outputs), between(logits, layout.size, aligned=False))


def expanded(state, name, x, factor):
    channels = linear(state, f"{name}.expand", x)
    count, height, width, total = channels.shape
    depth = total // factor**2
    y = channels.reshape(count, height, width, factor, factor, depth)
    y = torch.cat([torch.cat([y[:, i // factor, :, i % factor].reshape(count, 1, width * factor, depth)], 1)
                   for i in range(height * factor)], 1)  # fmt: skip
    return layer_norm(state, f"{name}.norm", y)


def test_swin_unet():
    """Skips are what enters the encoder's stages, and the blocks of a stage follow its join."""
    decoder, layout, state = decoder_of("swin", "swin_unet")
    inputs, outputs = maps_of(layout, 2), [2 * x for x in maps_of(layout, 2)]
    with torch.no_grad():
        x = outputs[-1]
        for step, skip in enumerate((inputs[2], inputs[1], inputs[0])):
            x = torch.cat([expanded(state, f"ups.{step}", x, 2), skip], -1)
            x = linear(state, f"stages.{step}.concat", x)
            for block in decoder.stages[step].blocks:
                x = block(x)
        x = expanded(state, "last", layer_norm(state, "norm", x), 4)
        logits = linear(state, "seg_layers.0", x).permute(0, 3, 1, 2)
        assert_equal(decoder(inputs, outputs), logits)


def test_patch_expand_is_named_by_its_factor():
    assert PatchExpand(6, 24, 2)(torch.zeros(1, 2, 3, 6)).shape == (1, 4, 6, 6)


@pytest.mark.parametrize("name", ["setr_naive", "setr_pup", "setr_mla", "unet"])
def test_our_own_decoders(name):
    decoder, layout, state = decoder_of("vit", name)
    outputs = maps_of(layout, 2)
    maps = [output.permute(0, 3, 1, 2) for output in outputs]
    if name == "setr_naive":
        x = conv_norm_relu(state, "reduce", maps[-1])
    elif name == "setr_pup":
        x = maps[-1]
        for k in range(4):
            x = conv_norm_relu(state, f"steps.{k}", x)
            x = between(x, [2 * side for side in x.shape[2:]], aligned=False)
        assert x.shape[1] == SETRPUP.width
    elif name == "setr_mla":
        total, levels = 0, []
        for k, output in enumerate(maps[::-1]):
            total = total + conv_norm_relu(state, f"reduce.{k}", output)
            levels.append(conv_norm_relu(state, f"levels.{k}.1", conv_norm_relu(state, f"levels.{k}.0", total)))
        x = torch.cat(levels, 1)
        x = between(x, [4 * side for side in x.shape[2:]], aligned=False)
        assert levels[0].shape[1] == SETRMLA.width
    else:
        x = conv_norm_relu(state, "reduce", maps[-1])
        for k, skip in enumerate(maps[2::-1]):
            size = [2 * side for side in x.shape[2:]]
            skip = between(conv_norm_relu(state, f"skips.{k}", skip), size, aligned=False)
            x = torch.cat([between(x, size, aligned=False), skip], 1)
            x = conv_norm_relu(state, f"steps.{k}.1", conv_norm_relu(state, f"steps.{k}.0", x))
    logits = F.conv2d(x, state["seg_layers.0.weight"], state["seg_layers.0.bias"])
    with torch.no_grad():
        assert_equal(decoder(None, outputs), between(logits, layout.size, aligned=False))
