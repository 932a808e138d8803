"""Rows of logits against nnU-Net's predictor, bit for bit."""

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
