"""However a scan is stored, it is drawn as radiologists look at it, with its sides named."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from report.folders import Model, store

from nnunet_ext.report.cases import Unavailable, load_case
from nnunet_ext.report.figures.overlay import WorstSlice, case_figure
from nnunet_ext.report.model_folder import read_model_folder
from nnunet_ext.report.orientation import direction_of, to_lps
from nnunet_ext.report.sections import overlays_section

SPACING = (3.0, 2.0, 1.0)  # z, y, x


def patient():
    """Feet to head, front to back, right to left: the first slice has 1, the front 2 and the right side 3."""
    volume = np.zeros((4, 5, 6), np.uint8)
    volume[0], volume[:, 0], volume[:, :, 0] = 1, 2, 3
    return volume


def stored(axes, path):
    """The patient in a file whose axes lie as the three letters say."""
    image = sitk.GetImageFromArray(patient())
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(sitk.DICOMOrient(image, axes), str(path))
    return path


ALL = ["".join(a) for p in itertools.permutations(("RL", "AP", "IS")) for a in itertools.product(*p)]


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("axes", ALL)
def test_every_way_of_storing_a_scan_ends_in_one(axes, reader, tmp_path):
    array, properties = reader().read_seg(str(stored(axes, tmp_path / "scan.nii.gz")))
    volume, spacing = to_lps(array[0], properties["spacing"], direction_of(properties))
    assert np.array_equal(volume, patient())
    assert spacing == pytest.approx(SPACING)


def test_oblique_scans_keep_their_nearest_axes():
    turn = np.deg2rad(20)
    oblique = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    assert np.array_equal(to_lps(patient(), SPACING, oblique)[0], patient())


@pytest.mark.parametrize(
    "properties",
    [
        {"spacing": (999, 1, 1)},
        {"sitk_stuff": {"direction": (1, 0, 0, 1)}},
        {"nibabel_stuff": {"original_affine": np.zeros((4, 4))}},
    ],
)
def test_files_that_do_not_say_how_they_lie(properties):
    assert direction_of(properties) is None


def shown(figure):
    """The letters of the first panel: left, right, top, bottom."""
    places = {(0.01, 0.5): "left", (0.99, 0.5): "right", (0.5, 0.99): "top", (0.5, 0.01): "bottom"}
    return {places[text.get_position()]: text.get_text() for text in figure.axes[0].texts}


@pytest.mark.parametrize(
    ("axis", "letters"),
    [
        (0, {"left": "R", "right": "L", "top": "A", "bottom": "P"}),
        (1, {"left": "R", "right": "L", "top": "S", "bottom": "I"}),
        (2, {"left": "A", "right": "P", "top": "S", "bottom": "I"}),
    ],
)
def test_the_letters_name_what_lies_there(axis, letters):
    """Looked up in the picture: each side of the volume has a value of its own, wherever it is drawn."""
    reference = np.ones((9, 9, 9), int)
    sides = {"I": 2, "S": 3, "A": 4, "P": 5, "R": 6, "L": 7}
    for letter, (which, end) in zip("ISAPRL", itertools.product(range(3), (0, -1)), strict=True):
        where = [slice(2, 7)] * 3
        where[which] = end
        reference[tuple(where)] = sides[letter]
    where = WorstSlice(axis, 4, 0, 0)
    figure = case_figure(
        reference * 1.0, reference, reference, 0 * reference, where, (1, 1, 1), {(1,): "a"}, in_lps=True
    )
    assert shown(figure) == letters
    picture = figure.axes[0].images[0]
    rows = np.asarray(picture.get_array())
    if picture.origin == "lower":
        rows = rows[::-1]
    middle = len(rows) // 2
    seen = {"left": rows[middle, 0], "right": rows[middle, -1], "top": rows[0, middle], "bottom": rows[-1, middle]}
    assert seen == {side: sides[letter] for side, letter in letters.items()}


def test_nothing_is_named_where_nobody_knows():
    reference = np.ones((1, 5, 5), int)
    where = WorstSlice(0, 0, 0, 0)
    figure = case_figure(None, reference, reference, 0 * reference, where, (9, 1, 1), {(1,): "a"})
    assert shown(figure) == {}


# a case of a model folder


def model_of(tmp_path, monkeypatch, axes="RAS"):
    made = Model(tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    made.fold("0", {"case": (patient() > 0, patient() > 1)})
    files = [*made.preprocessed.rglob("case.nii.gz"), *made.path.rglob("case.nii.gz"), *made.raw.rglob("case_*.nii.gz")]
    assert len(files) == 3
    for file in files:
        image = sitk.ReadImage(str(file))
        image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
        sitk.WriteImage(sitk.DICOMOrient(image, axes), str(file))
    model = read_model_folder(made.path)
    return model, model.scored[0].cases[0], files


def test_a_case_is_read_in_lps(tmp_path, monkeypatch):
    model, case, _ = model_of(tmp_path, monkeypatch)
    volumes = load_case(model, case)
    assert volumes.in_lps
    assert np.array_equal(volumes.reference, patient() > 0) and np.array_equal(volumes.prediction, patient() > 1)
    assert np.array_equal(volumes.image > 0, patient() > 0)


def test_however_a_scan_is_stored_page_and_viewer_have_the_same_picture(tmp_path, monkeypatch):
    """To the last byte of the PNG and of the volumes; the thick slices (3 mm) lie along another axis of each file."""
    seen = {}
    for axes in ("LPS", "RAS", "SRA", "PSL", "oblique"):
        _, _, files = model_of(tmp_path / axes, monkeypatch, "LPS")
        for file in files:
            store(file, axes)
        section = overlays_section(read_model_folder(files[1].parents[2]), viewer_mb=1)
        seen[axes] = (section.pictures[0].png, section.viewer.content)
        assert section.viewer.cases[0].sides_known
    for axes, made in seen.items():
        assert made == seen["LPS"], axes


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("content", [b"", b"half"])
def test_a_damaged_file_costs_its_own_case(number, content, tmp_path, monkeypatch):
    model, case, files = model_of(tmp_path, monkeypatch)
    whole = files[number].read_bytes()
    files[number].write_bytes(whole[: len(whole) // 2] if content else b"")
    if number == 2:
        volumes = load_case(model, case)
        assert volumes.image is None and "cannot be read" in volumes.remark
    else:
        with pytest.raises(Unavailable, match="cannot be read"):
            load_case(model, case)


def test_a_truncated_file_of_nibabel_costs_its_own_case(tmp_path, monkeypatch):
    model, case, files = model_of(tmp_path, monkeypatch)
    model.plans["image_reader_writer"] = "NibabelIO"
    files[1].write_bytes(files[1].read_bytes()[:-30])
    with pytest.raises(Unavailable, match="prediction .* cannot be read"):
        load_case(model, case)


def test_files_of_different_size_do_not_fit(tmp_path, monkeypatch):
    """The prediction's, which is refused, then the image's, without which the labels are drawn alone."""
    model, case, (_, prediction, image) = model_of(tmp_path, monkeypatch)
    for file in (image, prediction):
        sitk.WriteImage(sitk.ReadImage(str(file))[:-1], str(file))
        if file == image:
            volumes = load_case(model, case)
            assert volumes.image is None and "The labels are drawn alone." in volumes.remark
    with pytest.raises(Unavailable, match="they do not fit"):
        load_case(model, case)
