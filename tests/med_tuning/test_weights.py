"""Weights files: every kind is read, none runs code, and what is missing, damaged or of another network is refused."""

import pickle
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_tuning.network import MedTuningNet
from nnunet_ext.med_tuning.options import MedTuningOptions
from nnunet_ext.med_tuning.weights import check_plan, find_weights, fitting_weights, is_at_hand, load_into, sha256_of

VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
SMALL = {VIT: {"embed_dim": 24, "depth": 4, "num_heads": 2}, SWIN: {"embed_dim": 12, "num_heads": (1, 2, 2, 2)}}


def network_of(name, *, channels=1, settings=None, tuning="med_adapter"):
    settings = SMALL[name] if settings is None else settings
    return MedTuningNet(
        channels, 2, patch_size=[4, 48, 80], backbone=name, tuning=tuning, alpha=4, backbone_settings=settings
    )


def original(name, **further):
    torch.manual_seed(3)
    return timm.create_model(name, pretrained=False, num_classes=5, **SMALL[name], **further).state_dict()


def options(file, **further):
    return MedTuningOptions.from_plans({"weights_file": str(file), **further})


def npz_of(state, heads=3):
    """timm's ViT as Google's arrays."""
    arrays = {"embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0)}
    arrays["embedding/bias"] = state["patch_embed.proj.bias"]
    arrays["cls"] = state["cls_token"]
    arrays["Transformer/posembed_input/pos_embedding"] = state["pos_embed"]
    for theirs, ours in (("scale", "weight"), ("bias", "bias")):
        arrays[f"Transformer/encoder_norm/{theirs}"] = state[f"norm.{ours}"]
    width = state["norm.bias"].numel()
    for i in range(12):
        place, block = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        for number, norm in ((0, "norm1"), (2, "norm2")):
            arrays[f"{place}LayerNorm_{number}/scale"] = state[f"{block}{norm}.weight"]
            arrays[f"{place}LayerNorm_{number}/bias"] = state[f"{block}{norm}.bias"]
        attention = f"{place}MultiHeadDotProductAttention_1/"
        kernels, biases = state[f"{block}attn.qkv.weight"].chunk(3), state[f"{block}attn.qkv.bias"].chunk(3)
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            arrays[f"{attention}{name}/kernel"] = kernel.T.reshape(width, heads, -1)
            arrays[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}out/kernel"] = state[f"{block}attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}out/bias"] = state[f"{block}attn.proj.bias"]
        for number, layer in ((0, "fc1"), (1, "fc2")):
            arrays[f"{place}MlpBlock_3/Dense_{number}/kernel"] = state[f"{block}mlp.{layer}.weight"].T
            arrays[f"{place}MlpBlock_3/Dense_{number}/bias"] = state[f"{block}mlp.{layer}.bias"]
    return {name: value.contiguous().numpy() for name, value in arrays.items()}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("name", [VIT, SWIN])
@pytest.mark.parametrize("ending", ["safetensors", "pth", "model.pth", "moco.pth.tar"])
def test_every_kind_of_file_arrives(tmp_path, name, ending):
    state = original(name)
    file = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(state, file)
    elif ending == "pth":
        torch.save(state, file)
    elif ending == "model.pth":
        torch.save({"model": state, "epoch": 3}, file)
    else:
        torch.save({"state_dict": {f"module.base_encoder.{k}": v for k, v in state.items()}, "arch": "vit"}, file)
    network = network_of(name)
    record = load_into(network, options(file))
    own = network.backbone.state_dict()
    assert record.tensors == len(own)
    assert (record.backbone, record.source, record.sha256) == (name, f"file {file.name}", sha256_of(file))
    key = "blocks.3.mlp.fc1.weight" if name == VIT else "layers.2.blocks.1.mlp.fc1.weight"
    assert torch.equal(own[key], state[key])
    torch.testing.assert_close(own["patch_embed.proj.weight"], state["patch_embed.proj.weight"].sum(1, keepdim=True))


def test_swin_unets_decoder_starts_with_the_encoders_blocks(tmp_path):
    state = original(SWIN)
    torch.save(state, tmp_path / "weights.pth")
    network = network_of(SWIN)
    load_into(network, options(tmp_path / "weights.pth"))
    own = network.state_dict()
    for stage, name in ((2, "decoder.stages.0"), (0, "decoder.stages.2")):
        found = own[f"{name}.blocks.1.mlp.fc1.weight"]
        assert torch.equal(found, state[f"layers.{stage}.blocks.1.mlp.fc1.weight"])


