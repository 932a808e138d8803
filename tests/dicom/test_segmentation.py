"""DICOM segmentations, read by pydicom's raw pixels and by dcmqi: every voxel at its place, names, codes, colours."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom.series import ORIENTATIONS, Phantom, noise, uid

from nnunet_ext import __version__
from nnunet_ext.dicom import segmentation
from nnunet_ext.dicom.codes import ABNORMAL, ANATOMY, colour_of, concept_of
from nnunet_ext.dicom.segmentation import write_segmentation
from nnunet_ext.dicom.segments import Segment, segments_of
from nnunet_ext.dicom.series import find_series
from nnunet_ext.errors import ConfigurationError

LABELS = {"background": 0, "left kidney": 1, "liver": 2, "tumor": 3, "Hülle": 4, "ignore": 5}
SHAPE = (7, 31, 27)  # a frame is no whole number of bytes


def series_in(folder, **facts):
    Phantom(noise(SHAPE), **facts).write(folder / "series")
    return find_series(folder).series["series"]


def label_map(absent=(2,), seed=0):
    """Blocks of labels that touch borders, `absent` ones left out; the first slice is empty."""
    labels = np.kron(np.random.default_rng(seed).integers(0, 5, (7, 8, 7)), np.ones((1, 4, 4), int))[:, :31, :27]
    labels[np.isin(labels, absent)] = 0
    labels[0] = 0
    return labels.astype(np.uint8)


def by_pydicom(path, phantom):
    """Masks `[S, Z, Y, X]` from raw pixels; slices found by the positions that the frames have."""
    made = pydicom.dcmread(path)
    places = np.stack([phantom.position(z) for z in range(SHAPE[0])])
    masks = np.zeros((len(made.SegmentSequence), *SHAPE), bool)
    pixels = made.pixel_array.reshape(-1, *SHAPE[1:])
    for group, frame in zip(made.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        away = np.linalg.norm(places - np.array(group.PlanePositionSequence[0].ImagePositionPatient, float), axis=1)
        assert away.min() < 1e-4
        masks[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1, away.argmin()] = frame
    return masks


def by_dcmqi(path, phantom, folder):
    """The same by dcmqi's converter, by where each voxel of its images is; and what it says of the segments."""
    folder.mkdir()
    tool = shutil.which("segimage2itkimage") or Path(sys.executable).with_name("segimage2itkimage")
    command = [tool, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((folder / "meta.json").read_text())
    segments = [attributes[0] for attributes in facts["segmentAttributes"]]
    masks = np.zeros((len(segments), *SHAPE), bool)
    grid = sitk.Image(*reversed(SHAPE), sitk.sitkUInt8)
    grid.SetSpacing(phantom.spacing[::-1])
    grid.SetOrigin(phantom.origin)
    axes = np.stack([phantom.orientation[:3], phantom.orientation[3:], phantom.normal], axis=1)
    grid.SetDirection(axes.astype(float).ravel().tolist())
    for file in folder.glob("*.nrrd"):
        image = sitk.ReadImage(str(file))
        voxels = sitk.GetArrayFromImage(image)
        for z, y, x in np.argwhere(voxels):
            place = image.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
            index = grid.TransformPhysicalPointToContinuousIndex(place)
            assert np.abs(np.subtract(index, np.round(index))).max() < 1e-3
            i, j, k = np.round(index).astype(int)
            masks[voxels[z, y, x] - 1, k, j, i] = True
    return masks, segments, done.stdout + done.stderr


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_every_voxel_is_at_its_place(tmp_path, orientation):
    phantom = Phantom(noise(SHAPE), orientation=orientation)
    series = series_in(tmp_path, orientation=orientation)
    labels, path = label_map(), tmp_path / "seg.dcm"
    write_segmentation(labels, series, segments_of(LABELS), path)
    expected = np.stack([labels == value for value in (1, 2, 3, 4)])
    assert expected[0].any() and not expected[1].any()
    assert np.array_equal(by_pydicom(path, phantom), expected)
    masks, segments, _ = by_dcmqi(path, phantom, tmp_path / "dcmqi")
    assert np.array_equal(masks, expected)
    assert [one["labelID"] for one in segments] == [1, 2, 3, 4]


def test_what_the_file_says(tmp_path):
    series, path = series_in(tmp_path), tmp_path / "seg.dcm"
    write_segmentation(label_map(), series, segments_of(LABELS), path, "Dataset7, model, folds 0")
    made = pydicom.dcmread(path)
    source = pydicom.dcmread(series.files[0])
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
        assert made[name].value == source[name].value
    assert made.SeriesInstanceUID != source.SeriesInstanceUID and made.SegmentationType == "BINARY"
    assert made.Modality == "SEG" and made.SeriesNumber == 9003
    referenced = made.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert len(referenced.ReferencedInstanceSequence) == 7
    labels = [one.SegmentLabel for one in made.SegmentSequence]
    assert labels == ["left kidney", "liver", "tumor", "Hülle"]
    for one in made.SegmentSequence:
        assert one.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = one.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("nnunet_ext", __version__)
        assert algorithm.AlgorithmParameters == "model=Dataset7, model, folds 0"
    kinds = [one.SegmentedPropertyTypeCodeSequence[0] for one in made.SegmentSequence]
    assert [(kind.CodeValue, kind.CodingSchemeDesignator) for kind in kinds[:3]] == [
        ("64033007", "SCT"), ("10200004", "SCT"), ("108369006", "SCT"),
    ]  # fmt: skip
    assert kinds[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
    assert kinds[3].CodingSchemeDesignator == "99NNUNETEXT" and kinds[3].CodeMeaning == "Hülle"
    categories = [one.SegmentedPropertyCategoryCodeSequence[0].CodeValue for one in made.SegmentSequence]
    assert categories == ["91723000", "91723000", "49755003", "309825002"]
    numbers = {
        g.SegmentIdentificationSequence[0].ReferencedSegmentNumber for g in made.PerFrameFunctionalGroupsSequence
    }
    assert numbers == {1, 3, 4}  # the liver was not found, and is described


def test_dcmqi_reads_names_codes_and_colours(tmp_path):
    path = tmp_path / "seg.dcm"
    write_segmentation(label_map(), series_in(tmp_path), segments_of(LABELS), path)
    _, segments, said = by_dcmqi(path, Phantom(noise(SHAPE)), tmp_path / "dcmqi")
    assert "W:" not in said and "E:" not in said
    kidney, liver, tumor, _ = segments
    assert kidney["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"] == "Kidney"
    assert kidney["SegmentedPropertyTypeModifierCodeSequence"]["CodeMeaning"] == "Left"
    assert liver["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == "10200004"
    assert tumor["SegmentedPropertyCategoryCodeSequence"]["CodeValue"] == "49755003"
    for number, (one, name) in enumerate(zip(segments, [*LABELS][1:5], strict=True), start=1):
        expected = concept_of(name, number).colour
        assert np.abs(np.subtract(one["recommendedDisplayRGBValue"], expected)).max() <= 1  # CIELab and back


def test_a_label_map_of_background_only(tmp_path):
    path = tmp_path / "seg.dcm"
    write_segmentation(np.zeros(SHAPE, np.uint8), series_in(tmp_path), segments_of(LABELS), path)
    phantom = Phantom(noise(SHAPE))
    assert not by_pydicom(path, phantom).any()
    masks, segments, _ = by_dcmqi(path, phantom, tmp_path / "dcmqi")
    assert not masks.any() and len(segments) == 4


def test_regions_overlap(tmp_path):
    """A region is all values of the label map that lie in it, whatever order they are written in."""
    segments = segments_of({"background": 0, "whole": [1, 2, 4], "core": [2, 4], "inner": 4, "ignore": 5}, [1, 2, 4])
    assert segments == [Segment("whole", (1, 2, 4)), Segment("core", (2, 4)), Segment("inner", (4,))]
    labels, path = label_map(absent=(3,)), tmp_path / "seg.dcm"
    write_segmentation(labels, series_in(tmp_path), segments, path)
    expected = np.stack([np.isin(labels, values) for values in ((1, 2, 4), (2, 4), (4,))])
    phantom = Phantom(noise(SHAPE))
    assert np.array_equal(by_pydicom(path, phantom), expected)
    assert np.array_equal(by_dcmqi(path, phantom, tmp_path / "dcmqi")[0], expected)


def test_regions_that_label_maps_do_not_tell_are_refused():
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3}
    assert len(segments_of(labels, [1, 2, 3])) == 3
    for order in ([1, 3, 2], [1, 3, 3], [2, 3, 1], [3, 2, 1]):
        with pytest.raises(ConfigurationError, match="does not say which regions were found"):
            segments_of(labels, order)


def test_numbers_of_segments_have_no_gaps_where_labels_have(tmp_path):
    labels = label_map()
    path = tmp_path / "seg.dcm"
    labels[labels == 4] = 250
    write_segmentation(labels, series_in(tmp_path), segments_of({"background": 0, "b": 250, "a": 1, "c": 3}), path)
    expected = np.stack([labels == value for value in (250, 1, 3)])
    assert np.array_equal(by_pydicom(path, Phantom(noise(SHAPE))), expected)


def test_a_patients_name_in_another_character_set(tmp_path):
    series = series_in(tmp_path, more={"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Änne"})
    assert b"M\xfcller" in series.files[0].read_bytes()
    write_segmentation(label_map(), series, segments_of(LABELS), tmp_path / "seg.dcm")
    made = pydicom.dcmread(tmp_path / "seg.dcm")
    assert str(made.PatientName) == "Müller^Änne" and made.SegmentSequence[3].SegmentLabel == "Hülle"


def test_a_series_that_lacks_what_a_scanner_may_leave_out(tmp_path):
    def change(z, made):
        for name in ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName",
                     "StudyDate", "StudyTime", "PositionReferenceIndicator", "SliceThickness", "SeriesNumber",
                     "PatientName", "PatientID", "Manufacturer", "ImageType", "InstanceNumber"):  # fmt: skip
            delattr(made, name)

    phantom = Phantom(noise(SHAPE))
    phantom.write(tmp_path / "series", change)
    labels = label_map()
    write_segmentation(labels, find_series(tmp_path).series["series"], segments_of(LABELS), tmp_path / "seg.dcm")
    assert np.array_equal(by_pydicom(tmp_path / "seg.dcm", phantom)[0], labels == 1)


def test_directions_that_differ_in_their_last_digits(tmp_path):
    def change(z, made):
        made.ImageOrientationPatient = [1, 0, 1e-6 * z, 0, 1, 0]

    phantom, labels = Phantom(noise(SHAPE)), label_map()
    phantom.write(tmp_path / "series", change)
    write_segmentation(labels, find_series(tmp_path).series["series"], segments_of(LABELS), tmp_path / "seg.dcm")
    assert np.array_equal(by_pydicom(tmp_path / "seg.dcm", phantom)[0], labels == 1)


def test_slices_that_are_thicker_than_far_apart(tmp_path):
    """The segmentation's slices are as thick as its spacing; dcmqi reads that."""
    series = series_in(tmp_path, more={"SliceThickness": 5, "SpacingBetweenSlices": 1})
    write_segmentation(label_map(), series, segments_of(LABELS), tmp_path / "seg.dcm")
    measures = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (2.5, 2.5)
    assert list(measures.PixelSpacing) == [0.75, 0.9]


# what is refused


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda labels: np.flip(labels, 0), "differs from the label map"),
        (lambda labels: np.where(labels == 4, 0, labels), "frames of the label map are missing"),
        (lambda labels: np.where(labels == 4, 3, labels), "differs from the label map"),
    ],
    ids=["turned", "a label left out", "another label"],
)
def test_a_file_that_is_not_the_label_map_is_never_written(tmp_path, monkeypatch, how, message):
    labels, series, path = label_map(), series_in(tmp_path), tmp_path / "seg.dcm"
    path.write_bytes(b"before")
    pixels = segmentation._pixels
    monkeypatch.setattr(segmentation, "_pixels", lambda labels, segments: pixels(how(labels), segments))
    with pytest.raises(RuntimeError, match=message):
        write_segmentation(labels, series, segments_of(LABELS), path)
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 2


