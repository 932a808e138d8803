"""Every parameter count of the paper's tables, exactly, for cubes of 128 voxels; and our own decoders' counts."""

import pytest
import torch
from costs.layers import layer_flops

from nnunet_ext.costs.complexity import count_flops, count_parameters
from nnunet_ext.costs.planned import planned_report
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_tuning.adapters import MedAdapter
from nnunet_ext.med_tuning.network import MedTuningNet, arch_kwargs_at
from nnunet_ext.methods import METHODS

METHOD = METHODS["med_tuning"]
VIT, SWIN = "vit_base_patch16_224.orig_in21k", "swin_tiny_patch4_window7_224"
CLIP = "vit_base_patch16_clip_quickgelu_224.openai"


def network(backbone=VIT, classes=4, channels=4, patch_size=(128, 128, 128), **settings):
    with torch.device("meta"):
        return MedTuningNet(channels, classes, patch_size=patch_size, backbone=backbone, **settings)


def counts(*args, **settings):
    """Parameters that are inserted, and that are trained."""
    built = network(*args, **settings)
    return count_parameters(built.tuning)["total"], count_parameters(built)["trainable"]


@pytest.mark.parametrize(
    ("tuning", "vit", "swin"),
    [
        ("full", (0, 100_849_156), (0, 27_154_116)),
        ("scratch", (0, 100_849_156), (0, 27_154_116)),
        ("head", (0, 15_007_492), (0, 6_751_530)),
        ("vpt_shallow", (7_680, 15_015_172), (960, 6_752_490)),
        ("vpt_deep", (92_160, 15_099_652), (28_800, 6_780_330)),
        ("adapter", (3_559_680, 18_567_172), (789_840, 7_541_370)),
        ("adaptformer", (1_189_632, 16_197_124), (372_032, 7_123_562)),
        ("pro_tuning", (4_804_608, 19_812_100), (1_607_040, 8_358_570)),
        ("st_adapter", (7_110_144, 22_117_636), (1_576_800, 8_328_330)),
        ("med_adapter", (2_845_696, 17_853_188), (737_568, 7_489_098)),
    ],
)
def test_tables_1_and_2(tuning, vit, swin):
    assert counts(VIT, tuning=tuning) == vit
    assert counts(SWIN, tuning=tuning) == swin


def test_lora_is_our_own_choice_queries_and_values():
    for rank in (4, 8):
        assert counts(VIT, tuning="lora", rank=rank)[0] == 12 * 4 * 768 * rank
        assert counts(SWIN, tuning="lora", rank=rank)[0] == 2 * 4 * (96 + 192 + 384 + 768) * rank


def test_the_parts_of_vit_and_upernet():
    built = network()
    parts = {name: count_parameters(part)["total"] for name, part in built.backbone.named_children()}
    assert parts["blocks"] == 85_054_464
    assert parts["patch_embed"] == 787_200
    assert parts["norm"] == 1_536
    assert built.backbone.pos_embed.numel() == 49_152
    first = count_parameters(built.decoder.first)["total"]
    assert first == 197_376
    assert count_parameters(built.decoder)["total"] - first == 14_759_428
    assert count_parameters(network(classes=5).decoder)["total"] - first == 14_759_428 + 2_305
    assert count_parameters(built.decoder.smooth)["total"] * 2 == 1_180_160  # what two more of them would add


def test_clip_has_a_norm_before_the_blocks_and_no_patch_bias():
    body = count_parameters(network(CLIP).backbone)["total"] - count_parameters(network().backbone)["total"]
    assert body == 2 * 768 - 768
    # 85,799,424 against 85,798,656 with class token and 197 positions, as timm counts them for 3 channels of 224 px
    native = count_parameters(network(CLIP, channels=3, patch_size=(224, 224)).backbone)["total"]
    assert native + 2 * 768 == 85_799_424


@pytest.mark.parametrize(("alpha", "expected"), [(2, 10_871_808), (4, 4_557_312), (6, 2_845_696), (8, 2_063_616)])
def test_alpha_on_a_vit(alpha, expected):
    assert counts(VIT, alpha=alpha)[0] == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"alpha": 4, "branches": ["conv3"], "mix": False, "interaction": "none"}, 798_480),
        ({"alpha": 4, "branches": ["conv3", "conv5"], "mix": False, "interaction": "none"}, 822_960),
        ({"alpha": 4, "mix": False, "interaction": "none"}, 825_008),
        ({"alpha": 4, "interaction": "none"}, 923_648),
        ({"alpha": 4, "interaction": "add"}, 1_144_328),
        ({"alpha": 4, "interaction": "max"}, 1_144_328),
        ({"alpha": 4, "interaction": "concat"}, 1_242_608),
        ({"alpha": 2}, 3_312_608),
        ({"alpha": 8}, 519_728),
        ({"alpha": 6, "branches": ["conv3", "conv5", "conv9"]}, 1_085_920),
        ({"alpha": 6, "branches": ["conv3", "conv5", "conv11"]}, 1_374_880),
    ],
)
def test_tables_3_to_6(settings, expected):
    assert counts(SWIN, **settings) == (expected, 6_751_530 + expected)


