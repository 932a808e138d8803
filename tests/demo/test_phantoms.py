"""The generated phantoms: the same for the same seed, readable as an nnU-Net raw data set, worth segmenting."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.demo.phantoms import LABELS, generate_case, generate_dataset
from nnunet_ext.errors import ConfigurationError

ORGANS = {name: value for name, value in LABELS.items() if value}


def test_same_seed_gives_the_same_case():
    first, second = generate_case(3, 1), generate_case(3, 1)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert first[2] == second[2]


@pytest.mark.parametrize("other", [(4, 1), (3, 2)], ids=["seed", "case"])
def test_another_seed_or_case_is_another_patient(other):
    image, labels, spacing = generate_case(3, 1)
    other_image, other_labels, other_spacing = generate_case(*other)
    assert (labels != other_labels).mean() > 0.005
    assert (image != other_image).mean() > 0.5
    assert spacing != other_spacing


def test_every_case_has_all_organs_of_varied_size_and_contrast():
    for case in range(12):
        image, labels, spacing = generate_case(0, case)
        assert image.shape == labels.shape == (32, 64, 64)
        assert image.dtype == np.int16 and labels.dtype == np.uint8
        assert set(np.unique(labels)) == set(LABELS.values())
        sizes = {name: int((labels == value).sum()) for name, value in ORGANS.items()}
        assert min(sizes.values()) > 300
        assert max(sizes.values()) > 4 * min(sizes.values())
        means = [image[labels == value].mean() for value in ORGANS.values()]
        assert np.diff(sorted(means)).min() > 15, "organs must differ in Hounsfield units"
        assert image[labels == ORGANS["liver"]].std() > 14, "texture and noise"
        assert spacing[0] > 1.2 * spacing[1] == 1.2 * spacing[2], "anisotropic"


def test_organs_keep_their_millimetres_when_the_grid_changes():
    def volume(shape):
        _, labels, spacing = generate_case(0, 0, shape)
        return (labels == ORGANS["liver"]).sum() * np.prod(spacing)

    assert volume((48, 96, 96)) == pytest.approx(volume((32, 64, 64)), rel=0.05)


def test_the_data_set_is_complete_and_aligned(tmp_path):
    folder = generate_dataset(tmp_path / "Dataset998_Phantoms", training=5, test=2, shape=(16, 32, 32))
    dataset_json = json.loads((folder / "dataset.json").read_text())
    assert dataset_json["numTraining"] == 5
    assert dataset_json["labels"] == LABELS
    for part, count in (("Tr", 5), ("Ts", 2)):
        images = sorted((folder / f"images{part}").iterdir())
        labels = sorted((folder / f"labels{part}").iterdir())
        assert [p.name.replace("_0000.", ".") for p in images] == [p.name for p in labels]
        assert len(images) == count
        for image, label in zip(
            map(sitk.ReadImage, map(str, images)), map(sitk.ReadImage, map(str, labels)), strict=True
        ):
            assert image.GetSize() == label.GetSize() == (32, 32, 16)
            assert image.GetSpacing() == label.GetSpacing()
            assert image.GetSpacing()[2] > image.GetSpacing()[0]


def test_files_hold_what_generate_case_returns(tmp_path):
    folder = generate_dataset(tmp_path / "Dataset998_Phantoms", training=5, test=1, shape=(16, 32, 32), seed=7)
    image, labels, spacing = generate_case(7, 5, (16, 32, 32))
    stored = sitk.ReadImage(str(folder / "imagesTs" / "phantom_005_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(stored), image)
    np.testing.assert_allclose(stored.GetSpacing(), spacing[::-1], rtol=1e-5)
    stored = sitk.ReadImage(str(folder / "labelsTs" / "phantom_005.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(stored), labels)


def test_existing_files_are_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        generate_dataset(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_too_few_cases_for_five_folds_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="at least 5 training cases"):
        generate_dataset(tmp_path / "Dataset998_Phantoms", training=4)
