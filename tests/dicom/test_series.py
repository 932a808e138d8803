"""Which series are found, in which order their slices are, and what is said of those that are no regular volume."""

import os
import re
import shutil

import numpy as np
import pydicom
import pytest
from dicom.series import CORONAL, ORIENTATIONS, SAGITTAL, Phantom, noise, uid
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2KLossless,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from nnunet_ext.dicom.series import find_series
from nnunet_ext.dicom.slices import holds_dicom


def phantom(count=7, **facts):
    return Phantom(noise((count, 6, 8)), **facts)


def only_fault(folder):
    """What is said of the only series, which cannot be read."""
    found = find_series(folder)
    assert found.series == {} and len(found.faults) == 1
    return next(iter(found.faults.values()))


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_slices_are_ordered_along_the_normal(tmp_path, orientation):
    """Names of files and instance numbers run the other way; one slice lies in a folder below."""
    made = phantom(orientation=orientation)
    paths = made.write(tmp_path / "a")
    (tmp_path / "a" / "more").mkdir()
    paths[2] = shutil.move(paths[2], tmp_path / "a" / "more" / "x")
    (series,) = find_series(tmp_path).series.values()
    assert list(series.files) == paths
    assert series.uid == uid("study", "series") and series.folder == tmp_path / "a"
    geometry = series.geometry
    assert geometry.size == (8, 6, 7)
    np.testing.assert_allclose(geometry.spacing, (0.9, 0.75, 2.5), atol=1e-6)
    np.testing.assert_allclose(geometry.origin, made.origin)
    axes = np.stack([made.orientation[:3], made.orientation[3:], made.normal], axis=1)
    np.testing.assert_allclose(np.reshape(geometry.direction, (3, 3)), axes, atol=1e-6)
    assert np.linalg.det(np.reshape(geometry.direction, (3, 3))) == pytest.approx(1)


def test_other_files_are_passed_over_by_name(tmp_path):
    phantom().write(tmp_path / "ct")
    for number, (modality, sop) in enumerate([("RTSTRUCT", RTStructureSetStorage), ("SEG", SegmentationStorage)]):
        phantom(1, name=modality, modality=modality, sop=sop).write(tmp_path / f"{number}")
    phantom(2, name="scout", more={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}).write(tmp_path / "scout")
    phantom(1, name="dose", sop=SecondaryCaptureImageStorage).write(
        tmp_path / "dose", lambda z, made: delattr(made, "ImagePositionPatient")
    )
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.22", uid("sr"), "SR"
    report.file_meta = pydicom.dataset.FileMetaDataset()
    report.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    report.save_as(tmp_path / "report", enforce_file_format=True)
    (tmp_path / "readme.txt").write_text("no DICOM")
    (tmp_path / ".hidden.dcm").write_text("of the file system")
    shutil.copy(tmp_path / "ct" / "IM0001", tmp_path / "DICOMDIR")
    found = find_series(tmp_path)
    assert list(found.series) == ["ct"] and found.faults == {}
    notes = "\n".join(found.notes)
    assert "2 passed over, localizer: IM0001, IM0002" in notes
    for what in ("no DICOM file: readme.txt", "RT Structure Set Storage", "Segmentation Storage", "Enhanced SR Storage",
                 "secondary capture without a position"):  # fmt: skip
        assert f"1 passed over, {what}" in notes
    assert len(found.notes) == 6


def test_a_localizer_within_a_series_is_no_slice_of_it(tmp_path):
    def change(z, made):
        if z == 6:
            made.ImageType, made.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], list(SAGITTAL)

    phantom().write(tmp_path, change)
    found = find_series(tmp_path)
    assert [len(series.files) for series in found.series.values()] == [6]
    assert found.notes == ["1 passed over, localizer: IM0001"]


