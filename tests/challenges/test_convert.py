"""Downloads become data sets that nnU-Net accepts, once, and nothing else is touched."""

import gzip
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from challenges import downloads

from nnunet_ext.challenges.catalogue import get_challenge
from nnunet_ext.challenges.convert import WORK_FOLDER, convert, convert_msd
from nnunet_ext.challenges.msd import MSD
from nnunet_ext.cli.convert import task_folders
from nnunet_ext.errors import ConfigurationError

TINY = (8, 8, 4)
BRATS_MAP = {2: 1, 1: 2, 4: 3}
# challenge, task, regions, folder, training cases, cases in imagesTs, labels of dataset.json
EXPECTED = [
    ("amos22", 1, False, "Dataset218_AMOS2022_task1", 3, 2, 16),
    ("amos22", 2, False, "Dataset219_AMOS2022_task2", 4, 3, 16),
    ("btcv", None, False, "Dataset017_BTCV", 3, 2, 14),
    ("brats2019", None, True, "Dataset043_BraTS2019", 3, 2, 4),
    ("brats2020", None, False, "Dataset082_BraTS2020", 3, 2, 4),
    ("kits19", None, True, "Dataset064_KiTS19", 3, 2, 3),
    ("lits17", None, False, "Dataset029_LiTS17", 3, 2, 3),
]
CHANNELS = {"brats2019": 4, "brats2020": 4}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "nnUNet_raw"


def nnunet_accepts(folder, monkeypatch):
    """nnU-Net's own check, with its workers in this process: starting them would take longer than their work."""
    from nnunetv2.experiment_planning import verify_dataset_integrity as module

    class Here:
        def __init__(self, *args):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def starmap(self, function, items):
            return [function(*item) for item in items]

        @classmethod
        def get_context(cls, method):
            return type("Context", (), {"Pool": Here})

    monkeypatch.setattr(module, "multiprocessing", Here)
    module.verify_dataset_integrity(str(folder), 1)


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino, p.stat().st_size) for p in [folder, *Path(folder).rglob("*")]}


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