def test_table_8s_upernet_row_has_three_classes_and_alpha_4():
    assert counts(VIT, classes=3, tuning="head")[1] == 15_005_187
    assert counts(VIT, classes=3, alpha=4)[1] == 19_562_499
    assert counts(SWIN, classes=3, tuning="head")[1] == 6_751_434


@pytest.mark.parametrize("slices", [1, 20, 128])
def test_the_slices_of_the_patch_set_the_size_of_the_frequency_branches(slices):
    assert counts(VIT, patch_size=(slices, 128, 128))[0] == 2_842_624 + 24 * slices
    assert counts(SWIN, patch_size=(slices, 128, 128))[0] == 735_520 + 16 * slices


@pytest.mark.parametrize(
    ("width", "alpha", "slices"), [(96, 6, 128), (768, 4, 20), (100, 3, 7), (50, 7.5, 1), (9, 9, 4)]
)
def test_the_closed_forms_of_one_adapter(width, alpha, slices):
    hidden = int(width / alpha)
    base = 2 * width * hidden + width + hidden**2 + 52 * hidden + 2 * slices

    def count(**settings):
        return count_parameters(MedAdapter(width, hidden, slices, **settings))["total"]

    assert count() == base
    assert count(interaction="concat", previous=hidden) == base + 3 * hidden**2 + 2 * hidden
    if hidden % 2 == 0:
        extra = 6.5 * hidden**2 + 2 * hidden
        assert count(interaction="concat", previous=hidden // 2, stride=2) == base + extra


@pytest.mark.parametrize(
    ("decoder", "vit", "swin"),
    [
        ("unet", 1_144_772, 1_037_252),
        ("setr_naive", 198_148, None),
        ("setr_pup", 553_732, None),
        ("setr_mla", 2_562_052, None),
    ],
)
def test_our_own_decoders_are_not_the_papers_and_stay_as_they_are(decoder, vit, swin):
    assert count_parameters(network(VIT, decoder=decoder, tuning="head").decoder)["total"] == vit
    if swin is None:
        with pytest.raises(
            ConfigurationError, match=f"'{decoder}' cannot follow a Swin. Those that can: upernet, swin"
        ):
            network(SWIN, decoder=decoder)
    else:
        assert count_parameters(network(SWIN, decoder=decoder, tuning="head").decoder)["total"] == swin


@pytest.mark.parametrize(("backbone", "tflops"), [(VIT, 1.73), (SWIN, 0.51)])
def test_a_cube_costs_what_was_measured(backbone, tflops):
    report = planned_report(METHOD, 4, 4, [128] * 3, {"backbone": backbone})
    assert report["true"]["gflops"] / 1000 == pytest.approx(tflops, abs=0.005)


@pytest.mark.parametrize("patch", [(8, 64, 96), (3, 32, 32)])
def test_a_vit_costs_its_layers_its_attention_and_the_filters_along_the_slices(patch):
    built = network(patch_size=patch)
    slices, tokens = patch[0], patch[1] * patch[2] // 256
    attention = 12 * slices * 2 * tokens * tokens * 768
    hidden = 128
    # Two D x D matrices, for real and imaginary part, on all tokens; the product [2D, 2D] [2D, D] that makes them, and
    # that of the bias, [1, D] [D, 2D].
    filters = 12 * (2 * slices * slices * tokens * hidden + 2 * slices * 2 * slices * slices + 2 * slices * slices)
    expected = layer_flops(built, 4, patch) + 2 * (attention + filters)
    assert count_flops(built, 4, patch) == expected


def test_the_report_names_parameters_by_part_for_the_patch_that_is_asked():
    kwargs = arch_kwargs_at([[1, 1, 1], [1, 2, 2]], patch_size=[8, 128, 128])
    report = planned_report(METHOD, 4, 4, [128] * 3, kwargs)
    assert report["patch_size"] == [128] * 3
    assert report["parameters"] == {"total": 103_694_852, "trainable": 17_853_188, "active": 103_694_852}
    assert report["parts"] == {
        "backbone": {"total": 85_892_352, "trainable": 50_688},
        "adapters": {"total": 2_845_696, "trainable": 2_845_696},
        "decoder": {"total": 14_956_804, "trainable": 14_956_804},
    }
    with pytest.raises(ConfigurationError, match="colour"):
        planned_report(METHOD, 4, 4, [128] * 3, {**kwargs, "colour": "red"})
