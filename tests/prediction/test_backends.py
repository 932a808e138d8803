"""What computes the network: torch, E2ENet's sparse engine, OpenVINO."""

import numpy as np
import pytest
import SimpleITK as sitk
from med_danet.small import TWO, arch_kwargs
from prediction.models import STRIDES, dataset_json, plans_of, write_images, write_model
from prediction.test_predict import assert_same, label_maps, run

from nnunet_ext.e2enet.packed import dispatch
from nnunet_ext.prediction.backends import SWITCH

E2ENET = {
    "network_class_name": "nnunet_ext.e2enet.network.E2ENet",
    "arch_kwargs": {"strides": [list(stride) for stride in STRIDES], "features_per_stage": [4, 5, 6]},
    "_kw_requires_import": [],
}
MED_DANET = {
    "network_class_name": "nnunet_ext.med_danet.network.MedDANet",
    "arch_kwargs": arch_kwargs([list(stride) for stride in STRIDES], TWO),
    "_kw_requires_import": [],
}


@pytest.fixture(autouse=True)
def own_cache_and_switch(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(SWITCH, "1")  # which the command sets, and pytest sets back


def equal_share(found, expected):
    pairs = zip(label_maps(found).values(), label_maps(expected).values(), strict=True)
    return np.mean([sitk.GetArrayFromImage(a) == sitk.GetArrayFromImage(b) for a, b in pairs])


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_openvino_gives_torchs_labels(tmp_path, configuration):
    mirroring = (0, 1) if configuration == "2d" else (0, 1, 2)
    model = write_model(tmp_path / "model", plans_of(), dataset_json(), folds=(0, 1), configuration=configuration,
                        mirroring=mirroring)  # fmt: skip
    images = write_images(tmp_path / "images", [(9, 24, 22)] * 2)
    assert run(model, images, tmp_path / "torch", "-f", 0, 1, "--backend", "torch") == 0
    assert run(model, images, tmp_path / "openvino", "-f", 0, 1, "--backend", "openvino") == 0
    assert equal_share(tmp_path / "openvino", tmp_path / "torch") > 0.999
    assert list((tmp_path / "cache").rglob("*.blob"))


def test_a_backend_is_a_setting(tmp_path):
    model = write_model(tmp_path / "model", plans_of(), dataset_json())
    images = write_images(tmp_path / "images", [(8, 16, 16)])
    times = []
    for backend in ("torch", "torch", "openvino"):
        assert run(model, images, tmp_path / "out", "-f", 0, "--continue_prediction", "--backend", backend) == 0
        times.append((tmp_path / "out" / "case_0.nii.gz").stat().st_mtime_ns)
    assert times[0] == times[1] != times[2]


def test_e2enets_sparse_engine_and_torch(tmp_path, monkeypatch):
    """Which of them computes is seen in the calls of the engine; labels are the same."""
    model = write_model(tmp_path / "model", plans_of(E2ENET), dataset_json(), trainer="E2ENetTrainer")
    images = write_images(tmp_path / "images", [(9, 24, 22)])
    runs, program = [], dispatch._program
    monkeypatch.setattr(dispatch, "_program", lambda *args: runs.append(args) or program(*args))
    for backend, used in (("torch", False), ("auto", True), ("sparse", True)):
        monkeypatch.delenv(SWITCH, raising=False)
        runs.clear()
        assert run(model, images, tmp_path / backend, "-f", 0, "--backend", backend) == 0
        assert bool(runs) is used
    assert_same(tmp_path / "auto", tmp_path / "sparse")
    assert equal_share(tmp_path / "auto", tmp_path / "torch") > 0.999


def test_the_sparse_engine_says_why_it_cannot(tmp_path, monkeypatch, capsys):
    images = write_images(tmp_path / "images", [(8, 16, 16)])
    stock = write_model(tmp_path / "stock", plans_of(), dataset_json())
    assert run(stock, images, tmp_path / "out", "-f", 0, "--backend", "sparse") == 1
    assert "cannot compute PlainConvUNet: it has no sparse engine" in capsys.readouterr().err
    ours = write_model(tmp_path / "ours", plans_of(E2ENET), dataset_json(), trainer="E2ENetTrainer")
    monkeypatch.setenv(SWITCH, "0")
    assert run(ours, images, tmp_path / "out", "-f", 0, "--backend", "sparse") == 1
    assert f"cannot compute E2ENet: {SWITCH}=0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_openvino_refuses_routing_by_name(tmp_path, capsys):
    model = write_model(tmp_path / "model", plans_of(MED_DANET), dataset_json(), trainer="MedDANetTrainer")
    images = write_images(tmp_path / "images", [(8, 16, 16)])
    assert run(model, images, tmp_path / "out", "-f", 0, "--backend", "openvino") == 1
    assert "MedDANet cannot be converted to OpenVINO" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backend", ["sparse", "openvino"])
def test_backends_for_cpus_are_refused_on_others(tmp_path, monkeypatch, capsys, backend):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    model = write_model(tmp_path / "model", plans_of(), dataset_json())
    images = write_images(tmp_path / "images", [(8, 16, 16)])
    assert run(model, images, tmp_path / "out", "-f", 0, "--backend", backend, "-device", "cuda") == 1
    assert f"--backend {backend} is for CPUs" in capsys.readouterr().err
