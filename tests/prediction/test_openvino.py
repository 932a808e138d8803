"""Networks in OpenVINO: torch's logits, refusals by name, and a cache that cannot give anything else."""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deployment.models import LABELS, make_images, make_model
from dints.small import CUBES, random_code
from end_to_end.stock import stock_architecture
from med_danet.small import TWO, arch_kwargs
from med_tuning.tiny import tiny
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_ext.deployment.verify import find_cases, loaded, network_and_patch
from nnunet_ext.dints.network import DiNTSNet
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_danet.network import MedDANet
from nnunet_ext.prediction import openvino as module
from nnunet_ext.prediction.graph import agreement
from nnunet_ext.prediction.openvino import OpenVINONetwork, cache_folder, to_openvino

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]

# looked for without an import, which would be with telemetry
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra openvino")


def unet(kind="PlainConvUNet", strides=STRIDES, deep_supervision=False):
    made = stock_architecture(strides)
    kwargs = made["arch_kwargs"]
    if kind == "ResidualEncoderUNet":
        kwargs["n_blocks_per_stage"] = kwargs.pop("n_conv_per_stage")
    name = made["network_class_name"].replace("PlainConvUNet", kind)
    return get_network_from_plans(name, kwargs, made["_kw_requires_import"], 1, 3, deep_supervision=deep_supervision)


NETWORKS = {
    "PlainConvUNet 2d": (lambda: unet(strides=[stride[1:] for stride in STRIDES]), (1, 32, 24)),
    "PlainConvUNet 3d": (unet, (1, 8, 16, 16)),
    "ResidualEncoderUNet": (lambda: unet("ResidualEncoderUNet"), (1, 8, 16, 16)),
    "E2ENet": (lambda: E2ENet(1, 3, strides=STRIDES, features_per_stage=[4, 5, 6], sparsity=0.5), (1, 7, 15, 16)),
    "DiNTS": (
        lambda: DiNTSNet(1, 3, strides=CUBES, base_features=2, **random_code(layers=3).settings()),
        (1, 16, 30, 32),
    ),
    "Med-Tuning, ViT": (lambda: tiny("vit"), (2, 3, 40, 56)),
    "Med-Tuning, Swin": (lambda: tiny("swin", frequency="fft"), (2, 3, 40, 56)),
}


def build(name, seed=0):
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    return make().eval(), shape


def image(shape, batch=1, seed=0):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


@needs_openvino
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_torchs(name):
    network, shape = build(name)
    with torch.inference_mode():  # as nnU-Net's predictor calls it
        converted = to_openvino(network, image(shape))
    for seed in (0, 1):
        found = agreement(network, converted, image(shape, seed=seed))
        assert found["relative to range"] < 1e-3  # DiNTS rounds most: torch is as far from float64
        assert found["share of equal labels"] > 0.999
    logits = converted(image(shape))
    assert logits.dtype == torch.float32 and logits.shape == (1, 3, *shape[1:])


@needs_openvino
def test_weights_that_e2enet_makes_of_its_slots_are_constants_of_the_converted_network():
    network, shape = build("E2ENet")
    compiled = to_openvino(network, image(shape))._compiled_for(image(shape))
    kinds = {op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops()}
    assert "Convolution" in kinds and not {kind for kind in kinds if "Scatter" in kind}


@needs_openvino
def test_batches_of_any_size_are_those_of_single_images_and_few_are_kept():
    network, shape = build("PlainConvUNet 3d")
    converted = to_openvino(network, image(shape))
    for batch in (1, 2, 3):
        x = image(shape, batch)
        assert agreement(network, converted, x)["relative to range"] < 1e-5
        with torch.no_grad():
            torch.testing.assert_close(converted(x)[-1], network(x[-1:])[0], rtol=1e-4, atol=1e-5)
    assert [key[1][0] for key in converted._compiled] == [2, 3]


@needs_openvino
def test_what_is_returned_belongs_to_the_caller():
    """nnU-Net's predictor adds the mirrored passes to it in place."""
    network, shape = build("PlainConvUNet 3d")
    converted = to_openvino(network, image(shape))
    first = converted(image(shape))
    before = first.clone()
    first += 1000
    second = converted(image(shape))
    assert torch.equal(second, before)
    kept = second.clone()
    converted(image(shape, seed=1))
    assert torch.equal(second, kept)


@needs_openvino
def test_it_follows_the_weights_of_the_next_fold():
    network, shape = build("PlainConvUNet 3d")
    other, _ = build("PlainConvUNet 3d", seed=1)
    converted = to_openvino(network, image(shape))
    converted.load_state_dict(other.state_dict())
    assert agreement(other, converted, image(shape))["relative to range"] < 1e-5
    count = len(converted._compiled)
    converted.load_state_dict(other.state_dict())  # as nnU-Net does for every image
    converted(image(shape))
    assert len(converted._compiled) == count
    with pytest.raises(RuntimeError, match="Missing key"):
        converted.load_state_dict({})


