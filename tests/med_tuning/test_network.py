"""MedTuningNet: what is frozen and what learns, any patch, comparison methods and decoders against slow forms."""

import collections
import copy

import pytest
import torch
import torch.nn.functional as F
from contract.network import loss_of
from med_tuning.tiny import TINY_SWIN, TINY_VIT, tiny
from timm.models.swin_transformer import SwinTransformerBlock
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_tuning import backbones
from nnunet_ext.med_tuning.decoders import DECODERS, PatchExpand
from nnunet_ext.med_tuning.network import MedTuningNet, arch_kwargs_at, token_side
from nnunet_ext.med_tuning.tuning import METHODS, _prompted_swin_block

KINDS = pytest.mark.parametrize("kind", ["vit", "swin"])
SMALL = (3, 32, 64)
ENCODER = ("patch_embed.", "blocks.", "layers.")


def image(patch=SMALL, channels=2, batch=1, seed=1):
    return torch.randn(batch, channels, *patch, generator=torch.Generator().manual_seed(seed))


def with_weights_of(network, other):
    """`network`, with all weights of `other` that it has; the names that it has alone."""
    missing, unexpected = network.load_state_dict(other.state_dict(), strict=False)
    assert not unexpected
    return network, missing


def randomized(network, seed=0):
    """Every trainable parameter random, so that inserted modules do something."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.tuning.parameters():
            parameter.normal_(0, 0.2)
    return network


# what learns


@KINDS
@pytest.mark.parametrize("tuning", METHODS)
def test_every_trainable_tensor_learns_and_no_other(kind, tuning):
    network = tiny(kind, SMALL, tuning=tuning).train()
    own = {id(parameter) for parameter in network.backbone.parameters()}
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == set(network.frozen_names())
    encoder = {
        name
        for name, parameter in network.named_parameters()
        if id(parameter) in own and name.removeprefix("backbone.").startswith(ENCODER)
    }
    assert frozen == (set() if tuning in ("full", "scratch") else encoder)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 1e-3)
    for step in range(2):  # behind what starts at zero, gradients begin with the second step
        optimizer.zero_grad()
        loss_of(network(image(seed=step))).backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        if name in frozen:
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    still = {
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and torch.equal(parameter, before[name])
    }
    first = network.layout.depths[0] - 1  # its align convolution sees zeros, so that only the bias learns
    assert still <= {f"tuning.blocks.{first}.interaction.align.weight"}
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in network.frozen_names())


@KINDS
def test_training_mode_changes_nothing_in_the_frozen_encoder(kind):
    network = tiny(kind, SMALL).train()
    assert {module.p for module in network.backbone.modules() if isinstance(module, torch.nn.Dropout)} <= {0.0}
    assert not any("DropPath" in type(module).__name__ for module in network.backbone.modules())
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.backbone.modules())
    slices = torch.randn(2, 2, 32, 64)
    assert torch.equal(network.backbone(slices), network.backbone.eval()(slices))


def test_batch_norms_of_the_decoder_take_a_single_slice():
    network = tiny("vit", (32, 64)).train()
    assert network(image((32, 64))).isfinite().all()


# comparison with the backbone alone


@KINDS
@pytest.mark.parametrize("tuning", ["med_adapter", "adapter", "adaptformer", "pro_tuning", "st_adapter", "lora"])
def test_inserted_modules_start_as_the_identity(kind, tuning):
    plain = tiny(kind, SMALL, tuning="head").eval()
    network, added = with_weights_of(tiny(kind, SMALL, tuning=tuning).eval(), plain)
    assert added and all(name.startswith("tuning.") for name in added)
    x = image()
    assert torch.equal(network(x), plain(x))
    assert not torch.equal(randomized(network)(x), plain(x)), "they do something once they have learned"


@KINDS
@pytest.mark.parametrize("tuning", ["vpt_shallow", "vpt_deep"])
def test_prompts_change_the_output(kind, tuning):
    plain = tiny(kind, SMALL, tuning="head").eval()
    network = with_weights_of(tiny(kind, SMALL, tuning=tuning).eval(), plain)[0]
    assert not torch.equal(network(image()), plain(image()))


@KINDS
def test_without_insertions_the_encoder_is_timms(kind):
    network = tiny(kind, SMALL, tuning="head").eval()
    slices = torch.randn(2, 2, 32, 64)
    outputs = network._encode(slices)[1]
    final = network.backbone.forward_features(slices)
    torch.testing.assert_close(outputs[-1].flatten(1, -2), final.flatten(1, -2))
    theirs = network.backbone.forward_intermediates(slices, indices=[0, 1, 2], intermediates_only=True)
    for mine, other in zip(outputs[:3], theirs, strict=True):
        torch.testing.assert_close(mine.permute(0, 3, 1, 2), other)


def test_a_vits_own_depth_is_divided_into_four_stages():
    with torch.device("meta"):
        network = MedTuningNet(1, 2, patch_size=(4, 32, 32), backbone="vit_tiny_patch16_224")
        odd = MedTuningNet(1, 2, patch_size=(4, 32, 32), backbone="vit_tiny_patch16_224", depths=[1, 2, 3, 1])
    ends = [index for index, adapter in enumerate(network.tuning.blocks) if adapter.interaction is not None]
    assert ends == [2, 5, 8, 11]
    assert [index for index, adapter in enumerate(odd.tuning.blocks) if adapter.interaction is not None] == [0, 2, 5, 6]


@KINDS
def test_both_forms_of_the_frequency_branch_share_their_weights(kind):
    network = randomized(tiny(kind, SMALL)).eval()
    other = tiny(kind, SMALL, frequency="fft").eval()
    other.load_state_dict(network.state_dict(), strict=True)
    torch.testing.assert_close(network(image()), other(image()), atol=1e-4, rtol=1e-4)


@KINDS
@pytest.mark.parametrize("tuning", ["med_adapter", "st_adapter"])
def test_only_methods_with_convolutions_across_slices_see_the_volume(kind, tuning):
    x = image(batch=2)
    changed = x.clone()
    changed[0, :, 0] += 1
    for method, seen in ((tuning, True), ("adapter", False)):
        network = randomized(tiny(kind, SMALL, tuning=method)).eval()
        before, after = network(x), network(changed)
        assert torch.equal(before[0, :, 2], after[0, :, 2]) != seen
        torch.testing.assert_close(before[1], after[1])


# slow forms of the comparison methods


def test_lora_is_a_change_of_the_weights():
    for kind in ("vit", "swin"):
        network = randomized(tiny(kind, SMALL, tuning="lora", rank=3)).eval()
        merged = tiny(kind, SMALL, tuning="head").eval()
        merged.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("tuning.")})
        modules = [module for name, module in merged.backbone.named_modules() if name.endswith("attn.qkv")]
        for layer, update in zip(modules, network.tuning.blocks, strict=True):
            query, value = update.down.weight.chunk(2)
            width = layer.in_features
            with torch.no_grad():
                layer.weight[:width] += update.query.weight @ query
                layer.weight[2 * width :] += update.value.weight @ value
        torch.testing.assert_close(network(image()), merged(image()), atol=1e-4, rtol=1e-4)


def test_a_copy_of_a_network_with_lora_uses_its_own_updates():
    network = randomized(tiny("vit", SMALL, tuning="lora")).eval()
    other = randomized(copy.deepcopy(network), seed=5)
    assert not torch.equal(network(image()), other(image()))


@pytest.mark.parametrize("grid", [(8, 8), (7, 10), (3, 12)])
@pytest.mark.parametrize("shift", [0, 2])
def test_a_prompted_swin_block_without_prompts_is_timms(grid, shift):
    torch.manual_seed(0)
    block = SwinTransformerBlock(12, grid, num_heads=3, window_size=4, shift_size=shift).eval()
    x = torch.randn(2, *grid, 12)
    torch.testing.assert_close(_prompted_swin_block(block, x, x.new_zeros(2, 0, 12))[0], block(x), atol=1e-5, rtol=1e-5)


def test_a_prompted_swin_block_window_by_window():
    torch.manual_seed(0)
    block = SwinTransformerBlock(12, (8, 12), num_heads=3, window_size=4).eval()
    x, prompts = torch.randn(2, 8, 12, 12), torch.randn(2, 5, 12)
    attention, bias = block.attn, F.pad(block.attn._get_rel_pos_bias()[0], (5, 0, 5, 0))
    new_x, new_prompts = x.clone(), prompts.clone()
    for n in range(2):
        for top in (0, 4):
            for left in (0, 4, 8):
                window = x[n, top : top + 4, left : left + 4].reshape(16, 12)
                both = block.norm1(torch.cat([prompts[n], window]))
                q, k, v = attention.qkv(both).reshape(21, 3, 3, 4).permute(1, 2, 0, 3)
                weights = (q @ k.transpose(1, 2) / 2 + bias).softmax(-1)
                out = attention.proj((weights @ v).transpose(0, 1).reshape(21, 12))
                new_x[n, top : top + 4, left : left + 4] += out[5:].reshape(4, 4, 12)
                new_prompts[n] += out[:5] / 6
    new_x = new_x + block.mlp(block.norm2(new_x))
    new_prompts = new_prompts + block.mlp(block.norm2(new_prompts))
    found_x, found_prompts = _prompted_swin_block(block, x, prompts)
    torch.testing.assert_close(found_x, new_x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_prompts, new_prompts, atol=1e-5, rtol=1e-5)


def test_patch_expand_spreads_channels_over_tokens():
    expand = PatchExpand(6, 12, 2)
    x = torch.randn(1, 2, 3, 6)
    channels = expand.expand(x)
    expected = torch.empty(1, 4, 6, 3)
    for row in range(4):
        for column in range(6):
            part = 2 * (row % 2) + column % 2
            expected[0, row, column] = channels[0, row // 2, column // 2, 3 * part : 3 * part + 3]
    torch.testing.assert_close(expand(x), expand.norm(expected))


def test_upernets_levels_are_summed_with_their_neighbour_only():
    decoder = tiny("vit", SMALL).decoder.eval()
    outputs = [torch.randn(1, 2, 4, 48, requires_grad=True) for _ in range(4)]
    kept = []
    decoder.smooth.register_forward_hook(lambda module, inputs, output: kept.append(output))
    decoder(outputs, outputs)
    for level, features in enumerate(kept):
        gradients = torch.autograd.grad(features.sum(), outputs, retain_graph=True, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [n in (level, level + 1) for n in range(4)]


@KINDS
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_follows_a_backbone_or_is_refused(kind, decoder):
    if kind not in DECODERS[decoder].kinds:
        with pytest.raises(
            ConfigurationError, match=f"'{decoder}' cannot follow a {'ViT' if kind == 'vit' else 'Swin'}"
        ):
            tiny(kind, SMALL, decoder=decoder)
        return
    network = tiny(kind, (2, 40, 56), decoder=decoder, tuning="head").train()
    logits = network(image((2, 40, 56)))
    assert logits.shape == (1, 3, 2, 40, 56)
    loss_of(logits).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.decoder.parameters())


# sizes


@KINDS
@pytest.mark.parametrize("patch", [(40, 56, 40), (20, 320, 256), (28, 96, 112), (512, 512), (1, 16, 16), (130, 16, 16)])
def test_patches_as_they_are_planned(kind, patch):
    network = tiny(kind, patch, tuning="med_adapter").eval()
    with torch.no_grad():
        logits = network(image(patch))
    assert logits.shape == (1, 3, *patch)
    assert logits.is_contiguous()
    assert logits.isfinite().all()


@KINDS
def test_padding_reaches_the_logits_only_by_attention(kind):
    """An image that is smaller than the patch is that image with zeros at its ends."""
    network = tiny(kind, (4, 64, 64)).eval()
    x = image((3, 40, 50))
    padded = F.pad(x, (0, 14, 0, 24, 0, 1))
    assert torch.equal(network(x), network(padded)[:, :, :3, :40, :50])


def test_images_larger_than_the_patch_are_refused():
    with pytest.raises(ConfigurationError, match=r"\[3, 33, 64\] voxels is larger than the patch \[3, 32, 64\]"):
        tiny("vit", SMALL)(image((3, 33, 64)))
    with pytest.raises(ConfigurationError, match=r"larger than the patch"):
        tiny("vit", SMALL)(image((4, 32, 64)))


@KINDS
@pytest.mark.parametrize("tuning", ["med_adapter", "vpt_deep"])
def test_float64_and_autocast(kind, tuning):
    network = randomized(tiny(kind, SMALL, tuning=tuning)).eval()
    expected = network(image())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(image())
        loss_of(half).backward()
    assert half.isfinite().all()
    assert (half - expected).abs().mean() < 0.1 * expected.abs().mean()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    double = network.double()(image().double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, expected.double(), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tuning"), [("vit", "lora"), ("swin", "vpt_shallow"), ("swin", "st_adapter")])
def test_no_graph_breaks(kind, tuning):
    """The contract compiles med_adapter; these have hooks, windows with prompts, and parts inside of blocks."""
    torch._dynamo.reset()
    torch.compile(tiny(kind, SMALL, tuning=tuning), backend="eager", fullgraph=True)(image())


def test_med_adapters_have_no_graph_breaks_under_autocast():
    torch._dynamo.reset()
    network = tiny("vit", (3, 16, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch._dynamo.explain(network)(image((3, 16, 32))).graph_break_count == 0


# bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "vit_tiny_patch16_225"}, "timm .* has no model 'vit_tiny_patch16_225'.* vit_tiny_patch16_224"),
        ({"backbone": "vit_tiny_patch16_224.of_mine"}, "timm cannot build 'vit_tiny_patch16_224.of_mine'"),
        ({"backbone": "hf-hub:timm/vit_tiny_patch16_224"}, "has no model 'hf-hub"),
        ({"backbone": "resnet18"}, "'resnet18' is neither a plain ViT nor a Swin"),
        ({"backbone": "swinv2_tiny_window8_256"}, "neither a plain ViT nor a Swin"),
        ({"backbone": "deit_tiny_distilled_patch16_224"}, "deit_tiny_distilled_patch16_224"),
        (
            {"backbone": "vit_base_patch16_rpn_224", "tuning": "adapter"},
            "'adapter' needs blocks of attention, then MLP",
        ),
        ({"tuning": "bitfit"}, "Unknown tuning 'bitfit'. Known: med_adapter, full, head"),
        ({"decoder": "fcn"}, "Unknown decoder 'fcn'. Known: upernet, swin_unet"),
        ({"adapted_from": 4}, "'adapted_from' must be a number of blocks that get no adapter, 0 to 3, found 4"),
        ({"adapted_from": -1}, "'adapted_from' must be a number of blocks"),
        ({"alpha": 1000}, "'alpha' must be a number from 1 to the backbone's width 48, found 1000"),
        ({"frequency": "wavelet"}, "'frequency' must be one of circulant, fft, found 'wavelet'"),
        ({"interaction": "mean"}, "'interaction' must be one of concat, add, max, none"),
        ({"branches": ["conv3", "conv7"]}, "'branches' must be one or more of conv3, conv5, frequency"),
        ({"branches": []}, "'branches' must be one or more of"),
        ({"depths": [1, 1]}, r"'depths' of a ViT must be 4 numbers of blocks, found \[1, 1\]"),
        ({"depths": [1, 0, 1, 1]}, "'depths' must be positive numbers"),
        ({"prompts": 0, "tuning": "vpt_deep"}, "'prompts' must be a positive integer, found 0"),
        ({"rank": 0, "tuning": "lora"}, "'rank' must be a positive integer, found 0"),
        ({"patch_size": [8, 32, 32, 32]}, r"'patch_size' must be \[D, H, W\] or \[H, W\]"),
        ({"patch_size": [8, 0, 32]}, "'patch_size' must be"),
        ({"strides": [[1, 1]]}, "'strides' and 'patch_size' differ in dimensions"),
        ({"backbone_settings": {"colour": "red"}}, "timm cannot build 'vit_tiny_patch16_224': .*colour"),
    ],
)
def test_what_cannot_work_is_refused_in_words(settings, message):
    arguments = {"patch_size": [3, 32, 32], **TINY_VIT, **settings}
    if "backbone" in settings:
        arguments |= {"depths": None, "backbone_settings": None}
    with torch.device("meta"), pytest.raises(ConfigurationError, match=message):
        MedTuningNet(1, 2, **arguments)


def test_alpha_may_not_leave_a_swins_first_stage_without_channels():
    with pytest.raises(ConfigurationError, match="width 24, found 25"):
        MedTuningNet(1, 2, patch_size=[3, 32, 32], **TINY_SWIN, alpha=25)
    network = MedTuningNet(1, 2, patch_size=[3, 32, 32], **TINY_SWIN, alpha=24)
    assert network(image((3, 32, 32), channels=1)).isfinite().all()


# plans


def test_default_arguments_are_the_papers_network():
    kwargs = arch_kwargs_at([(1, 1, 1), (1, 2, 2)])
    assert "patch_size" not in kwargs
    kwargs = arch_kwargs_at([(1, 1, 1), (1, 2, 2)], patch_size=(8, 128, 160))
    with torch.device("meta"):
        by_name = MedTuningNet(1, 2, **kwargs)
        by_default = MedTuningNet(1, 2, patch_size=[8, 128, 160])
    shapes = [{k: v.shape for k, v in network.state_dict().items()} for network in (by_name, by_default)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("patch", "side"),
    [((8, 128, 300), 16), ((8, 127, 300), 15), ((40, 56, 40), 5), ((64, 72), 8), ((2, 16, 200), 2), ((4, 4), 1)],
)
def test_tokens_are_so_small_that_a_slice_has_eight_of_them_a_side(patch, side):
    assert token_side(patch) == side
    kwargs = arch_kwargs_at([[1] * len(patch), [2] * len(patch)], patch)
    assert kwargs.get("backbone_settings") == (None if side == 16 else {"patch_size": side})
    if side == 5:
        with torch.device("meta"):
            network = MedTuningNet(1, 2, **{**kwargs, "backbone": "vit_tiny_patch16_224", "depths": [1, 1, 1, 1]})
        assert network.layout.grids[0] == (12, 8)


# what need not be computed


def hidden_states(network, x):
    """Whether what comes out of each block of the encoder has a graph."""
    found = []
    hooks = [
        block.register_forward_hook(lambda m, i, o: found.append(o.requires_grad)) for block in network.backbone.blocks
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return found


def test_adapters_from_a_later_block_leave_the_first_without_a_graph():
    network = tiny("vit", SMALL, adapted_from=2, tune_positions=False).train()
    names = {name.split(".")[2] for name in network.state_dict() if name.startswith("tuning.blocks.")}
    assert names == {"2", "3"}
    assert hidden_states(network, image()) == [False, False, False, True]  # the third block's adapter comes behind it
    assert hidden_states(tiny("vit", SMALL, tune_positions=False), image()) == [False, True, True, True]
    assert hidden_states(tiny("vit", SMALL, adapted_from=2), image()) == [True] * 4
    full, _ = with_weights_of(tiny("vit", SMALL), network)
    torch.testing.assert_close(network.eval()(image()), full.eval()(image()))  # adapters start as the identity
    changed = randomized(network)(image())
    same = copy.deepcopy(network)
    for _ in range(2):
        torch.testing.assert_close(same(image()), changed)
    for number, block in ((1, False), (2, True)):  # what belongs to a block is used, or is not there
        with torch.no_grad():
            for parameter in same.tuning.blocks[number].parameters():
                parameter.add_(0.5)
        assert torch.equal(same(image()), changed) != block


@KINDS
def test_positions_can_stay_as_they_were_pretrained(kind):
    frozen, trained = (tiny(kind, SMALL, tuning="head", tune_positions=tune) for tune in (False, True))
    names = set(frozen.frozen_names()) - set(trained.frozen_names())
    assert names == ({"backbone.pos_embed"} if kind == "vit" else set())
    if kind == "vit":
        assert hidden_states(frozen, image()) == [False] * 4 and hidden_states(trained, image()) == [True] * 4
    whole = tiny(kind, SMALL, tuning="full", tune_positions=False)
    assert whole.frozen_names() == []


def test_bfloat16_on_a_cpu_is_autocast_with_float32_logits(monkeypatch):
    monkeypatch.setattr("nnunet_ext.med_tuning.network.has_bfloat16", lambda: True)
    network = tiny("vit", SMALL, cpu_bfloat16=True).eval()
    plain, _ = with_weights_of(tiny("vit", SMALL).eval(), network)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            expected = plain(image())
        found = network(image())
        assert expected.dtype == torch.bfloat16 and found.dtype == torch.float32
        assert torch.equal(found, expected.float())
        assert not torch.equal(found, plain(image()))
        torch.testing.assert_close(found, plain(image()), atol=0.1, rtol=0.1)
    monkeypatch.setattr("nnunet_ext.med_tuning.network.has_bfloat16", lambda: False)
    with torch.no_grad():
        assert torch.equal(
            with_weights_of(tiny("vit", SMALL, cpu_bfloat16=True).eval(), network)[0](image()), plain(image())
        )


def test_stages_of_the_encoder_have_the_blocks_of_the_decoder():
    network = tiny("swin", SMALL)
    for stage, blocks in zip((2, 1, 0), network.decoder.stages, strict=True):
        theirs = network.backbone.layers[stage].blocks
        assert [b.window_size for b in blocks.blocks] == [b.window_size for b in theirs]
        assert [b.shift_size for b in blocks.blocks] == [b.shift_size for b in theirs]
        assert [b.attn.num_heads for b in blocks.blocks] == [b.attn.num_heads for b in theirs]


@pytest.mark.parametrize("other", [(3, 40, 88), (5, 40, 56)], ids=["positions", "slice filters"])
def test_weights_of_another_patch_are_refused_in_a_sentence(other):
    network = tiny(patch_size=(3, 40, 56))
    with pytest.raises(ConfigurationError, match=r"are learned for one patch, here \[3, 40, 56\]"):
        network.load_state_dict(tiny(patch_size=other).state_dict())


def test_weights_of_another_number_of_classes_are_torchs_to_refuse():
    with pytest.raises(RuntimeError, match="seg_layers"):
        tiny(num_classes=3).load_state_dict(tiny(num_classes=4).state_dict())


@KINDS
def test_filters_made_at_once_are_each_adapters_own(kind):
    network = randomized(tiny(kind, SMALL, adapted_from=1)).eval()
    at_once = network(image())
    for adapter in network.tuning.blocks[1:]:
        adapter.register_forward_pre_hook(lambda _, inputs: inputs[:2])  # makes its own then
    torch.testing.assert_close(network(image()), at_once, atol=1e-6, rtol=1e-6)


def test_tokens_lie_in_memory_as_norms_and_products_read_them():
    network, seen = tiny(patch_size=SMALL).eval(), []
    for block in network.backbone.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    network(image())
    assert seen and all(seen)


def test_an_adapter_adds_few_kernels():
    """Counted on the device that runs them, where attention is one."""
    counted = [sum(operations(tiny(patch_size=SMALL, tuning=tuning)).values()) for tuning in ("med_adapter", "head")]
    assert counted[0] - counted[1] <= 4 * 22 + 20  # four adapters, the interactions between them, the filters of all


def operations(network):
    """How often each is called that computes or copies."""
    counts = collections.Counter()

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            counts[function._schema.name.removeprefix("aten::")] += 1
            return function(*args, **(kwargs or {}))

    with Count(), torch.no_grad():
        network.eval()(image())
    views = "view permute transpose unsqueeze expand slice select split t _unsafe_view unbind empty promote_types"
    return {name: count for name, count in counts.items() if name not in views.split()}


class FusedCalls(TorchDispatchMode):
    """Counts calls of torch's fused attention."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "scaled_dot_product" in str(function)
        return function(*args, **(kwargs or {}))


def test_attention_over_few_tokens_is_computed_in_steps_under_autocast_on_a_cpu(monkeypatch):
    """A ViT's; timm computes a Swin's in steps anyway."""
    network = randomized(tiny("vit")).eval()
    x = image()

    def run(autocast, few=backbones.FEW_TOKENS):
        monkeypatch.setattr(backbones, "FEW_TOKENS", few)
        with FusedCalls() as calls, torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = network(x).float()
        return calls.count, logits

    number = len(network.backbone.blocks)
    exact, fused, in_steps, again = run(False), run(True, few=0), run(True), run(False)
    assert [exact[0], fused[0], in_steps[0], again[0]] == [number, number, 0, number]
    assert torch.equal(exact[1], again[1])
    errors = [(logits - exact[1]).abs().mean() for _, logits in (fused, in_steps)]
    assert 0 < errors[1] < 1.5 * errors[0]
