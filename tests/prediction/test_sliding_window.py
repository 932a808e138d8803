"""Rows of logits against nnU-Net's predictor, bit for bit."""

import json
import subprocess
import sys

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from prediction.models import dataset_json, plans_of, write_model

from nnunet_ext.prediction.model import load_model
from nnunet_ext.prediction.pipeline import How, Predictor

CPU = torch.device("cpu")


def stock_logits(folder, folds, data, **how):
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, **how)
    predictor.initialize_from_trained_model_folder(str(folder), folds)
    return predictor.predict_logits_from_preprocessed_data(data)


@pytest.mark.parametrize("folds", [(0,), (0, 1, 4)])
@pytest.mark.parametrize("shape", [(8, 16, 16), (5, 12, 40), (21, 33, 18), (30, 16, 17)])
def test_rows_are_nnunets_logits(tmp_path, folds, shape):
    """Also where the image is smaller than the patch and is padded."""
    folder = write_model(tmp_path / "model", plans_of(), dataset_json(), folds=folds)
    data = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    rows = list(Predictor(load_model(folder, folds, "checkpoint_final.pth"), How(CPU)).rows(data, False))
    expected = stock_logits(folder, folds, data)
    assert torch.equal(torch.cat(rows, 1), expected) and expected.std() > 0
    assert len(rows) > 1 or shape[0] <= 8


def test_steps_and_mirroring_are_passed_on(tmp_path):
    folder = write_model(tmp_path / "model", plans_of(), dataset_json())
    data = torch.randn(1, 13, 20, 21)
    model = load_model(folder, (0,), "checkpoint_final.pth")
    for step, mirror in ((1.0, True), (0.3, False)):
        rows = Predictor(model, How(CPU, step_size=step, mirroring=mirror)).rows(data, False)
        expected = stock_logits(folder, (0,), data, tile_step_size=step, use_mirroring=mirror)
        assert torch.equal(torch.cat(list(rows), 1), expected)


def test_slices_come_in_batches(tmp_path):
    folder = write_model(tmp_path / "model", plans_of(), dataset_json(), configuration="2d", mirroring=(0, 1))
    data = torch.randn(1, 9, 20, 34)
    predictor = Predictor(load_model(folder, (0,), "checkpoint_final.pth"), How(CPU))
    sizes = []
    predictor.networks[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    found = torch.cat(list(predictor.rows(data, False)), 1)
    torch.testing.assert_close(found, stock_logits(folder, (0,), data), rtol=0, atol=4e-3)  # a step of float16 near 4
    assert set(sizes) == {16, 9 * 8 % 16} and len(sizes) == 4 * 5  # 8 tiles a slice, four mirrored passes


def test_infinite_logits_are_an_error(tmp_path):
    folder = write_model(tmp_path / "model", plans_of(), dataset_json())
    model = load_model(folder, (0,), "checkpoint_final.pth")
    with torch.no_grad():
        for parameter in list(model.networks[0].parameters())[-2:]:
            parameter.fill_(1e5)
    with pytest.raises(RuntimeError, match="too large for float16"):
        list(Predictor(model, How(CPU)).rows(torch.ones(1, 8, 16, 16), False))


def test_only_rows_that_are_not_final_are_kept(tmp_path):
    """Of a long image the sums hold one patch."""
    folder = write_model(tmp_path / "model", plans_of(), dataset_json())
    predictor = Predictor(load_model(folder, (0,), "checkpoint_final.pth"), How(CPU, mirroring=False))
    from nnunet_ext.prediction import sliding_window

    longest = []
    add = sliding_window._Sums.add

    class Watched(sliding_window._Sums):
        def add(self, *args):
            add(self, *args)
            longest.append(self.logits.shape[1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliding_window, "_Sums", Watched)
        rows = sum(part.shape[1] for part in predictor.rows(torch.randn(1, 64, 16, 16), False))
    assert rows == 64 and max(longest) == 8


MANY_HEADS = """
import json, torch
from pathlib import Path
from types import SimpleNamespace
from nnunet_ext.prediction.memory import keep_freed_memory
from nnunet_ext.prediction.sliding_window import row_predictor

torch.set_num_threads(1)
keep_freed_memory()
heads, patch, size = 128, [32, 64, 64], (1, 120, 100, 100)
predictor = row_predictor()(1, True, False, False, torch.device("cpu"), allow_tqdm=False)
predictor.network = torch.nn.Conv3d(1, heads, 1).eval()
predictor.configuration_manager = SimpleNamespace(patch_size=patch)
predictor.label_manager = SimpleNamespace(num_segmentation_heads=heads)
predictor.allowed_mirroring_axes = None
data = torch.randn(size)
slicers = predictor._internal_get_sliding_window_slicers(size[1:])
predictor.network(torch.zeros(1, 1, 8, 8, 8))
Path("/proc/self/clear_refs").write_text("5")  # the largest resident size begins anew

def most():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

before = most()
rows = sum(part.shape[1] for part in predictor.logit_rows(data, slicers, torch.device("cpu")))
tile, kept = heads * 4 * 32 * 64 * 64, heads * 2 * 32 * 100 * 100
print(json.dumps([rows, most() - before, tile + kept]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory is glibc's")
def test_many_heads_take_one_tile_and_the_rows_of_a_patch():
    done = subprocess.run([sys.executable, "-c", MANY_HEADS], capture_output=True, text=True, check=True)
    rows, taken, needed = json.loads(done.stdout.splitlines()[-1])
    assert rows == 120
    # rows on their way, parts that are converted, and holes
    assert needed < taken < 3 * needed, f"{taken / 1e6:.0f} MB for {needed / 1e6:.0f} MB of logits"