def test_holds_dicom_looks_below(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x.nii.gz").write_bytes(b"1" * 400)
    assert not holds_dicom(tmp_path)
    phantom(1).write(tmp_path / "a" / "b")
    assert holds_dicom(tmp_path)


# what a slice must be


def attributes(**values):
    """Changes the fourth slice; None takes an element away."""

    def change(z, made):
        for name, value in values.items() if z == 3 else ():
            if value is None:
                delattr(made, name)
            else:
                setattr(made, name, value)

    return change


def syntax(z, made):
    made.file_meta.TransferSyntaxUID = HTJ2KLossless
    made.PixelData = encapsulate([b"none"])


def colour(z, made):
    made.SamplesPerPixel, made.PhotometricInterpretation = 3, "RGB"


def several_frames(z, made):
    made.NumberOfFrames = 40


def lookup(z, made):
    made.ModalityLUTSequence = [Dataset()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attributes(ImagePositionPatient=None), "no ImagePositionPatient of 3 numbers"),
        (attributes(ImagePositionPatient=[1, 2]), "no ImagePositionPatient of 3 numbers"),
        (attributes(ImageOrientationPatient=None), "no ImageOrientationPatient of 6 numbers"),
        (attributes(PixelSpacing=None), "no PixelSpacing of 2 numbers"),
        (attributes(PixelSpacing=[0, 1]), "PixelSpacing that is not above 0"),
        (attributes(Rows=None), "no Rows"),
        (attributes(SOPInstanceUID=None), "no SOPInstanceUID"),
        (attributes(PhotometricInterpretation="MONOCHROME1"), "PhotometricInterpretation MONOCHROME1"),
        (attributes(RescaleSlope="2"), "RescaleSlope and RescaleIntercept that are not"),
        (attributes(RescaleSlope="0", RescaleIntercept="1"), "with a slope other than 0"),
        (colour, "colour; images of one value a pixel"),
        (several_frames, "CT Image Storage of several frames in one file"),
        (syntax, 'High-Throughput JPEG 2000.*pip install pylibjpeg "pylibjpeg-openjpeg>=2"'),
        (lookup, "ModalityLUTSequence"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_slice_is_said_with_its_file(tmp_path, change, message):
    phantom().write(tmp_path, change)
    fault = only_fault(tmp_path)
    assert re.search(message, fault) and "IM0004" in fault


def test_a_number_that_is_none_is_a_file_that_cannot_be_read(tmp_path):
    phantom().write(tmp_path)
    path = tmp_path / "IM0004"
    path.write_bytes(path.read_bytes().replace(b"-31.5\\12.25", b"-31.x\\12.25"))
    found = find_series(tmp_path)
    assert "header cannot be read" in found.faults["IM0004"]
    assert "missing slices" in found.faults[tmp_path.name]


BARE = (b"x" * 300, b"", b"", b"\x08\x00\x05\x00" + b"CS" * 100)


@pytest.mark.parametrize(("name", "content"), zip(("a.dcm", "IM0100", "a.IMA", "bare"), BARE, strict=True))
def test_a_file_that_should_be_dicom_is_a_fault(tmp_path, name, content):
    """Of itself, and of the series in its folder, whose first or last slice it may be."""
    phantom().write(tmp_path / "s")
    (tmp_path / name).write_bytes(content)
    found = find_series(tmp_path)
    assert list(found.series) == ["s"] and list(found.faults) == [name]
    assert "it is no DICOM file" in found.faults[name] or "DICOM without the preamble" in found.faults[name]
    shutil.move(tmp_path / name, tmp_path / "s" / name)
    found = find_series(tmp_path)
    assert list(found.faults) == [f"s/{name}", "s"]
    assert found.faults["s"] == f"{tmp_path}/s/{name} cannot be read, and may be one of its slices"


def test_links_to_nothing_and_pipes_are_faults(tmp_path):
    paths = phantom().write(tmp_path / "s")
    paths[-1].unlink()
    paths[-1].symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "s" / "pipe")
    assert holds_dicom(tmp_path)
    found = find_series(tmp_path)
    assert list(found.faults) == [f"s/{paths[-1].name}", "s/pipe", "s"] and not found.series
    assert "link to nothing, or no regular file" in found.faults["s/pipe"]


def test_half_a_header_is_a_fault(tmp_path):
    (path, *_) = phantom().write(tmp_path / "s")
    path.write_bytes(path.read_bytes()[:700])
    found = find_series(tmp_path)
    assert found.faults and all(path.name in name + fault for name, fault in found.faults.items())
    assert not found.series


# what a series must be


def test_a_missing_slice_is_named_with_its_neighbours(tmp_path):
    phantom().write(tmp_path, lambda z, made: z not in (2, 3))
    fault = only_fault(tmp_path)
    assert "missing slices: neighbours are 2.500 mm apart" in fault
    assert "7.500 mm between IM0006 at 102.500 mm and IM0003 at 110.000 mm" in fault


def test_a_missing_slice_of_four(tmp_path):
    phantom(4).write(tmp_path, lambda z, made: z != 1)
    assert "missing slices: neighbours are 2.500 mm apart, but 5.000 mm between IM0004" in only_fault(tmp_path)


def shifted(mm, of=3):
    """Moves one slice, or those from it on, along the normal of an axial series."""

    def change(z, made):
        if z == of:
            made.ImagePositionPatient = [*made.ImagePositionPatient[:2], made.ImagePositionPatient[2] + mm]

    return change


@pytest.mark.parametrize("spacing", [2.5, 0.4])
def test_irregular_distances_beyond_the_tolerance(tmp_path, spacing):
    """One hundredth of the spacing, but never less than what two decimals round."""
    tolerance = max(0.01, 0.01 * spacing)
    made = phantom(spacing=(spacing, 0.75, 0.9))
    made.write(tmp_path / "good", shifted(0.95 * tolerance))
    assert list(find_series(tmp_path / "good").series) == ["good"]
    made.write(tmp_path / "bad", shifted(1.1 * tolerance))
    fault = only_fault(tmp_path / "bad")
    assert "irregular distances of slices" in fault and "IM0004" in fault


def test_small_errors_that_add_up_are_seen(tmp_path):
    """Each distance is within 1 % of the others, and the middle slice 3 % away from where it should be."""

    def change(z, made):
        along = np.cumsum([0, *[2.52] * 10, *[2.48] * 10])[z]
        made.ImagePositionPatient = [0, 0, along]

    phantom(21).write(tmp_path, change)
    assert "irregular distances" in only_fault(tmp_path)


def test_two_slices_at_one_position(tmp_path):
    phantom().write(tmp_path, shifted(2.5))
    fault = only_fault(tmp_path)
    assert "several slices at 1 of 6 positions" in fault and "110.000 mm (IM0003, IM0004)" in fault


def test_the_same_slice_in_two_files(tmp_path):
    paths = phantom().write(tmp_path)
    shutil.copy(paths[1], tmp_path / "copy")
    assert "same SOPInstanceUID in several files" in (fault := only_fault(tmp_path))
    assert f"{paths[1]} and {tmp_path / 'copy'}" in fault


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("AcquisitionNumber", (1, 2, 3), "AcquisitionNumber (1, 2, 3)"),
        ("TemporalPositionIdentifier", (1, 2, 3), "TemporalPositionIdentifier (1, 2, 3)"),
        ("EchoNumbers", (1, 2, 3), "EchoNumbers (1, 2, 3)"),
        ("InstanceNumber", (1, 2, 3), "No element of the header tells them apart"),
    ],
)
def test_several_volumes_in_one_series(tmp_path, name, values, shown):
    for value in values:

        def change(z, made, value=value):
            setattr(made, name, value)
            made.SOPInstanceUID = uid(value, z)

        phantom(4).write(tmp_path / str(value), change)
    fault = only_fault(tmp_path)
    assert "it holds 3 volumes at the same 4 positions" in fault and shown in fault


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attributes(ImageOrientationPatient=list(CORONAL)), "mixed orientations"),
        (attributes(ImageOrientationPatient=[1, 0, 0, 0, 0.9998, 0.02]), "mixed orientations"),
        (attributes(Rows=8, Columns=6), r"mixed sizes \(rows, columns\): \(6, 8\)"),
        (attributes(PixelSpacing=[0.75, 0.91]), "mixed pixel spacings"),
        (attributes(FrameOfReferenceUID=uid("other")), "mixed frames of reference"),
        (attributes(Modality="MR"), "mixed modalities: CT"),
        (attributes(StudyInstanceUID=uid("other")), "mixed studies"),
        (attributes(Units="BQML"), "mixed units"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mixed_grids_are_named(tmp_path, change, message):
    phantom().write(tmp_path, change)
    fault = only_fault(tmp_path)
    assert re.search(message, fault)
    assert "(IM0001, IM0002, IM0003, IM0005 and 2 more)" in fault and "(IM0004)" in fault


@pytest.mark.parametrize("degrees", [0.5, 15])
def test_a_tilted_gantry_is_refused(tmp_path, degrees):
    """Slices are turned about x, and lie above one another along the patient's axis still."""
    a = np.deg2rad(degrees)
    made = phantom(12, orientation=(1, 0, 0, 0, np.cos(a), np.sin(a)))

    def change(z, dataset):
        dataset.ImagePositionPatient = [0, 0, 3.0 * z]

    made.write(tmp_path, change)
    fault = only_fault(tmp_path)
    assert "tilted gantry" in fault and f"{degrees:.2f} degrees" in fault


def test_a_tilt_within_a_tenth_of_a_pixel_is_none(tmp_path):
    def change(z, dataset):
        dataset.ImagePositionPatient = [0, 0.01 * z, 3.0 * z]

    phantom(7).write(tmp_path, change)
    assert len(find_series(tmp_path).series) == 1


def test_skewed_axes_are_refused(tmp_path):
    phantom().write(tmp_path, lambda z, made: setattr(made, "ImageOrientationPatient", [1, 0, 0, 0.1, 1, 0]))
    assert "two perpendicular unit vectors are expected" in only_fault(tmp_path)


def test_a_single_slice_needs_a_thickness(tmp_path):
    phantom(1).write(tmp_path / "thick")
    (series,) = find_series(tmp_path / "thick").series.values()
    assert series.geometry.size == (8, 6, 1) and series.geometry.spacing[2] == 2.5
    phantom(1).write(tmp_path / "thin", lambda z, made: delattr(made, "SliceThickness"))
    assert "single slice without SliceThickness (IM0001)" in only_fault(tmp_path / "thin")


def test_a_bad_series_does_not_cost_a_good_one(tmp_path):
    phantom(name="good").write(tmp_path / "good")
    phantom(name="bad").write(tmp_path / "bad", lambda z, made: z != 3)
    found = find_series(tmp_path)
    assert list(found.series) == ["good"] and list(found.faults) == ["bad"]


# names


def test_names_are_of_folders_and_of_series_where_a_folder_has_several(tmp_path):
    phantom(name="a").write(tmp_path / "patient 1" / "CT")
    phantom(name="b").write(tmp_path / "patient 2" / "CT")
    made = phantom(name="c", number=4, description="Leber / ven. Phase", sop=MRImageStorage, modality="MR")
    made.write(tmp_path / "patient 3")
    for number, name in enumerate("de"):
        more = phantom(
            name=name, number=5, description="PET", modality="PT", sop=PositronEmissionTomographyImageStorage
        )
        for path in more.write(tmp_path / "x"):
            shutil.move(path, tmp_path / "patient 3" / f"{number}_{path.name}")
    found = find_series(tmp_path)
    assert found.faults == {} and list(found.series) == list(find_series(tmp_path).series)
    first, second, third, fourth, fifth = sorted(found.series)
    assert (first, second, third) == ("patient_1_CT", "patient_2_CT", "patient_3_4_Leber_ven_Phase")
    assert all(name.startswith("patient_3_5_PET_") and len(name) == 24 for name in (fourth, fifth))
    assert {found.series[name].uid for name in (fourth, fifth)} == {uid("study", "d"), uid("study", "e")}


def test_names_do_not_depend_on_other_series_being_whole(tmp_path):
    paths = phantom(name="a", number=1).write(tmp_path)
    for path in phantom(name="b", number=2).write(tmp_path / "x"):
        shutil.move(path, tmp_path / f"b_{path.name}")
    before = list(find_series(tmp_path).series)
    assert before == [f"{tmp_path.name}_1_Abdomen", f"{tmp_path.name}_2_Abdomen"]
    paths[3].unlink()
    found = find_series(tmp_path)
    assert list(found.series) == before[1:] and list(found.faults) == before[:1]
