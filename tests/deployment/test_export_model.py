"""Exported models: nothing but what prediction needs, the same network, whole or not at all."""

import getpass
import hashlib
import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from challenges.commands import start
from contract.on_request import thorough
from deployment.models import LABELS, make_images, make_model
from end_to_end.stock import Workspace, segmentations
from med_danet.small import TWO, arch_kwargs

from nnunet_ext.cli.main import main
from nnunet_ext.deployment import export, verify
from nnunet_ext.deployment.model_folder import KEPT, halved
from nnunet_ext.deployment.onnx_graph import write_onnx
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_danet.network import MedDANet

FILES = ["dataset.json", "export.json", "fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth", "plans.json"]
ZIPPED = "Dataset007_Tiny/E2ENetTrainer__HandmadePlans__3d_fullres/"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("e2enet"))


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("stock"), "nnUNetTrainer", folds=(0,))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "images")


def run(capsys, *words):
    code = main(["export-model", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def weights(folder, fold=0):
    return torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)


# what is written


def test_a_folder_holds_what_prediction_needs_and_nothing_else(model, tmp_path, capsys):
    code, out, _ = run(capsys, model, "-o", tmp_path / "slim")
    assert code == 0
    assert listing(tmp_path / "slim") == FILES and os.listdir(tmp_path) == ["slim"]
    for fold in (0, 1):
        before, after = weights(model, fold), weights(tmp_path / "slim", fold)
        assert before["optimizer_state"]["state"] and set(after) == set(KEPT)
        assert after["network_weights"].keys() == before["network_weights"].keys()
        assert all(torch.equal(after["network_weights"][key], v) for key, v in before["network_weights"].items())
        assert after["inference_allowed_mirroring_axes"] == (0, 2)
        assert after["init_args"]["configuration"] == "3d_fullres"
    for name in ("plans.json", "dataset.json"):
        assert (tmp_path / "slim" / name).read_bytes() == (model / name).read_bytes()
    record = json.loads((tmp_path / "slim" / "export.json").read_text())
    assert "left out: _best_ema, current_epoch, grad_scaler_state, logging, nnunet_ext, optimizer_state" in out
    assert record["left out of the checkpoints"][-1] == "optimizer_state"
    sizes = record["bytes of the checkpoints"]
    assert sizes["source"] == sum(path.stat().st_size for path in model.glob("fold_*/checkpoint_final.pth"))
    assert sizes["here"] == sum(path.stat().st_size for path in (tmp_path / "slim").glob("fold_*/*"))
    assert sizes["here"] < 0.8 * sizes["source"]
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((tmp_path / "slim" / name).read_bytes()).hexdigest() == digest
    assert sorted(record["sha256"]) == [name for name in FILES if name != "export.json"]
    assert "random patch are those of the source, bit for bit" in out and "not checked: label maps" in out


def test_the_record_names_no_place_and_no_person(model, images, tmp_path, capsys):
    assert run(capsys, model, "-o", tmp_path / "slim", "--check", images, "--onnx")[0] == 0
    for path in (tmp_path / "slim").rglob("*"):
        if path.suffix in (".json", ".onnx"):
            content = path.read_bytes()
            for word in (str(tmp_path), str(model.parent), str(Path(__file__).parents[2]), sys.prefix, "site-packages"):
                assert word.encode() not in content, (path.name, word)
            assert getpass.getuser() in ("root",) or getpass.getuser().encode() not in content


def test_a_zip_is_the_same_bytes_each_time_and_nnunet_installs_it(model, tmp_path, capsys):
    for name in ("a.zip", "b.zip"):
        code, out, _ = run(capsys, model, "-o", tmp_path / name)
        assert code == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "b.zip"]
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [ZIPPED + name for name in FILES]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        archive.extractall(tmp_path / "results")  # all that nnUNetv2_install_pretrained_model_from_zip does
    found = verify.compare_patches(model, tmp_path / "results" / ZIPPED, ["0"], "checkpoint_final.pth", exact=True)
    assert found[0]["largest logit difference"] == 0