@pytest.mark.parametrize(("name", "task", "regions", "folder", "train", "held_out", "labels"), EXPECTED)
def test_nnunet_accepts_what_becomes_of_a_download(
    tmp_path, raw, monkeypatch, capsys, name, task, regions, folder, train, held_out, labels
):
    download = getattr(downloads, name)(tmp_path / "download", shape=TINY)
    before = snapshot(tmp_path / "download")
    summary = convert(get_challenge(name, task), tmp_path / "download", regions=regions)
    assert snapshot(tmp_path / "download") == before
    dataset = raw / folder
    nnunet_accepts(dataset, monkeypatch)
    assert "Warning" not in capsys.readouterr().out  # nnU-Net warns of affines that differ
    channels = CHANNELS.get(name, 1)
    assert len(list((dataset / "imagesTr").iterdir())) == train * channels
    assert len(list((dataset / "imagesTs").iterdir())) == held_out * channels
    description = json.loads((dataset / "dataset.json").read_text())
    assert len(description["labels"]) == labels
    assert ("regions_class_order" in description) == regions
    assert description["numTraining"] == train
    assert f"training cases: {train} found" in summary
    for case in (path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").iterdir()):
        truth, affine = download.truth(case)
        if name.startswith("brats"):
            truth = np.vectorize(lambda v: BRATS_MAP.get(v, v))(truth)
        assert np.array_equal(voxels(dataset / "labelsTr" / f"{case}.nii.gz"), truth)
        image = nibabel.load(dataset / "imagesTr" / f"{case}_0000.nii.gz")
        np.testing.assert_allclose(image.affine, affine, rtol=1e-6, atol=1e-6)  # headers hold float32
        assert image.header.get_data_dtype() == np.int16
    assert not (dataset / WORK_FOLDER).exists()


def test_images_are_the_files_of_the_download_compressed_or_not(tmp_path, raw):
    downloads.kits19(tmp_path / "kits", shape=TINY)
    downloads.lits17(tmp_path / "lits", shape=TINY)
    for name in ("kits", "lits"):
        convert(get_challenge("kits19" if name == "kits" else "lits17"), tmp_path / name)
    theirs = tmp_path / "kits" / "data" / "case_00001" / "imaging.nii.gz"
    assert (raw / "Dataset064_KiTS19/imagesTr/case_00001_0000.nii.gz").read_bytes() == theirs.read_bytes()
    theirs = next((tmp_path / "lits").rglob("volume-1.nii"))
    ours = (raw / "Dataset029_LiTS17/imagesTr/volume-1_0000.nii.gz").read_bytes()
    assert gzip.decompress(ours) == theirs.read_bytes()


def test_converting_again_changes_nothing(tmp_path, raw):
    downloads.brats2020(tmp_path / "download", shape=TINY)
    challenge = get_challenge("brats2020")
    convert(challenge, tmp_path / "download", regions=True)
    before = snapshot(raw)
    summary = convert(challenge, tmp_path / "download", regions=True)
    assert snapshot(raw) == before
    assert "0 cases converted now, 5 were there already" in summary


def test_an_interrupted_conversion_goes_on_where_it_stopped(tmp_path, raw):
    downloads.btcv(tmp_path / "download", shape=TINY)
    convert(get_challenge("btcv"), tmp_path / "download")
    dataset = raw / "Dataset017_BTCV"
    complete = {p: p.read_bytes() for p in dataset.rglob("*") if p.is_file()}
    gone = [dataset / "dataset.json", dataset / "labelsTr" / "img0002.nii.gz"]
    for path in gone:
        path.unlink()
    (dataset / WORK_FOLDER).mkdir()  # what a killed conversion leaves
    (dataset / WORK_FOLDER / "imagesTr.img0003_0000.nii.gz").write_bytes(b"half")
    kept = {p: t for p, t in snapshot(dataset).items() if p.suffix == ".gz" and "img0002" not in p.name}
    summary = convert(get_challenge("btcv"), tmp_path / "download")
    assert "1 case converted now, 4 were there already" in summary
    assert {p: p.read_bytes() for p in dataset.rglob("*") if p.is_file()} == complete
    after = snapshot(dataset)
    assert all(after[p] == before for p, before in kept.items() if WORK_FOLDER not in p.parts)


def test_several_processes_do_the_same(tmp_path, raw):
    downloads.btcv(tmp_path / "download", shape=TINY)
    convert(get_challenge("btcv"), tmp_path / "download", dataset_id=1, name="One")
    convert(get_challenge("btcv"), tmp_path / "download", dataset_id=2, name="Two", processes=2)
    one, two = ({p.relative_to(d): p.read_bytes() for p in d.rglob("*.*")} for d in sorted(raw.iterdir()))
    assert one == two


def test_validation_cases_are_held_out_or_become_a_fold(tmp_path, raw):
    downloads.amos22(tmp_path / "download", shape=TINY)
    challenge = get_challenge("amos22", 1)
    convert(challenge, tmp_path / "download")
    held_out = raw / "Dataset218_AMOS2022_task1"
    assert sorted(p.name for p in (held_out / "labelsTs").iterdir()) == ["amos_0200.nii.gz", "amos_0201.nii.gz"]
    assert [p.name for p in (held_out / "imagesTest").iterdir()] == ["amos_0300_0000.nii.gz"]
    convert(challenge, tmp_path / "download", dataset_id=5, merge_validation=True)
    merged = raw / "Dataset005_AMOS2022_task1"
    splits = [{"train": ["amos_0001", "amos_0002", "amos_0003"], "val": ["amos_0200", "amos_0201"]}]
    assert json.loads((merged / "splits_final.json").read_text()) == splits
    preprocessed = Path(os.environ["nnUNet_preprocessed"]) / merged.name / "splits_final.json"
    assert json.loads(preprocessed.read_text()) == splits
    assert json.loads((merged / "dataset.json").read_text())["numTraining"] == 5
    assert [p.name for p in (merged / "imagesTs").iterdir()] == ["amos_0300_0000.nii.gz"]


def test_the_download_of_the_challenges_own_days_is_known(tmp_path, raw):
    downloads.amos22(tmp_path / "download", shape=TINY, old_layout=True)
    convert(get_challenge("amos22", 1), tmp_path / "download")
    dataset = raw / "Dataset218_AMOS2022_task1"
    assert [p.name for p in sorted((dataset / "imagesTs").iterdir())] == [f"amos_020{k}_0000.nii.gz" for k in range(2)]
    with pytest.raises(ConfigurationError, match="needs labels of the validation cases, and 2 of 2 have none"):
        convert(get_challenge("amos22", 1), tmp_path / "download", dataset_id=6, merge_validation=True)


def test_a_sheared_image_gets_a_reader_that_can_read_it(tmp_path, raw):
    """AMOS22 always has it; elsewhere only where it is needed."""
    download = downloads.btcv(tmp_path / "download", shape=TINY)
    convert(get_challenge("btcv"), tmp_path / "download", dataset_id=1)
    assert "overwrite_image_reader_writer" not in json.loads((raw / "Dataset001_BTCV/dataset.json").read_text())
    labels, affine = download.truth("img0061")
    path = next((tmp_path / "download").rglob("img0061.nii.gz"))
    downloads.save(path, labels.astype(np.int16), affine @ downloads.SHEAR, sform_only=True)
    convert(get_challenge("btcv"), tmp_path / "download", dataset_id=2)
    description = json.loads((raw / "Dataset002_BTCV/dataset.json").read_text())
    assert description["overwrite_image_reader_writer"] == "NibabelIOWithReorient"


def test_lits_images_without_geometry_get_their_label_maps(tmp_path, raw):
    download = downloads.lits17(tmp_path / "download", shape=TINY, identity=(1,))
    summary = convert(get_challenge("lits17"), tmp_path / "download")
    dataset = raw / "Dataset029_LiTS17"
    _, affine = download.truth("volume-1")
    original = next((tmp_path / "download").rglob("volume-1.nii"))
    for path in (dataset / "imagesTr/volume-1_0000.nii.gz", dataset / "labelsTr/volume-1.nii.gz"):
        np.testing.assert_allclose(nibabel.load(path).affine, affine, rtol=1e-6, atol=1e-6)
    assert np.array_equal(voxels(dataset / "imagesTr/volume-1_0000.nii.gz"), voxels(original))
    assert "volume-1: the image's header holds no geometry; the label map's is used for both" in summary


def test_the_summary_names_what_was_not_found_or_left_alone(tmp_path, raw):
    downloads.btcv(tmp_path / "download", train=28, shape=TINY)
    training = tmp_path / "download" / "Abdomen" / "RawData" / "Training"
    downloads.save(training / "label" / "label0061.nii.gz", np.zeros(TINY, np.uint8), np.eye(4))
    (training / "notes.txt").write_text("")
    summary = convert(get_challenge("btcv"), tmp_path / "download")
    assert "training cases: 28 found, 30 official in imagesTr" in summary
    assert "not found of the official training cases: img0039, img0040" in summary
    assert "left alone, because they are not official: 1 file with labels of test cases" in summary
    assert "left alone: 1 file with other names" in summary


def test_foreign_files_are_refused_and_stay(tmp_path, raw):
    downloads.btcv(tmp_path / "download", shape=TINY)
    foreign = raw / "Dataset017_BTCV" / "imagesTr" / "mine_0000.nii.gz"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"mine")
    with pytest.raises(ConfigurationError, match="holds 1 file that this conversion does not make"):
        convert(get_challenge("btcv"), tmp_path / "download")
    assert [p for p in raw.rglob("*") if p.is_file()] == [foreign]
    assert foreign.read_bytes() == b"mine"