def test_npz_files_of_vits_arrive(tmp_path):
    state = timm.create_model(VIT, pretrained=False, num_classes=0).state_dict()
    file = tmp_path / "weights.npz"
    np.savez(file, **npz_of(state))
    before = torch.random.get_rng_state()
    network = network_of(VIT, settings={}, channels=3)
    torch.random.set_rng_state(before)
    load_into(network, options(file))
    assert torch.equal(torch.random.get_rng_state(), before)
    own = network.backbone.state_dict()
    for key in ("patch_embed.proj.weight", "blocks.7.attn.qkv.weight", "blocks.11.mlp.fc2.bias", "norm.weight"):
        assert torch.equal(own[key], state[key])


def test_a_plan_is_checked_without_memory_for_the_network(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(original(VIT), file)
    with torch.device("meta"):
        network, scratch = network_of(VIT), network_of(VIT, tuning="scratch")
    check_plan(network, options(file))
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="damaged or incomplete"):
        check_plan(network, options(tmp_path / "empty.pth"))
    check_plan(network, options(tmp_path / "empty.pth", pretrained=False))
    check_plan(scratch, options(tmp_path / "empty.pth"))


class Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a weights file was run')",)


def save_pickle(file):
    torch.save({"state_dict": original(VIT), "args": Payload()}, file)


def save_bare_pickle(file):
    file.write_bytes(pickle.dumps(Payload()))


def save_object_array(file):
    np.savez(file, **{"Transformer/posembed_input/pos_embedding": np.array([Payload()], dtype=object)})


@pytest.mark.parametrize(
    ("ending", "save"), [("pth", save_pickle), ("pt", save_bare_pickle), ("npz", save_object_array)]
)
def test_code_in_a_file_is_not_run(tmp_path, ending, save):
    file = tmp_path / f"weights.{ending}"
    save(file)
    with pytest.raises(ConfigurationError, match="could run code.* it was not opened"):
        fitting_weights(network_of(VIT), options(file))


@pytest.mark.parametrize("ending", ["safetensors", "pth", "npz"])
@pytest.mark.parametrize("part", [0, 0.02, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path, ending, part):
    whole, file = tmp_path / f"whole.{ending}", tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(original(VIT), whole)
    elif ending == "pth":
        torch.save(original(VIT), whole)
    else:
        np.savez(whole, **{"Transformer/posembed_input/pos_embedding": np.zeros((1, 197, 192), np.float32)})
    content = whole.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ConfigurationError, match="damaged"):
        fitting_weights(network_of(VIT), options(file))


def test_files_of_other_networks_are_refused_with_the_share_of_matching_tensors(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(original(SWIN), file)
    with pytest.raises(ConfigurationError, match=r"does not fit vit_tiny.*: \d+ of 53 tensors match .*\(\d+ %\)"):
        fitting_weights(network_of(VIT), options(file))
    torch.save(original(VIT), file)
    with pytest.raises(ConfigurationError, match=r"does not fit swin_tiny.*: \d+ of \d+ tensors match"):
        fitting_weights(network_of(SWIN), options(file))
    wide = {**SMALL[VIT], "embed_dim": 48}
    with pytest.raises(ConfigurationError, match=r"0 of 53 tensors match by name and shape \(0 %\)"):
        fitting_weights(network_of(VIT, settings=wide), options(file))
    torch.save({"model": {"net.0.weight": torch.zeros(3)}}, file)
    with pytest.raises(ConfigurationError, match="0 of 53 tensors"):
        fitting_weights(network_of(VIT), options(file))
    torch.save([1, 2], file)
    with pytest.raises(ConfigurationError, match="holds no state dict but a list"):
        fitting_weights(network_of(VIT), options(file))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ConfigurationError, match="other.npz does not fit vit_tiny"):
        fitting_weights(network_of(VIT), options(tmp_path / "other.npz"))


def test_a_file_without_one_block_is_refused(tmp_path):
    state = original(VIT)
    file = tmp_path / "weights.safetensors"
    save_file({key: value for key, value in state.items() if not key.startswith("blocks.2.")}, file)
    with pytest.raises(ConfigurationError, match=r"41 of 53 tensors match .*not blocks.2.norm1.weight"):
        fitting_weights(network_of(VIT), options(file))


# weights that would give other features than their own network's


