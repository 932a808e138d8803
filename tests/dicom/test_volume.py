"""The volume of a series: values and places by the standard's formulas, and by SimpleITK's own reader of series."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicom.series import ORIENTATIONS, Phantom, noise
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
)

from nnunet_ext.dicom.series import find_series
from nnunet_ext.dicom.volume import read_volume
from nnunet_ext.errors import ConfigurationError

SLOPES = [1, 0.37, 2.1234567, 0.5, 3.25, 0.0123, 1.5]  # the first is what SimpleITK takes the type of numbers from


def read(folder):
    (series,) = find_series(folder).series.values()
    return read_volume(series)


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_values_and_places(tmp_path, orientation, dtype):
    made = Phantom(noise(dtype=dtype), orientation=orientation, slopes=[1] * 7, intercepts=[-1024] * 7)
    made.write(tmp_path)
    volume = read(tmp_path)
    assert volume.GetPixelID() == sitk.sitkFloat32
    assert np.array_equal(sitk.GetArrayFromImage(volume), made.values)
    for z, y, x in ((0, 0, 0), (6, 29, 25), (3, 11, 2)):
        place = volume.TransformIndexToPhysicalPoint((x, y, z))
        np.testing.assert_allclose(place, made.world(z, y, x), atol=1e-4)


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_as_simpleitks_reader_of_series(tmp_path, orientation):
    """Its own search for the files and its own order, too."""
    made = Phantom(noise(), orientation=orientation, slopes=[2] * 7, intercepts=[-7] * 7)
    made.write(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    theirs, ours = reader.Execute(), read(tmp_path)
    assert ours.GetSize() == theirs.GetSize() == (26, 30, 7)
    assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
    for fact in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, fact)(), getattr(theirs, fact)(), atol=1e-6)


def test_each_slice_has_its_own_slope(tmp_path):
    made = Phantom(
        noise(dtype=np.uint16), slopes=SLOPES, intercepts=[0, 1, -2.5, 0, 0, 0, 10], modality="PT",
        sop=PositronEmissionTomographyImageStorage, more={"Units": "BQML"},
    )  # fmt: skip
    made.write(tmp_path)
    np.testing.assert_allclose(sitk.GetArrayFromImage(read(tmp_path)), made.values, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_without_a_slope_values_are_as_stored(tmp_path, dtype):
    made = Phantom(noise(dtype=dtype), modality="MR", sop=MRImageStorage)
    made.write(tmp_path)
    assert np.array_equal(sitk.GetArrayFromImage(read(tmp_path)), made.stored)


def test_twelve_bits_with_a_sign(tmp_path):
    """The four bits above them are no part of the value."""
    stored = np.clip(noise(), -2000, 2000)

    def change(z, made):
        made.BitsStored, made.HighBit = 12, 11
        made.PixelData = (stored[z].view(np.uint16) & 0x0FFF).tobytes()

    Phantom(stored).write(tmp_path, change)
    assert np.array_equal(sitk.GetArrayFromImage(read(tmp_path)), stored)


SYNTAXES = [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless,
    JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless,
]  # fmt: skip


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_transfer_syntaxes(tmp_path, syntax):
    made = Phantom(noise(dtype=np.uint16), syntax=syntax, slopes=[1] * 7, intercepts=[-1024] * 7)
    made.write(tmp_path)
    assert np.array_equal(sitk.GetArrayFromImage(read(tmp_path)), made.values)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless], ids=lambda syntax: syntax.name
)
def test_a_file_that_is_cut_off_is_named(tmp_path, syntax):
    """Wherever: what follows the voxels in a compressed file, and is missed by nobody, is eight bytes and a filler."""
    made = Phantom(noise(dtype=np.uint16), syntax=syntax)
    paths = made.write(tmp_path)
    whole = paths[4].read_bytes()
    refused = []
    for left_out in (*range(1, 30), 100, 400, 1200):
        paths[4].write_bytes(whole[:-left_out])
        try:
            voxels = sitk.GetArrayFromImage(read(tmp_path))
        except ConfigurationError as error:
            assert f"{paths[4]} cannot be decoded; it may be cut off" in str(error)
            refused.append(left_out)
        else:
            assert np.array_equal(voxels, made.values), left_out
    assert {*range(10, 30), 100, 400, 1200} <= set(refused)