def test_folds_and_checkpoints_are_chosen(model, tmp_path, capsys):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    (copy / "fold_1" / "checkpoint_final.pth").rename(copy / "fold_1" / "checkpoint_best.pth")
    assert run(capsys, copy, "-o", tmp_path / "a")[0] == 0
    assert "fold_1/checkpoint_final.pth" not in listing(tmp_path / "a")
    assert run(capsys, copy, "-o", tmp_path / "b", "--folds", "1", "--checkpoint", "checkpoint_best.pth")[0] == 0
    assert [name for name in listing(tmp_path / "b") if "fold" in name] == ["fold_1/checkpoint_best.pth"]
    (copy / "fold_0").rename(copy / "fold_all")
    assert run(capsys, copy, "-o", tmp_path / "c", "--folds", "all")[0] == 0
    assert [name for name in listing(tmp_path / "c") if "fold" in name] == ["fold_all/checkpoint_final.pth"]


def test_what_shares_memory_is_stored_once_in_half_too(stock, tmp_path, capsys):
    """nnU-Net's U-Net has its encoder a second time in its decoder."""
    assert run(capsys, stock, "-o", tmp_path / "a")[0] == 0
    assert run(capsys, stock, "-o", tmp_path / "b", "--half")[0] == 0
    state = weights(tmp_path / "a")["network_weights"]
    assert len({tensor.data_ptr() for tensor in state.values()}) < len(state)
    halves = weights(tmp_path / "b")["network_weights"]
    one, two = (len({tensor.data_ptr() for tensor in found.values()}) for found in (state, halves))
    assert one == two


def test_what_is_equal_in_all_folds_is_counted(tmp_path, capsys):
    """A frozen backbone: every checkpoint is whole all the same."""
    model = make_model(tmp_path, "MedTuningTrainer")
    first, second = (weights(model, fold) for fold in (0, 1))
    frozen = [name for name in first["network_weights"] if name.startswith("backbone.blocks.")]
    for name in frozen:
        second["network_weights"][name] = first["network_weights"][name]
    torch.save(second, model / "fold_1" / "checkpoint_final.pth")
    code, out, _ = run(capsys, model, "-o", tmp_path / "slim")
    assert code == 0 and "of each fold are equal in all of them; they are stored with each" in out
    record = json.loads((tmp_path / "slim" / "export.json").read_text())
    least = sum(first["network_weights"][name].nbytes for name in frozen)
    assert least <= record["bytes of the checkpoints"]["equal in all folds, in each"] < 2 * least
    whole = weights(tmp_path / "slim", 1)["network_weights"]
    assert whole.keys() == first["network_weights"].keys()


# half precision


def test_half_keeps_what_is_small_or_out_of_range():
    state = {
        "kernel": torch.tensor([[0.1, 1e-9]]),
        "bias": torch.tensor([0.1]),
        "huge": torch.tensor([[1e6]]),
        "mask": torch.tensor([[True]]),
        "half": torch.tensor([[0.1]], dtype=torch.float16),
    }
    found = halved(state)
    assert {name: str(tensor.dtype) for name, tensor in found.items()} == {
        "kernel": "torch.float16",
        "bias": "torch.float32",
        "huge": "torch.float32",
        "mask": "torch.bool",
        "half": "torch.float16",
    }


def test_half_is_measured_on_patch_and_images(model, images, tmp_path, capsys):
    code, out, _ = run(capsys, model, "-o", tmp_path / "slim", "--half", "--check", images, "--check-all")
    assert code == 0
    record = json.loads((tmp_path / "slim" / "export.json").read_text())
    patches = record["checked"]["logits of each fold on a random patch"]
    assert len(patches) == 2 and all(0 < patch["relative to range"] < 0.01 for patch in patches)
    cases = record["checked"]["label maps of cases"]
    expected = verify.compare_label_maps(
        model, tmp_path / "slim", ["0", "1"], "checkpoint_final.pth",
        verify.find_cases(images, LABELS), exact=False,
    )  # fmt: skip
    assert cases == expected and len(cases) == 2 and all(0.95 < case["share of equal voxels"] <= 1 for case in cases)
    assert "in nnU-Net's label maps of 2 cases at least" in out and "not checked" not in out
    small, whole = (sum(p.stat().st_size for p in folder.glob("fold_*/*.pth")) for folder in (tmp_path / "slim", model))
    assert small < whole / 2


def test_the_share_of_differing_voxels_is_what_it_says(monkeypatch, tmp_path):
    one, two = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    one[0], two[0] = 1, 1
    two[0, 0] = 2
    maps = iter([[one], [two]])

    class Predictor:
        def predict_from_files_sequential(self, cases, target):
            return next(maps)

    monkeypatch.setattr(verify, "loaded", lambda *_: Predictor())
    (found,) = verify.compare_label_maps(tmp_path, tmp_path, ["0"], "", [["a"]], exact=False)
    assert found == {"share of equal voxels": 1 - 4 / 24, "share of the foreground that differs": 4 / 12}