@needs_openvino
def test_float32_is_asked_for_and_threads_are_torchs():
    network, shape = build("PlainConvUNet 3d")
    converted = to_openvino(network, image(shape))
    (compiled,) = converted._compiled.values()
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()
    half = to_openvino(network, image(shape), precision="bf16")
    (compiled,) = half._compiled.values()
    if "BF16" in half._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "bf16"
        assert agreement(network, half, image(shape))["relative to range"] > 1e-5


# refusals


class ReadsTheImage(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.convolution(x) if float(x.mean()) > 0 else x.expand(-1, 2, -1, -1)


class Unknown(nn.Module):
    def forward(self, x):
        return torch.special.i1(x)


@needs_openvino
def test_what_depends_on_the_image_is_refused_by_name(capfd):
    network = MedDANet(1, 3, **arch_kwargs([[1, 2, 2]], TWO)).eval()
    with pytest.raises(ConfigurationError) as caught:
        to_openvino(network, image((1, 3, 32, 32)))
    assert str(caught.value) == (
        "MedDANet cannot be converted to OpenVINO: which of its networks a slice takes depends on the slice. "
        "Predict with --backend torch."
    )
    with pytest.raises(ConfigurationError, match="ReadsTheImage cannot be converted to OpenVINO: torch.export finds"):
        to_openvino(ReadsTheImage().eval(), image((1, 8, 8)))
    with pytest.raises(ConfigurationError, match="Unknown cannot be converted to OpenVINO: it does not know an oper"):
        to_openvino(Unknown().eval(), image((1, 8, 8)))
    with pytest.raises(ConfigurationError, match="PlainConvUNet returns 2 tensors.*switch its deep supervision off"):
        to_openvino(unet(deep_supervision=True).eval(), image((1, 8, 16, 16)))
    assert capfd.readouterr().err == ""


@needs_openvino
def test_other_logits_than_torchs_are_refused_with_the_figure(monkeypatch):
    network, shape = build("PlainConvUNet 3d")
    other, _ = build("PlainConvUNet 3d", seed=1)
    convert = OpenVINONetwork._converted

    def of_another(self, exported, x):
        return convert(self, torch.export.export(other, (x,)), x)

    monkeypatch.setattr(OpenVINONetwork, "_converted", of_another)
    with pytest.raises(ConfigurationError, match=r"PlainConvUNet computes other logits .* differ by 0\.\d+ of their"):
        to_openvino(network, image(shape))


@needs_openvino
def test_training_other_devices_and_precisions_are_refused():
    network, shape = build("PlainConvUNet 3d")
    converted = to_openvino(network, image(shape))
    with pytest.raises(ConfigurationError, match="Use -device cpu"):
        converted(image(shape).to("meta"))
    with pytest.raises(ConfigurationError, match="only predicts"):
        converted.train()(image(shape))
    with pytest.raises(ConfigurationError, match="one of f32, bf16, found 'int8'"):
        OpenVINONetwork(network, precision="int8")


def test_without_openvino_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    network, shape = build("PlainConvUNet 3d")
    with pytest.raises(ConfigurationError, match=r'pip install "nnunet-ext\[openvino\]"'):
        to_openvino(network, image(shape))


@needs_openvino
def test_nothing_is_reported_to_openvinos_makers():
    network, shape = build("PlainConvUNet 3d")
    to_openvino(network, image(shape))
    assert sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__ == "openvino.tools.ovc.telemetry_stub"
    assert "openvino_telemetry" not in sys.modules


# the cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_said", set())
    return cache_folder()


def forbid_conversion(monkeypatch):
    def fail(*_):
        raise AssertionError("converted again")

    monkeypatch.setattr(OpenVINONetwork, "_converted", fail)


@needs_openvino
def test_a_second_network_of_the_same_weights_comes_from_the_cache(cache, monkeypatch):
    network, shape = build("E2ENet")
    expected = to_openvino(network, image(shape), cache)(image(shape))
    assert [path.stat().st_mode & 0o777 for path in cache.iterdir()] == [0o600]
    forbid_conversion(monkeypatch)
    again, _ = build("E2ENet")
    assert torch.equal(to_openvino(again, image(shape), cache)(image(shape)), expected)


@needs_openvino
def test_whatever_changes_the_logits_is_another_entry(cache, monkeypatch):
    network, shape = build("E2ENet")
    to_openvino(network, image(shape), cache)
    forbid_conversion(monkeypatch)
    with torch.no_grad():
        network.heads.seg_layers[0].weight[0, 0] += 1e-6
    others = {
        "weights": (network, image(shape), "f32"),
        "operations": (build("E2ENet")[0], image(shape), "f32"),
        "size": (build("E2ENet")[0], image((1, 8, 16, 16)), "f32"),
        "precision": (build("E2ENet")[0], image(shape), "bf16"),
    }
    for block in others["operations"][0].modules():
        if isinstance(block, nn.InstanceNorm3d):
            block.eps = 1e-3  # in no state dict
    for name, (other, x, precision) in others.items():
        with pytest.raises(AssertionError, match="converted again"):
            pytest.fail(f"{name}: taken from the cache: {to_openvino(other, x, cache, precision)}")


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1000],
    "a bit": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "a stranger's": lambda content: b"PK\3\4" + os.urandom(4000),
    "of a release that OpenVINO refuses": lambda content: (
        module._FILE + hashlib.sha256(b"no network").digest() + b"no network"
    ),
}


