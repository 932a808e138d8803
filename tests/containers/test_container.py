"""A container's folder: what is in it, what is refused, and its entry point in a bare tree of folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from contract.trainer import STRIDES, TrainerContract
from end_to_end.stock import Workspace

from nnunet_ext.cli.main import main
from nnunet_ext.containers import entry
from nnunet_ext.containers.build import Options, build_folder
from nnunet_ext.containers.layouts import find_cases
from nnunet_ext.errors import ConfigurationError

LABELS = {
    "channel_names": {"0": "CT", "1": "PET scan"},
    "labels": {"background": 0, "a": 1, "b": 2},
    "file_ending": ".nii.gz",
}


class Tiny(TrainerContract):
    trainer = "E2ENetTrainer"
    arch_kwargs = {"strides": STRIDES, "features_per_stage": [4, 5, 6], "sparsity": 0.5}
    options = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two folds of an untrained E2ENet with two channels, as nnU-Net stores them."""
    workspace = Workspace(tmp_path_factory.mktemp("model"))
    data = workspace.preprocessed / workspace.dataset / "nnUNetPlans_3d_fullres"
    data.mkdir(parents=True)
    (data / "case_000.b2nd").touch()  # the trainer asks for the kind of its data when it is initialised
    with pytest.MonkeyPatch.context() as patch:
        for name, value in workspace.folders.items():
            patch.setenv(name, value)
        test = Tiny()
        for fold in (0, 1):
            trainer = test.build(fold=fold, labels=LABELS)
            trainer.initialize()
            trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
    folder = Path(trainer.output_folder).parent
    plans = test.handmade()
    plans["configurations"]["3d_fullres"].update(
        normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[False] * 2
    )
    plans["foreground_intensity_properties_per_channel"] = {"0": {}, "1": {}}
    for name, content in (("plans.json", plans), ("dataset.json", LABELS)):
        (folder / name).write_text(json.dumps(content))
    return folder