# checks


def test_equal_label_maps_are_said_to_be(model, images, tmp_path, capsys):
    code, out, _ = run(capsys, model, "-o", tmp_path / "slim", "--check", images)
    assert code == 0 and "nnU-Net's label maps of 1 case are equal" in out
    record = json.loads((tmp_path / "slim" / "export.json").read_text())
    assert record["checked"]["label maps of cases"] == [
        {"share of equal voxels": 1.0, "share of the foreground that differs": 0.0}
    ]


def altered(monkeypatch, change):
    slim = export.slim_checkpoint

    def other(path):
        content, left_out = slim(path)
        change(content)
        return content, left_out

    monkeypatch.setattr(export, "slim_checkpoint", other)


def test_a_model_that_became_another_is_not_written(model, images, tmp_path, monkeypatch, capsys):
    def change(content):
        content["network_weights"]["heads.seg_layers.0.weight"][0, 0] += 1e-6

    altered(monkeypatch, change)
    code, _, err = run(capsys, model, "-o", tmp_path / "slim.zip")
    assert code == 1 and "network of fold 0 gives other logits than its source" in err
    assert list(tmp_path.iterdir()) == []


def test_label_maps_that_differ_are_refused(model, images, tmp_path, monkeypatch, capsys):
    def change(content):
        content["inference_allowed_mirroring_axes"] = None  # the networks are the same

    altered(monkeypatch, change)
    code, _, err = run(capsys, model, "-o", tmp_path / "slim", "--check", images)
    assert code == 1 and "voxels of case_0_0000.nii.gz otherwise than its source. Nothing was written." in err
    assert list(tmp_path.iterdir()) == []


# ONNX


