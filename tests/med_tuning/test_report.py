"""What the report says of a tuned network, and how its slice filters are drawn."""

import numpy as np
import pytest
from report.folders import Model, three_cases, write_json

from nnunet_ext.med_tuning.filters import change, kernel
from nnunet_ext.med_tuning.report import FILE, section
from nnunet_ext.med_tuning.slice_filter_figure import slice_filter_figure
from nnunet_ext.report.model_folder import read_model_folder

ONES = [1.0] * 8
SMOOTH = list(1 + 0.5 * np.cos(2 * np.pi * np.arange(8) / 8))  # adds a quarter of both neighbours


def content(*filters):
    return {
        "epoch": 2,
        "backbone": "vit_tiny_patch16_224",
        "tuning": "med_adapter",
        "weights": {"backbone": "vit_tiny_patch16_224", "source": "file a.pth", "sha256": "ab" * 32, "tensors": 5},
        "parts": {
            "backbone": {"total": 800, "trainable": 20},
            "adapters": {"total": 100, "trainable": 100},
            "decoder": {"total": 100, "trainable": 100},
        },
        "filters": {f"tuning.blocks.{n}.x": {"W_F": w, "b_F": ONES} for n, w in enumerate(filters)},
    }


def tuned(root, *contents):
    model = Model(root, "MedTuningTrainer")
    for number, values in enumerate(contents):
        folder = model.fold(number, three_cases(f"f{number}_"))
        write_json(folder / "med_tuning_history.json", [{"epoch": 0}])
        write_json(folder / FILE, values)
    return model


def test_a_kernel_is_what_the_filter_adds_up():
    assert np.allclose(kernel(ONES), np.eye(8)[4])
    found = kernel(SMOOTH)
    assert np.allclose(found, [0, 0, 0, 0.25, 1, 0.25, 0, 0])
    x = np.random.default_rng(0).normal(size=8)
    rolled = sum(found[4 + offset] * np.roll(x, offset) for offset in range(-4, 4))
    assert np.allclose(rolled, np.fft.ifft(np.asarray(SMOOTH) * np.fft.fft(x)))
    assert change(SMOOTH) == 0.5


def test_what_is_tuned_and_the_filters_are_on_the_page(tmp_path):
    model = tuned(tmp_path, content(ONES, SMOOTH), content(SMOOTH, SMOOTH))
    made = section(read_model_folder(model.path))
    trainable, changes = made.tables
    assert trainable.rows[0] == [
        "0", "med_adapter on vit_tiny_patch16_224", f"file a.pth, SHA256 {'ab' * 6}", "20 of 800", "100 of 100",
        "100 of 100", "22.00 %",
    ]  # fmt: skip
    assert changes.rows == [["adapter 1", "0", "0.500"], ["adapter 2", "0.500", "0.500"]]
    (picture,) = made.pictures
    assert "folds 0, 1" in picture.caption and "adapter 2 0.500" in picture.alt


def test_tunings_without_slice_filters_have_a_table_alone(tmp_path):
    for number, values in enumerate(({**content(), "weights": None}, content([1.1]))):  # the second is of 2d
        made = section(read_model_folder(tuned(tmp_path / str(number), values).path))
        assert made.pictures == () and len(made.tables) == 1


@pytest.mark.parametrize(
    "damaged", [[], {}, {**content(), "filters": {"a": {"W_F": ["x"]}}}, {**content(), "parts": 3}]
)
def test_a_damaged_file_becomes_a_note(tmp_path, damaged):
    read = read_model_folder(tuned(tmp_path, damaged).path)
    assert section(read) is None
    assert FILE in read.notes[-1] and "left out" in read.notes[-1]


def test_folders_of_other_trainings_get_no_section(tmp_path):
    model = tuned(tmp_path, content(ONES))
    (model.path / "fold_0" / FILE).unlink()
    read = read_model_folder(model.path)
    assert section(read) is None and read.notes == []


def test_a_plot_leaves_the_slice_itself_to_its_title():
    figure = slice_filter_figure({"adapter 1": [kernel(SMOOTH)], "adapter 2": [kernel(ONES)]})
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title() for ax in shown] == ["adapter 1: own slice 1.000", "adapter 2: own slice 1.000"]
    x, y = shown[0].lines[0].get_data()
    assert np.isnan(y[list(x).index(0)]) and y[list(x).index(1)] == pytest.approx(0.25)
    directed = slice_filter_figure({"adapter 1": [np.array([0, 0, 1, 0.3j, 0])]})
    assert len(directed.axes[0].lines) == 3  # the imaginary part is drawn too