@pytest.mark.parametrize(
    ("further", "named"),
    [
        ({"init_values": 1e-5}, "blocks.0.ls1.gamma"),  # layer scale, as DINOv2's and DeiT III's
        ({"qk_norm": True}, "blocks.0.attn.k_norm.bias"),
        ({"scale_attn_norm": True}, "blocks.0.attn.norm.bias"),
    ],
)
def test_parts_that_the_backbone_lacks_are_named(tmp_path, further, named):
    file = tmp_path / "weights.pth"
    torch.save(original(VIT, **further), file)
    with pytest.raises(ConfigurationError, match=f"computes with .* does not have, for example .*{named}"):
        fitting_weights(network_of(VIT), options(file))
    fitting_weights(network_of(VIT, settings={**SMALL[VIT], **further}), options(file))


def test_what_classification_and_pretraining_need_is_no_such_part(tmp_path):
    state = original(VIT, reg_tokens=4, class_token=True)
    state |= {"mask_token": torch.zeros(1, 24), "head_dist.weight": torch.zeros(5, 24)}
    state |= {"fc_norm.weight": torch.ones(24), "blocks.0.attn.relative_position_index": torch.zeros(4)}
    state |= {key.replace("blocks.3", "blocks.4"): value for key, value in state.items() if key.startswith("blocks.3")}
    torch.save(state, tmp_path / "weights.pth")
    assert fitting_weights(network_of(VIT), options(tmp_path / "weights.pth"))[1].tensors == 53


@pytest.mark.parametrize("patch", [14, 8])
def test_kernels_of_another_patch_size_are_refused(tmp_path, patch):
    torch.save(original(VIT, patch_size=patch), tmp_path / "weights.pth")
    with pytest.raises(ConfigurationError, match="52 of 53 tensors match .*not patch_embed.proj.weight"):
        fitting_weights(network_of(VIT), options(tmp_path / "weights.pth"))


@pytest.mark.parametrize("class_token", [True, False])
def test_positions_that_are_no_square_are_refused(tmp_path, class_token):
    """Of 12 x 20 tokens; 225 of them with a prefix of 15 or 16 would be a square, too."""
    torch.save(original(VIT, img_size=(192, 320), class_token=class_token, global_pool="avg"), tmp_path / "w.pth")
    with pytest.raises(ConfigurationError, match=f"w.pth does not fit .*embeddings of {240 + class_token} tokens"):
        fitting_weights(network_of(VIT), options(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "tokens",
    [
        {"class_token": False, "global_pool": "avg"},
        {"class_token": True},
        {"reg_tokens": 4},
        {"reg_tokens": 4, "no_embed_class": True},
        {"reg_tokens": 5, "class_token": False, "global_pool": "avg"},
    ],
)
def test_positions_of_the_grid_are_found_behind_those_of_other_tokens(tmp_path, tokens):
    torch.manual_seed(3)
    source = timm.create_model(VIT, pretrained=False, num_classes=5, img_size=96, **SMALL[VIT], **tokens)
    own = source.pos_embed.shape[1] - 36
    with torch.no_grad():
        source.pos_embed[:, own:] = torch.arange(36.0)[:, None]
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    network = MedTuningNet(1, 2, patch_size=[4, 96, 96], backbone=VIT, alpha=4, backbone_settings=SMALL[VIT])
    load_into(network, options(tmp_path / "weights.pth"))
    torch.testing.assert_close(network.backbone.pos_embed[0, :, 0], torch.arange(36.0))


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "encoder.", "_orig_mod.module.", "net.vit."])
@pytest.mark.parametrize("name", [VIT, SWIN])
def test_what_stands_before_all_names_is_left_out_and_recorded(tmp_path, prefix, name):
    state = original(name)
    stored = {f"{prefix}{key}": value for key, value in state.items()} | {"projector.weight": torch.zeros(2)}
    torch.save({"state_dict": stored, "epoch": 1}, tmp_path / "last.ckpt")
    network = network_of(name)
    record = load_into(network, options(tmp_path / "last.ckpt"))
    assert record.prefix == prefix and record.as_json()["prefix"] == prefix
    key = "blocks.3.mlp.fc1.weight" if name == VIT else "layers.2.blocks.1.mlp.fc1.weight"
    assert torch.equal(network.backbone.state_dict()[key], state[key])


def test_the_teacher_of_dino_is_taken(tmp_path):
    state = original(VIT)
    student = {f"backbone.{key}": torch.zeros_like(value) for key, value in state.items()}
    teacher = {f"backbone.{key}": value for key, value in state.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 1}, tmp_path / "weights.pth")
    network = network_of(VIT)
    load_into(network, options(tmp_path / "weights.pth"))
    assert torch.equal(network.backbone.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])