def test_a_data_set_with_another_description_is_refused(tmp_path, raw):
    downloads.kits19(tmp_path / "download", shape=TINY)
    convert(get_challenge("kits19"), tmp_path / "download")
    before = snapshot(raw)
    with pytest.raises(ConfigurationError, match="dataset.json exists already with labels"):
        convert(get_challenge("kits19"), tmp_path / "download", regions=True)
    with pytest.raises(ConfigurationError, match="Data set number 64 is taken by .*Dataset064_KiTS19"):
        convert(get_challenge("kits19"), tmp_path / "download", name="Other")
    assert snapshot(raw) == before


@pytest.mark.parametrize("variable", ["nnUNet_preprocessed", "nnUNet_results"])
def test_a_number_that_is_taken_elsewhere_is_refused(tmp_path, raw, variable):
    downloads.kits19(tmp_path / "download", shape=TINY)
    (Path(os.environ[variable]) / "Dataset064_Other").mkdir()
    with pytest.raises(ConfigurationError, match="number 64 is taken by .*Dataset064_Other"):
        convert(get_challenge("kits19"), tmp_path / "download")
    assert list(raw.iterdir()) == []


def test_regions_are_refused_where_there_are_none(tmp_path, raw):
    downloads.btcv(tmp_path / "download", shape=TINY)
    with pytest.raises(ConfigurationError, match="BTCV abdomen has no nested regions"):
        convert(get_challenge("btcv"), tmp_path / "download", regions=True)


