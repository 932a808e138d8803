"""Files that are cut off are noticed, whole ones never are."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.prediction.images import check_whole


def written(folder, ending, kind=np.float32):
    array = (100 * np.random.default_rng(0).normal(size=(5, 6, 7))).astype(kind)
    path = folder / f"image{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII.GZ", ".nrrd", ".mha"])
@pytest.mark.parametrize("kind", [np.float32, np.int16, np.uint8])
def test_whole_files_are_whole(tmp_path, ending, kind):
    path = written(tmp_path, ending.lower(), kind)
    check_whole(path.rename(path.with_name(f"image{ending}")))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("missing", [1, 4, 10, 0.5])
def test_a_file_that_is_cut_off_is_refused(tmp_path, ending, missing):
    path = written(tmp_path, ending)
    data = path.read_bytes()
    cut = missing if missing >= 1 else int(len(data) * missing)
    path.write_bytes(data[:-cut])
    if ending == ".nii.gz" and missing < 9:  # of the checksum and the length only: all voxels are there
        check_whole(path)
        return
    sitk.ReadImage(str(path))  # which does not notice
    with pytest.raises(ConfigurationError, match=r"is cut off: it has \d+ of 1192 bytes"):
        check_whole(path)


def test_files_of_several_parts_and_with_more_at_the_end_are_whole(tmp_path):
    path = written(tmp_path, ".nii.gz")
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:500]) + gzip.compress(data[500:]) + gzip.compress(b""))
    check_whole(path)
    path.write_bytes(gzip.compress(data[:500]) + gzip.compress(data[500:-1]))
    with pytest.raises(ConfigurationError, match="1191 of 1192"):
        check_whole(path)
    path.write_bytes(gzip.compress(data + b"and more"))
    check_whole(path)


def test_a_header_with_extensions(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 100))
    nibabel.save(image, tmp_path / "image.nii")
    check_whole(tmp_path / "image.nii")
    data = (tmp_path / "image.nii").read_bytes()
    (tmp_path / "image.nii").write_bytes(data[:-1])
    with pytest.raises(ConfigurationError, match="is cut off"):
        check_whole(tmp_path / "image.nii")


def test_what_is_no_nifti_file_is_left_to_its_reader(tmp_path):
    (tmp_path / "image.nii.gz").write_bytes(b"no image")
    check_whole(tmp_path / "image.nii.gz")
    (tmp_path / "image.nii").write_bytes(b"")
    check_whole(tmp_path / "image.nii")