def test_several_encoders_in_one_file_are_refused_by_name(tmp_path):
    state = original(VIT)
    torch.save({f"{side}.{key}": value for side in ("ct", "mr") for key, value in state.items()}, tmp_path / "w.pth")
    with pytest.raises(ConfigurationError, match="several encoders, ct., mr.: keep one"):
        fitting_weights(network_of(VIT), options(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", [VIT, SWIN])
def test_weights_of_one_channel_see_the_mean_of_several(tmp_path, name):
    state = original(name, in_chans=1)
    torch.save(state, tmp_path / "weights.pth")
    network = network_of(name, channels=4)
    load_into(network, options(tmp_path / "weights.pth"))
    kernels = network.backbone.patch_embed.proj.weight
    torch.testing.assert_close(kernels, state["patch_embed.proj.weight"].expand(-1, 4, -1, -1) / 4)


def test_values_that_are_not_finite_are_refused(tmp_path):
    state = original(VIT)
    state["blocks.0.mlp.fc1.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ConfigurationError, match="not finite"):
        fitting_weights(network_of(VIT), options(tmp_path / "weights.pth"))


def test_the_sha256_of_the_plans_must_be_that_of_the_file(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(original(VIT), file)
    digest = sha256_of(file)
    fitting_weights(network_of(VIT), options(file, weights_sha256=digest))
    with pytest.raises(ConfigurationError, match=f"has SHA256 {digest}, but the plans say weights_sha256 abc"):
        fitting_weights(network_of(VIT), options(file, weights_sha256="abc"))


def test_offline_without_a_file_one_sentence_says_what_to_do():
    assert not is_at_hand(VIT, MedTuningOptions())
    with pytest.raises(ConfigurationError) as caught:
        find_weights(VIT, MedTuningOptions())
    text = str(caught.value)
    for part in (VIT, "offline", "model.safetensors of timm/", "--set weights_file=FILE", "--set pretrained=false"):
        assert part in text
    assert "\n" not in text and text.count(". ") == 0 and text.endswith(".")


def test_the_hubs_cache_is_used_offline(tmp_path):
    commit = "0" * 40
    folder = tmp_path / "hub" / "models--timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    save_file(original(VIT), folder / "snapshots" / commit / "model.safetensors")
    assert is_at_hand(VIT, MedTuningOptions())
    record = load_into(network_of(VIT), MedTuningOptions())
    assert record.source == "hub timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_missing_files_and_names_without_weights_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"weights_file .*nowhere.pth does not exist"):
        find_weights(VIT, options(tmp_path / "nowhere.pth"))
    with pytest.raises(ConfigurationError, match=r"timm has no weights for .*weights_file=FILE.*pretrained=false"):
        find_weights("vit_base_patch16_plus_240", MedTuningOptions())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights_file": "a.onnx"}, "must end with one of .safetensors, .pth"),
        ({"optimizer": "sgd"}, "must be adamw or adam, found 'sgd'"),
        ({"num_epochs": 5, "warmup_epochs": 6}, "at most num_epochs"),
        ({"num_epochs": 50, "cosine_epochs": 9}, "must cover the 45 epochs"),
        ({"pretrained": "no"}, "'pretrained' must be bool"),
        ({"weights": "a.pth"}, "Unknown training option .*weights. Known: "),
    ],
)
def test_bad_options_are_refused(values, message):
    with pytest.raises(ConfigurationError, match=message):
        MedTuningOptions.from_plans(values)


def test_rates_are_the_published_ones():
    """lr(e): 25 epochs of base * (1 - cos(pi/2 (e + 1) / 25)), then base * (1 + cos(pi (e - 25) / 250)) / 2."""
    paper = MedTuningOptions(num_epochs=250, warmup_epochs=25, cosine_epochs=250, initial_lr=2e-3)
    assert paper.rate(24) == pytest.approx(2e-3)
    assert paper.rate(0) == pytest.approx(2e-3 * (1 - np.cos(np.pi / 50)))
    assert paper.rate(249) / 2e-3 == pytest.approx(0.026, abs=1e-3)  # it never comes down to zero
    ours = MedTuningOptions()
    assert ours.warmup == 25 and ours.rate(25) == pytest.approx(5e-4) and 0 < ours.rate(249) < 1e-7
    assert MedTuningOptions(num_epochs=1).rate(0) == pytest.approx(5e-4)


def test_zip_files_that_are_no_checkpoints_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        archive.writestr("a.txt", "b")
    with pytest.raises(ConfigurationError, match="damaged"):
        fitting_weights(network_of(VIT), options(tmp_path / "weights.pth"))