def volume(path, seed=0, size=(20, 18, 10)):
    """An image with a direction and an origin of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).normal(size=size[::-1]).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.9, 1.1, 2.5))
    image.SetOrigin((-11.5, 7.25, 100))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))
    return image


def test_the_folder_holds_all_that_the_image_needs(model, tmp_path, capsys):
    target = tmp_path / "My submission"
    words = ["container", str(model), "-o", str(target), "--layout", "grand-challenge", "--challenge", "brats2020"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "PET scan: /input/images/pet-scan/*.mha" in out and "1 becomes 2, 2 becomes 1, 3 becomes 4" in out
    config = json.loads((target / "container.json").read_text())
    assert config["inputs"] == ["ct", "pet-scan"] and config["folds"] == ["0", "1"] and config["mirroring"] is True
    for fold in (0, 1):
        stored = torch.load(target / "model" / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
        whole = torch.load(model / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
        assert "optimizer_state" not in stored and stored["trainer_name"] == "E2ENetTrainer"
        assert all(torch.equal(stored["network_weights"][k], v) for k, v in whole["network_weights"].items())
    dockerfile = (target / "Dockerfile").read_text()
    assert "FROM python:3.11-slim" in dockerfile and "whl/cpu" in dockerfile
    assert 'ENTRYPOINT ["python", "-m", "nnunet_ext.containers.entry", "/opt/app/container.json"]' in dockerfile
    for copied in ("requirements.txt", "nnunet_ext", "model", "container.json"):
        assert f"COPY {copied} " in dockerfile and (target / copied).exists()
    needed = (target / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("nnunetv2==2.8.") for line in needed)
    assert all("==" in line and "+" not in line and not line.startswith("torch==") for line in needed)
    for part in ("trainers/e2enet.py", "e2enet/packed/engine.cpp", "report/report.html.j2"):
        assert (target / "nnunet_ext" / part).is_file()
    assert not list(target.rglob("__pycache__"))
    assert "-t my-submission " in (target / "build.sh").read_text()
    for script in ("build.sh", "test.sh"):
        assert subprocess.run(["bash", "-n", str(target / script)]).returncode == 0


def test_the_layout_of_flare_and_cuda(model, tmp_path):
    build_folder(model, tmp_path / "c", Options(layout="flare", base="cuda", folds=("1",)))
    dockerfile = (tmp_path / "c" / "Dockerfile").read_text()
    assert "whl/cpu" not in dockerfile and "WORKDIR /workspace" in dockerfile and "COPY predict.sh" in dockerfile
    assert (
        (tmp_path / "c" / "predict.sh").read_text().startswith("#!/bin/sh\nexec python -m nnunet_ext.containers.entry")
    )
    assert [path.name for path in (tmp_path / "c" / "model").glob("fold_*")] == ["fold_1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(inputs=("ct",)), r"2 channels \(CT, PET scan\), found 1 --input"),
        (Options(folds=("4",)), "fold_4/checkpoint_final.pth is not there"),
        (Options(checkpoint="checkpoint_best.pth"), "is not there: choose with --folds and --checkpoint"),
    ],
)
def test_what_cannot_be_a_container_is_refused(model, tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        build_folder(model, tmp_path / "c", options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_and_one_without_a_model_are_refused(model, tmp_path):
    with pytest.raises(ConfigurationError, match="exists already"):
        build_folder(model, tmp_path, Options())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="is no model folder: plans.json cannot be read"):
        build_folder(tmp_path / "empty", tmp_path / "c", Options())


def test_images_are_found_where_the_layouts_have_them(tmp_path):
    config = {"layout": "grand-challenge", "inputs": ["ct", "pet"], "output": "tumor"}
    with pytest.raises(ConfigurationError, match="input/images/ct must hold one image, found 0"):
        find_cases(config, tmp_path)
    for name in ("ct/a1.mha", "pet/b2.mha"):
        volume(tmp_path / "input" / "images" / name)
    (case,) = find_cases(config, tmp_path)
    assert [path.name for path in case.images] == ["a1.mha", "b2.mha"]
    assert case.output == tmp_path / "output" / "images" / "tumor" / "a1.mha" and case.name == "a1"
    volume(tmp_path / "input" / "images" / "pet" / "c3.mha")
    with pytest.raises(ConfigurationError, match="pet must hold one image, found 2: b2.mha, c3.mha"):
        find_cases(config, tmp_path)
    flare = {"layout": "flare", "inputs": ["ct", "pet"]}
    with pytest.raises(ConfigurationError, match="workspace/inputs holds no image"):
        find_cases(flare, tmp_path)
    for channel in (0, 1):
        volume(tmp_path / "workspace" / "inputs" / f"p_7_000{channel}.nii.gz")
    (case,) = find_cases(flare, tmp_path)
    assert case.output == tmp_path / "workspace" / "outputs" / "p_7.nii.gz" and case.name == "p_7"
    volume(tmp_path / "workspace" / "inputs" / "q_0000.nii.gz")
    with pytest.raises(ConfigurationError, match="has no q_0001.nii.gz; the model has 2 channels"):
        find_cases(flare, tmp_path)


def test_faults_are_sentences_and_the_other_cases_go_on(model, tmp_path, capsys):
    build_folder(model, tmp_path / "c", Options(layout="flare", folds=("0",), mirroring=False, values={1: 7}))
    inputs = tmp_path / "workspace" / "inputs"
    for channel in (0, 1):
        volume(inputs / f"good_000{channel}.nii.gz", channel)
        volume(inputs / f"uneven_000{channel}.nii.gz", size=(20, 18, 10 + channel))
    volume(inputs / "damaged_0001.nii.gz")
    (inputs / "damaged_0000.nii.gz").write_bytes(b"no image")
    words = [str(tmp_path / "c" / "container.json"), "--root", str(tmp_path)]
    assert entry.main(words) == 1
    err = capsys.readouterr().err
    assert "nnunet_ext: uneven: ConfigurationError: uneven_0001.nii.gz has (20, 18, 11) voxels, uneven_0000" in err
    assert "nnunet_ext: damaged: RuntimeError" in err
    outputs = tmp_path / "workspace" / "outputs"
    assert [path.name for path in outputs.iterdir()] == ["good.nii.gz"]
    labels = sitk.ReadImage(str(outputs / "good.nii.gz"))
    image = sitk.ReadImage(str(inputs / "good_0000.nii.gz"))
    assert labels.GetPixelID() == sitk.sitkUInt8 and labels.GetSize() == image.GetSize()
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(labels, what)() == pytest.approx(getattr(image, what)())
    assert set(np.unique(sitk.GetArrayFromImage(labels))) <= {0, 2, 7}
    assert entry.main([str(tmp_path / "nowhere.json")]) == 1
    assert "nnunet_ext: " in capsys.readouterr().err


@pytest.mark.slow
def test_the_entry_point_in_a_bare_tree_is_nnunets_prediction(model, tmp_path):
    """A process with nothing but the folder's own copy of the package, against nnUNetv2_predict_from_modelfolder."""
    build_folder(model, tmp_path / "c", Options(inputs=("ct", "pet"), output="tumor"))
    for channel, name in enumerate(("ct/u-1.mha", "pet/u-2.mha")):
        image = volume(tmp_path / "input" / "images" / name, channel)
        (tmp_path / "stock").mkdir(exist_ok=True)
        sitk.WriteImage(image, str(tmp_path / "stock" / f"case_000{channel}.nii.gz"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("nnUNet", "PYTHON"))}
    words = ["-m", "nnunet_ext.containers.entry", str(tmp_path / "c" / "container.json"), "--root", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env={**environment, "PYTHONPATH": str(tmp_path / "c")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stock = ["-i", tmp_path / "stock", "-o", tmp_path / "out", "-m", model, "-f", "0", "1", "-device", "cpu"]
    command = [sys.executable, "-m", "nnunet_ext", "nnUNetv2_predict_from_modelfolder", *map(str, stock)]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    ours = sitk.ReadImage(str(tmp_path / "output" / "images" / "tumor" / "u-1.mha"))
    theirs = sitk.ReadImage(str(tmp_path / "out" / "case.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
    source = sitk.ReadImage(str(tmp_path / "input" / "images" / "ct" / "u-1.mha"))
    assert (ours.GetOrigin(), ours.GetDirection(), ours.GetSpacing()) == (
        source.GetOrigin(), source.GetDirection(), source.GetSpacing()
    )  # fmt: skip