def test_onnx_and_its_sidecar(stock, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    code, out, _ = run(capsys, stock, "-o", tmp_path / "slim", "--onnx")
    assert code == 0 and "onnx/fold_0.onnx: logits in ONNX Runtime differ from torch's by" in out
    sidecar = json.loads((tmp_path / "slim" / "onnx" / "fold_0.json").read_text())
    assert sidecar["input"] == {"name": "image", "shape": [1, 1, 8, 16, 16], "type": "float32"}
    assert sidecar["output"]["shape"] == [1, 3, 8, 16, 16] and sidecar["output"]["activation"] == "softmax"
    assert sidecar["spacing"] == [2.0, 1.0, 1.0] and sidecar["mirroring_axes"] == [0, 2]
    (channel,) = sidecar["normalisation"]
    assert channel["channel"] == "CT" and channel["scheme"] == "ZScoreNormalization"
    assert channel["intensities of the training data"] == {"mean": 1.5, "std": 20.0}
    assert sidecar["labels"] == LABELS["labels"] and sidecar["file_ending"] == ".nii.gz"
    assert sidecar["compared with torch in ONNX Runtime"]["relative to range"] < 1e-5
    x = torch.randn(1, 1, 8, 16, 16)
    session = onnxruntime.InferenceSession(tmp_path / "slim" / "onnx" / "fold_0.onnx")
    network, _ = verify.network_and_patch(verify.loaded(stock, ["0"], "checkpoint_final.pth"))
    with torch.no_grad():
        (found,) = session.run(["logits"], {"image": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(x), rtol=1e-4, atol=1e-5)


def test_onnx_refuses_what_depends_on_the_image_and_other_logits(stock, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    network = MedDANet(1, 3, **arch_kwargs([[1, 2, 2]], TWO)).eval()
    with pytest.raises(ConfigurationError, match="MedDANet cannot be converted to ONNX: which of its networks"):
        write_onnx(network, torch.zeros(1, 1, 3, 32, 32), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
    pytest.importorskip("onnxruntime")
    network, x = verify.network_and_patch(verify.loaded(stock, ["0"], "checkpoint_final.pth"))
    monkeypatch.setattr("nnunet_ext.deployment.onnx_graph.BOUND", 1e-12)
    with pytest.raises(ConfigurationError, match="computes other logits in ONNX Runtime than in torch: they differ by"):
        write_onnx(network, x, tmp_path / "b.onnx")


def test_without_onnx_the_extra_is_named_before_any_work(model, tmp_path, monkeypatch, capsys):
    find = export.check_onnx.__globals__["find_spec"]
    monkeypatch.setitem(
        export.check_onnx.__globals__, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    code, _, err = run(capsys, model, "-o", tmp_path / "slim", "--onnx")
    assert code == 1 and 'needs onnxscript. Run: pip install "nnunet-ext[onnx]"' in err


# faults


class Code:
    def __reduce__(self):
        return (os.system, ("touch escaped",))


def damaged(path, how):
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif how == "a stranger's":
        torch.save({"network_weights": {}, "x": Code()}, path)
    elif how == "a pickle":
        path.write_bytes(pickle.dumps(Code()))
    else:
        torch.save({"network_weights": {}}, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "cannot be read"),
        ("a stranger's", "holds more than weights and numbers"),
        ("a pickle", "holds more than weights and numbers"),
        ("of something else", "is no checkpoint of an nnU-Net training: it has no trainer_name, init_args"),
    ],
)
def test_checkpoints_that_cannot_be_used(how, message, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "model")
    damaged(tmp_path / "model" / "fold_1" / "checkpoint_final.pth", how)
    code, _, err = run(capsys, tmp_path / "model", "-o", tmp_path / "slim")
    assert code == 1 and "fold_1/checkpoint_final.pth" in err and message in err and err.count("\n") == 1
    assert os.listdir(tmp_path) == ["model"]  # no code ran, nothing is left


def test_folds_that_are_not_there_or_of_another_training(model, stock, tmp_path, capsys):
    code, _, err = run(capsys, model, "-o", tmp_path / "slim", "--folds", "0", "4")
    assert code == 1 and "fold_4/checkpoint_final.pth is not there: choose with --folds" in err
    code, _, err = run(capsys, model, "-o", tmp_path / "slim", "--folds", "first")
    assert code == 1 and "--folds takes numbers or all, found 'first'" in err
    code, _, err = run(capsys, tmp_path, "-o", tmp_path / "slim")
    assert code == 1 and "is no model folder: plans.json cannot be read" in err
    shutil.copytree(model, tmp_path / "mixed")
    shutil.copytree(stock / "fold_0", tmp_path / "mixed" / "fold_2")
    code, _, err = run(capsys, tmp_path / "mixed", "-o", tmp_path / "slim")
    assert code == 1 and "different trainings: E2ENetTrainer 3d_fullres, nnUNetTrainer 3d_fullres" in err
    assert os.listdir(tmp_path) == ["mixed"]


def test_weights_that_do_not_fit_the_plans(model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "fold_0" / "checkpoint_final.pth"
    content = weights(tmp_path / "model")
    content["network_weights"].pop("heads.seg_layers.0.weight")
    torch.save(content, path)
    code, _, err = run(capsys, tmp_path / "model", "-o", tmp_path / "slim")
    assert code == 1 and "nnU-Net cannot load the model" in err and "heads.seg_layers.0.weight" in err
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["slim", "slim.zip"])
def test_what_is_there_stays_unless_asked_and_if_anything_fails(name, model, tmp_path, monkeypatch, capsys):
    output = tmp_path / name
    assert run(capsys, model, "-o", output, "--folds", "0")[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, err = run(capsys, model, "-o", output)
    assert code == 1 and "exists. Choose another place, or replace it with --overwrite" in err
    with monkeypatch.context() as patch:
        replace = os.replace

        def fails(source, target):
            if Path(target) == output:
                raise OSError(28, "No space left on device", str(target))
            replace(source, target)

        def fails_once(source, target):  # the folder comes back by the same call
            if Path(target) == output and Path(source).name != "old":
                raise OSError(28, "No space left on device", str(target))
            replace(source, target)

        patch.setattr(os, "replace", fails_once if name == "slim" else fails)
        code, _, err = run(capsys, model, "-o", output, "--overwrite")
        assert code == 1 and "No space left on device" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert run(capsys, model, "-o", output, "--overwrite")[0] == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} != before
    assert os.listdir(tmp_path) == [name]


def test_places_where_no_model_may_be_written(model, tmp_path, capsys):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "text.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for output, message in {
        other: "is a folder that export-model did not write (it has no export.json)",
        tmp_path / "file": "is a file, the model becomes a folder",
        model: "is the model folder, in it or around it",
        model / "slim": "is the model folder, in it or around it",
        model.parent: "is the model folder, in it or around it",
        tmp_path / "nowhere" / "slim": "give a place in a folder that exists",
        tmp_path / "file" / "slim": "give a place in a folder that exists",
    }.items():
        code, _, err = run(capsys, model, "-o", output, "--overwrite")
        assert code == 1 and message in err
    assert listing(tmp_path) == ["file", "thesis/text.txt"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(model, tmp_path, capsys):
    tmp_path.chmod(0o500)
    code, _, err = run(capsys, model, "-o", tmp_path / "slim")
    tmp_path.chmod(0o700)
    assert code == 1 and "you may not write into" in err


@pytest.mark.parametrize("name", ["slim", "slim.zip"])
def test_a_full_disk_leaves_nothing(name, model, tmp_path, capsys):
    from challenges.test_faults import small_disk

    disk = tmp_path / "disk"
    with small_disk(disk, 40):
        code, _, err = run(capsys, model, "-o", disk / name)
        assert code == 1 and "No space left on device" in err and "Traceback" not in err
        assert list(disk.iterdir()) == []


def test_images_that_cannot_be_a_check(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    two = make_images(tmp_path / "two", channels=2)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "case_0_0000.nii.gz").write_bytes(b"no image")
    for folder, message in {
        tmp_path / "none": "There is no folder",
        tmp_path / "empty": "holds no images as the model reads them, CASE_0000.nii.gz",
        two: "The model has 1 channels, case_0_0000.nii.gz is one of 2 files",
        broken: "The images of --check cannot be predicted",
    }.items():
        code, _, err = run(capsys, model, "-o", tmp_path / "slim", "--check", folder)
        assert code == 1 and message in err
    code, _, err = run(capsys, model, "-o", tmp_path / "slim", "--check-all")
    assert code == 1 and "--check-all is of --check" in err
    assert not (tmp_path / "slim").exists()


def test_the_second_stage_of_a_cascade_has_no_label_maps_to_compare(model, images, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "model")
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["previous_stage"] = "2d"
    (tmp_path / "model" / "plans.json").write_text(json.dumps(plans))
    code, _, err = run(capsys, tmp_path / "model", "-o", tmp_path / "slim", "--check", images)
    assert code == 1 and "second stage of a cascade" in err and "leave --check out" in err


# through nnU-Net's commands


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "MedTuningTrainer",
        *(pytest.param(f"{name}Trainer", marks=thorough) for name in ("nnUNet", "E2ENet", "MedDANet")),
    ],
)
def test_stock_commands_predict_the_same_from_it(name, images, tmp_path):
    model = make_model(tmp_path / "made", name)
    workspace = Workspace(tmp_path / "user")
    for output in ("slim", "slim.zip"):
        workspace.run("nnunet_ext", "export-model", model, "-o", tmp_path / output, "--check", images)
    workspace.run("nnUNetv2_install_pretrained_model_from_zip", tmp_path / "slim.zip")
    found = {}
    for kind, folder in (("before", model), ("folder", tmp_path / "slim")):
        words = ["-i", images, "-o", tmp_path / kind, "-m", folder, "-f", 0, 1, "-device", "cpu", "-npp", 1, "-nps", 1]
        workspace.run("nnUNetv2_predict_from_modelfolder", *words)
        found[kind] = segmentations(tmp_path / kind)
        assert len(found[kind]) == 2
    assert all(np.array_equal(found["before"][case], found["folder"][case]) for case in found["before"])
    words = ["-d", workspace.number, "-tr", name, "-p", "HandmadePlans", "-c", "3d_fullres", "-f", 0, 1]
    (workspace.raw / workspace.dataset).mkdir()
    workspace.run(
        "nnunet_ext", "predict", "-i", images, "-o", tmp_path / "ours", *words, "-device", "cpu", "-npp", 1, "-nps", 1
    )
    ours = segmentations(tmp_path / "ours")
    assert all(np.array_equal(found["before"][case], ours[case]) for case in found["before"])


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(model, tmp_path, tmp_path_factory):
    import signal
    import time

    process = start(tmp_path_factory.mktemp("driver"), "export-model", model, "-o", tmp_path / "slim", "--onnx")
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".slim.*/model/fold_1/*.pth")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "nnunet_ext: interrupted" in err
    assert list(tmp_path.iterdir()) == []