def test_frames_at_other_places_are_seen(tmp_path):
    labels, series, segments, path = label_map(), series_in(tmp_path), segments_of(LABELS), tmp_path / "seg.dcm"
    write_segmentation(labels, series, segments, path)
    positions = np.array([Phantom(noise(SHAPE)).position(z) for z in range(SHAPE[0])])
    with path.open("rb") as file:
        segmentation.check_equal(file, labels, positions, segments)
        with pytest.raises(RuntimeError, match="differs from the label map"):
            segmentation.check_equal(file, labels, positions + [0.1, 0, 0], segments)


def test_a_label_map_that_does_not_fit_is_refused(tmp_path):
    series, segments = series_in(tmp_path), segments_of(LABELS)
    with pytest.raises(
        ConfigurationError, match=r"has \(6, 31, 27\) slices, rows and columns, the series \(7, 31, 27\)"
    ):
        write_segmentation(label_map()[1:], series, segments, tmp_path / "seg.dcm")
    with pytest.raises(ConfigurationError, match=r"values \[4\], for which there is no segment"):
        write_segmentation(label_map(), series, segments[:3], tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_a_series_without_a_frame_of_reference_is_refused(tmp_path):
    Phantom(noise(SHAPE)).write(tmp_path, lambda z, made: delattr(made, "FrameOfReferenceUID"))
    (series,) = find_series(tmp_path).series.values()
    with pytest.raises(ConfigurationError, match="no FrameOfReferenceUID"):
        write_segmentation(label_map(), series, segments_of(LABELS), tmp_path / "seg.dcm")


# names


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("right_kidney", "64033007", "Right"),
        ("Kidney left", "64033007", "Left"),
        ("gall bladder", "28231008", None),
        ("Lungs", "39607008", None),
        ("postcava", "64131007", None),
        ("left adrenal gland", "23451007", "Left"),
        ("urinary bladder", "89837001", None),
        ("tumour", "108369006", None),
        ("liver tumor", None, None),
        ("prostate/uterus", None, None),
        ("left right lung", None, None),
        ("Leberé", None, None),
        ("liver ä", None, None),
        ("non-liver", None, None),
        ("anterior", None, None),
    ],
)
def test_only_names_that_are_exactly_one_structure_have_a_code(name, code, side):
    concept = concept_of(name, 1)
    assert (concept.kind[0] if concept.kind[1] == "SCT" else None) == code
    assert (concept.side[2] if concept.side else None) == side
    assert concept.kind[2] == name or code is not None


def test_every_keyword_of_the_tables_is_pydicoms():
    for number, name in enumerate([*ANATOMY, *ABNORMAL]):
        concept = concept_of(name, number)
        assert concept.kind[1] == "SCT" and concept.kind[0].isdigit()


def test_private_codes_differ_and_are_short():
    names = ["a" * 40 + end for end in "xyz"] + ["a/b", "a_b", "a b", "ä", "ö", "a\\b", "plain"]
    kinds = [concept_of(name, 1).kind for name in names]
    assert len({kind[0] for kind in kinds}) == len(names)
    assert all(0 < len(kind[0]) <= 16 and len(kind[2]) <= 64 and "\\" not in kind[2] for kind in kinds)
    assert kinds[-1] == ("plain", "99NNUNETEXT", "plain")


def test_colours_are_distinct():
    colours = np.array([colour_of(number) for number in range(1, 17)])
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(16)
    assert apart.min() >= 40
    assert concept_of("left kidney", 1).colour != concept_of("right kidney", 2).colour


def test_uids_of_the_phantom_are_valid():
    assert uid("a").is_valid and len(uid("a")) <= 64
