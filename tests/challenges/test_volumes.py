"""Files are read to their end, and written with another file's geometry."""

import gzip

import nibabel
import numpy as np
import pytest
from challenges import downloads

from nnunet_ext.challenges.checks import geometry_fault
from nnunet_ext.challenges.volumes import (
    Unreadable,
    Volume,
    compress,
    encode,
    is_orthonormal,
    label_values,
    onto_grid,
    read_header,
    read_volume,
    shift_in_voxels,
    volume_files,
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
    for name in ("b.nii.gz", "a.nii", "._a.nii", ".b.nii.gz", "a.npz", "plans.json", "D.NII.GZ", "c.mha"):
        (tmp_path / name).touch()
    assert [path.name for path in volume_files(tmp_path)] == ["D.NII.GZ", "a.nii", "b.nii.gz", "c.mha"]


def test_the_voxel_size_is_what_itk_takes(tmp_path):
    """The header's own numbers, where an affine says something else."""
    import SimpleITK as sitk

    header = nibabel.Nifti1Header()
    header.set_data_shape((4, 5, 6))
    header.set_zooms((0.7, 0.7, 5))
    header.set_qform(np.diag([-0.7, -0.7, 5, 1]), code=1)
    header.set_sform(np.eye(4), code=1)
    header["pixdim"][1:4] = 0.7, 0.7, 5
    path = tmp_path / "a.nii"
    path.write_bytes(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None, header).to_bytes())
    volume = read_volume(path)
    assert volume.spacing == pytest.approx((0.7, 0.7, 5))
    assert volume.spacing == pytest.approx(sitk.ReadImage(str(path)).GetSpacing())
    assert read_header(path).spacing == volume.spacing
    assert np.array_equal(volume.affine, np.eye(4))


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_every_format_lies_in_the_same_place(tmp_path, ending):
    import SimpleITK as sitk

    downloads.save(tmp_path / "a.nii.gz", np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / f"b{ending}"))
    first, second = read_volume(tmp_path / "a.nii.gz"), read_volume(tmp_path / f"b{ending}")
    assert np.array_equal(first.voxels, second.voxels)
    np.testing.assert_allclose(first.itk, second.itk, atol=1e-5)
    np.testing.assert_allclose(second.affine, AFFINE, atol=1e-5)
    header = read_header(tmp_path / f"b{ending}")
    assert header.shape == (2, 3, 4) and np.array_equal(header.affine, second.affine)


def test_itk_refuses_the_same_directions(tmp_path):
    for shear, fine in ((5e-5, True), (1e-3, False)):
        affine = np.eye(4)
        affine[0, 1] = shear
        downloads.save(tmp_path / "a.nii", np.zeros((4, 4, 4), np.uint8), affine, sform_only=True)
        volume = read_volume(tmp_path / "a.nii")
        assert (volume.itk is not None) == is_orthonormal(volume.affine) == fine


def test_a_volume_is_turned_onto_a_grid_only_where_nothing_else_differs(tmp_path):
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    downloads.save(tmp_path / "grid.nii", array, AFFINE)
    grid = read_volume(tmp_path / "grid.nii")
    moved = AFFINE[:, [1, 2, 0, 3]]
    downloads.save(tmp_path / "turned.nii", array.transpose(1, 2, 0), moved)
    found = onto_grid(read_volume(tmp_path / "turned.nii"), grid)
    assert np.array_equal(found.voxels, array)
    moved[:3, 3] += 1
    downloads.save(tmp_path / "shifted.nii", array.transpose(1, 2, 0), moved)
    assert onto_grid(read_volume(tmp_path / "shifted.nii"), grid) is None


def test_images_are_checked_without_their_scale_factor(tmp_path):
    image = nibabel.Nifti1Image(np.ones((3, 3, 3), np.int16), np.eye(4))
    image.header.set_slope_inter(2, -1024)
    data = bytearray(image.to_bytes())
    data[112:120] = np.array([2, -1024], np.float32).tobytes()
    (tmp_path / "a.nii").write_bytes(bytes(data))
    assert read_volume(tmp_path / "a.nii").voxels.max() == -1022
    plain = read_volume(tmp_path / "a.nii", scaled=False).voxels
    assert plain.dtype == np.int16 and plain.max() == 1


def test_two_files_that_meet_only_when_each_is_read_in_its_own_way_do_not_fit():
    other = AFFINE @ np.diag([-1.0, 1, 1, 1])
    shape = (4, 5, 6)

    def volume(nibabels, itks):
        return Volume(None, shape, nibabels, None, itks)

    assert geometry_fault(volume(AFFINE, other), volume(AFFINE, AFFINE), "it") is None  # in nibabel's way
    assert geometry_fault(volume(AFFINE, other), volume(other, other), "it") is None  # in ITK's
    for one, two in ((volume(other, AFFINE), volume(AFFINE, other)), (volume(other, None), volume(AFFINE, other))):
        assert "its affine differs" in geometry_fault(one, two, "it")
    assert "has shape" in geometry_fault(Volume(None, (4, 5, 7), AFFINE, None), volume(AFFINE, AFFINE), "it")
