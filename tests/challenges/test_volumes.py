"""Files are read to their end, and written with another file's geometry."""

import gzip

import nibabel
import numpy as np
import pytest
from challenges import downloads

from nnunet_ext.challenges.volumes import (
    Unreadable,
    compress,
    encode,
    label_values,
    nifti_files,
    read_header,
    read_volume,
    shift_in_voxels,
)

AFFINE = np.array([[-0.8, 0.1, 0, 7], [0.1, 0.8, 0, -5], [0, 0, 2.5, 3], [0, 0, 0, 1]])


def test_the_geometry_fields_of_the_other_file_are_kept_bit_for_bit():
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_shape((4, 5, 6, 3))  # several channels in one file
    header.set_data_dtype(np.float32)
    header.set_zooms((0.8, 0.8, 2.5, 1))
    header.set_qform(np.diag([-0.8, 0.8, 2.5, 1]), code=1)
    header.set_sform(AFFINE, code=2)
    header.set_slope_inter(3, 10)
    header["descrip"] = b"made on a certain day"
    array = np.arange(120, dtype=np.uint8).reshape(4, 5, 6)
    image = nibabel.Nifti1Image.from_bytes(encode(array, header))
    assert np.array_equal(np.asanyarray(image.dataobj), array)
    assert image.header.endianness == "<"
    assert image.header.get_data_dtype() == np.uint8
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "xyzt_units"):
        assert np.array_equal(image.header[field], header[field]), field
    assert np.array_equal(image.header["pixdim"][:4], header["pixdim"][:4])
    assert image.header["descrip"] == b""


def test_compressed_bytes_are_the_same_every_time():
    data = bytes(range(256)) * 50
    assert compress(data) == compress(data)
    assert gzip.decompress(compress(data)) == data


def test_a_damaged_file_is_noticed_even_where_its_voxels_could_be_read(tmp_path):
    path = tmp_path / "a.nii.gz"
    downloads.save(path, np.zeros((8, 8, 8), np.uint8), AFFINE)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in the checksum at the end
    path.write_bytes(data)
    with pytest.raises(Unreadable, match="cannot be read"):
        read_volume(path)


def test_a_header_is_that_of_the_whole_file(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        downloads.save(tmp_path / name, np.zeros((4, 5, 6), np.int16), AFFINE)
        whole, header = read_volume(tmp_path / name), read_header(tmp_path / name)
        assert header.shape == whole.shape == (4, 5, 6)
        assert np.array_equal(header.affine, whole.affine)
        np.testing.assert_allclose(whole.spacing, np.linalg.norm(AFFINE[:3, :3], axis=0), rtol=1e-6)  # float32


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_values_of_label_maps(kind):
    array = np.zeros((3, 4, 5), kind)
    array[0, 0, :3] = 1, 255, 7
    assert label_values(array) == ([0, 1, 7, 255], [])


def test_values_that_are_not_labels():
    assert label_values(np.array([0.5, 1, -1, 256, 3])) == ([1, 3], [-1, 0.5, 256])
    values, others = label_values(np.array([0, np.nan, np.inf]))
    assert values == [0]
    assert len(others) == 2


def test_shifts_are_measured_in_voxels_at_the_worst_corner():
    moved = AFFINE.copy()
    moved[2, 3] += 1.0
    edge = np.linalg.norm(AFFINE[:3, 0])
    assert shift_in_voxels(AFFINE, moved, (4, 5, 6)) == pytest.approx(1 / edge)
    longer = np.diag([1, 1, 1.01, 1.0])
    assert shift_in_voxels(np.eye(4), longer, (2, 2, 101)) == pytest.approx(1.0)
    assert shift_in_voxels(AFFINE, AFFINE, (4, 5, 6)) == 0


def test_junk_is_passed_over(tmp_path):
    for name in ("b.nii.gz", "a.nii", "._a.nii", ".b.nii.gz", "a.npz", "plans.json"):
        (tmp_path / name).touch()
    assert [path.name for path in nifti_files(tmp_path)] == ["a.nii", "b.nii.gz"]