def test_the_decathlon_goes_through_nnunets_own_converter(tmp_path, raw, monkeypatch):
    """Two channels in one 4D file, and label maps of floating point numbers."""
    sources = {}
    for number, folder in ((5, "Task05_Prostate"), (10, "Task10_Colon")):
        sources[number] = downloads.msd_task(tmp_path / "download", folder, test=1, shape=TINY)
    assert [number for number, _ in task_folders(tmp_path / "download", None)] == [5, 10]
    number, folder = task_folders(tmp_path / "download", 5)[0]
    convert_msd(MSD[number], folder)
    dataset = raw / "Dataset005_Prostate"
    nnunet_accepts(dataset, monkeypatch)
    names = [f"prostate_{n:03d}_000{c}.nii.gz" for n in (1, 4) for c in (0, 1)]
    assert sorted(p.name for p in (dataset / "imagesTr").iterdir()) == names
    for case, (labels, _) in sources[5].cases["train"].items():
        assert np.array_equal(voxels(dataset / "labelsTr" / f"{case}.nii.gz"), labels)
    before = snapshot(raw)
    assert "0 cases converted now" in convert_msd(MSD[5], folder)
    assert snapshot(raw) == before


@pytest.mark.slow
def test_float_labels_of_the_colon_task_are_taken(tmp_path, raw, monkeypatch):
    downloads.msd_task(tmp_path / "download", "Task10_Colon", test=1, shape=TINY)
    summary = convert_msd(MSD[10], tmp_path / "download" / "Task10_Colon", dataset_id=77)
    nnunet_accepts(raw / "Dataset077_Colon", monkeypatch)
    assert "colon_001: labels were floating point numbers, all of them whole" in summary


@pytest.mark.slow
def test_a_failure_of_nnunets_converter_leaves_nothing(tmp_path, raw):
    downloads.msd_task(tmp_path / "download", "Task02_Heart", test=1, shape=TINY)
    broken = tmp_path / "download" / "Task02_Heart" / "dataset.json"
    broken.write_text("{")
    with pytest.raises(ConfigurationError, match="nnU-Net's converter failed"):
        convert_msd(MSD[2], broken.parent)
    assert list(raw.iterdir()) == []