@needs_openvino
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_converted_anew_and_replaced(cache, damage, monkeypatch):
    network, shape = build("PlainConvUNet 3d")
    expected = to_openvino(network, image(shape), cache)(image(shape))
    (path,) = cache.iterdir()
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert torch.equal(to_openvino(network, image(shape), cache)(image(shape)), expected)
    forbid_conversion(monkeypatch)  # the file is good again
    assert torch.equal(to_openvino(network, image(shape), cache)(image(shape)), expected)


@needs_openvino
@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_a_file_that_others_may_write_is_not_used(cache, monkeypatch):
    network, shape = build("PlainConvUNet 3d")
    to_openvino(network, image(shape), cache)
    (path,) = cache.iterdir()
    path.chmod(0o622)
    forbid_conversion(monkeypatch)
    with pytest.raises(AssertionError, match="converted again"):
        to_openvino(network, image(shape), cache)


@needs_openvino
def test_a_cache_that_cannot_be_used_costs_one_line(cache, tmp_path, monkeypatch, capsys):
    network, shape = build("PlainConvUNet 3d")
    (tmp_path / "file").write_text("")
    for _ in range(2):
        converted = to_openvino(network, image(shape), tmp_path / "file" / "openvino")
        assert agreement(network, converted, image(shape))["relative to range"] < 1e-5
    out = capsys.readouterr().out
    assert out.count("converted networks are not kept") == 1 and str(tmp_path / "file") in out
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where there is no home
    assert cache_folder() is None
    assert "no home for a cache" in capsys.readouterr().out


@needs_openvino
def test_a_full_disk_keeps_no_half_file(cache, monkeypatch, capsys):
    network, shape = build("PlainConvUNet 3d")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    to_openvino(network, image(shape), cache)(image(shape))
    assert "cannot be used (No space left on device)" in capsys.readouterr().out
    assert list(cache.iterdir()) == []


IN_A_PROCESS = """
import sys, torch
sys.path.insert(0, {tests!r})
from prediction.test_openvino import *
torch.set_num_threads(1)
network, shape = build("PlainConvUNet 3d")
torch.save(to_openvino(network, image(shape), cache_folder())(image(shape)), {result!r})
"""


@pytest.mark.slow
@needs_openvino
def test_two_processes_at_once_share_the_cache(cache, tmp_path, monkeypatch):
    processes = []
    for name in ("a", "b"):
        code = IN_A_PROCESS.format(tests=str(Path(__file__).parents[1]), result=str(tmp_path / name))
        processes.append(subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    a, b = (torch.load(tmp_path / name) for name in "ab")
    assert torch.equal(a, b)
    assert len(list(cache.iterdir())) == 1
    forbid_conversion(monkeypatch)  # a third finds what they left
    network, shape = build("PlainConvUNet 3d")
    assert torch.equal(to_openvino(network, image(shape), cache)(image(shape)), a)


# in nnU-Net's predictor


@needs_openvino
def test_nnunets_predictor_makes_the_same_label_maps_with_all_folds(cache, tmp_path):
    """It loads each fold's weights again for every image, in inference mode."""
    model = make_model(tmp_path / "made", "nnUNetTrainer")
    cases = find_cases(make_images(tmp_path / "images", cases=2), LABELS)
    predictor = loaded(model, ["0", "1"], "checkpoint_final.pth")
    expected = predictor.predict_from_files_sequential(cases, None)
    _, x = network_and_patch(predictor)
    predictor.network = to_openvino(predictor.network, x, cache)
    found = predictor.predict_from_files_sequential(cases, None)
    for one, two in zip(expected, found, strict=True):
        assert np.mean(one == two) > 0.999 and len(np.unique(one)) > 1
    assert len(list(cache.iterdir())) == 2  # one a fold
