"""Each preset trains, saves, reloads and predicts on a phantom; and sets what the papers' row says."""

import numpy as np
import pytest
import torch
from end_to_end.stock import Workspace, handmade_plans

from nnunet_ext.cli.plan import chosen_method_and_presets
from nnunet_ext.demo.phantoms import LABELS, generate_case
from nnunet_ext.e2enet.masked import masked_modules
from nnunet_ext.e2enet.presets import PRESETS
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import get_method
from nnunet_ext.planning.derive import derive_plans

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
PATCH = (8, 16, 16)
DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 5, "file_ending": ".nii.gz"}


def plans_of(preset, **settings):
    """Plans as `nnunet_ext plan --preset` writes them, of the paper's width but few levels."""
    method = get_method("e2enet")
    architecture = {
        "network_class_name": method.network_path,
        "arch_kwargs": {"strides": STRIDES, "base_features": 48, "max_features": 60},
        "_kw_requires_import": [],
    }
    source = handmade_plans(architecture, patch_size=PATCH, strides=STRIDES)
    source.pop("continue_training")
    settings = {**PRESETS[preset], **settings}
    return derive_plans(source, DATASET_JSON, method, name="PresetPlans", settings=settings)


def build(plans):
    from nnunet_ext.trainers.e2enet import E2ENetTrainer

    trainer = E2ENetTrainer({**plans, "continue_training": False}, "3d_fullres", 0, DATASET_JSON, torch.device("cpu"))
    trainer.initialize()
    return trainer


def batch(trainer, number):
    image, labels, _ = generate_case(0, number, PATCH)
    data = torch.from_numpy(image.astype(np.float32) / 300)[None, None]
    target = torch.from_numpy(labels.astype(np.float32))[None, None]
    sizes = [
        [round(p * s) for p, s in zip(PATCH, scale, strict=True)] for scale in trainer._get_deep_supervision_scales()
    ]
    return {"data": data, "target": [torch.nn.functional.interpolate(target, size=size) for size in sizes]}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_trains_saves_reloads_and_predicts(preset, tmp_path, monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    workspace = Workspace(tmp_path)
    for name, value in workspace.folders.items():
        monkeypatch.setenv(name, value)
    data = workspace.preprocessed / workspace.dataset / "nnUNetPlans_3d_fullres"
    data.mkdir(parents=True)
    (data / "case_000.b2nd").touch()
    plans = plans_of(preset, num_epochs=1, num_iterations_per_epoch=3)

    trainer = build(plans)
    losses = [float(trainer.train_step(batch(trainer, number))["loss"]) for number in range(3)]
    assert np.isfinite(losses).all()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    reloaded = build(plans)
    reloaded.load_checkpoint(str(tmp_path / "checkpoint.pth"))

    image = torch.from_numpy(generate_case(0, 9, (10, 20, 20))[0].astype(np.float32))[None] / 300
    logits = []
    for source in (trainer, reloaded):
        source.set_deep_supervision_enabled(False)
        predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
        predictor.manual_initialization(
            source.network,
            source.plans_manager,
            source.configuration_manager,
            None,
            DATASET_JSON,
            "E2ENetTrainer",
            None,
        )
        logits.append(predictor.predict_sliding_window_return_logits(image))
    assert logits[0].shape == (len(LABELS), 10, 20, 20)
    assert torch.equal(*logits)


def test_presets_do_what_they_say():
    def network(preset):
        arch_kwargs = plans_of(preset)["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        return get_method("e2enet").network_class()(1, 5, **arch_kwargs)

    def density(preset, name):
        mask = dict(masked_modules(network(preset)))[name].kernel_mask
        return float(mask.float().mean())

    first, up = "fusion.0.0.convs.0.conv", "fusion.0.0.up"
    assert density("s90", first) == pytest.approx(0.1, abs=1e-3)
    assert density("amos-s70", first) == pytest.approx(0.2, abs=1e-3)
    assert density("amos-s70", up) == pytest.approx(0.3, abs=1e-3)
    for preset, fan_in in (("s80_blocks", 16), ("s90_blocks", 10)):
        blocks = network(preset)
        assert blocks.connection_block == 16
        assert blocks.fusion[0][0].convs[0].conv.values.shape == (3, 16, fan_in, 1, 3, 3)
        assert blocks.fusion[0][0].up.values.shape[:2] == (3, 16)
    assert list(masked_modules(network("dense"))) == []
    shifts = {preset: network(preset).fusion[0][0].convs[0].shifts for preset in ("no-shift", "shift-2", "3x3x3")}
    assert shifts["no-shift"] == shifts["3x3x3"] == []
    assert [shift for _, shift in shifts["shift-2"]] == [-2, -1, 0, 1, 2]
    assert network("3x1x3").backbone[0][0].conv.kernel_size == (3, 1, 3)
    assert network("plus").features_per_stage == [58, 60, 60]


def test_presets_combine_in_their_order():
    method, settings = chosen_method_and_presets(None, ["e2enet/amos-s70", "e2enet/no-shift", "e2enet/s90"])
    assert method.name == "e2enet"
    assert settings == {"sparsity": 0.9, "density_overrides": {"48": 0.2}, "shift_size": 0}


@pytest.mark.parametrize(
    ("method", "presets", "message"),
    [
        (None, [], "Give one --method"),
        (None, ["e2enet/s95"], "Unknown preset of E2ENet: s95. Known: "),
        (None, ["unet/s90"], "Unknown method 'unet'"),
        ("e2enet", ["dints/x"], "found dints, e2enet"),
    ],
)
def test_bad_presets_are_refused(method, presets, message):
    with pytest.raises(ConfigurationError, match=message):
        chosen_method_and_presets(method, presets)
