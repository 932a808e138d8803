"""Downloads become data sets that nnU-Net accepts, once, and nothing else is touched."""

import gzip
import json
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from challenges import downloads

from nnunet_ext.challenges.catalogue import get_challenge
from nnunet_ext.challenges.convert import Options, convert
from nnunet_ext.challenges.discover import _written_as_it_should, present
from nnunet_ext.challenges.msd import MSD
from nnunet_ext.challenges.raw_dataset import MANIFEST, WORK_FOLDER
from nnunet_ext.errors import ConfigurationError

TINY = (8, 8, 4)
LARGER = ("brats_gli", "brats_met", "brats_ped", "kits23")  # four boxes in one another need more room
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
    ("brats2021", None, True, "Dataset137_BraTS2021", 3, 2, 4),
    ("kits23", None, True, "Dataset220_KiTS2023", 3, 1, 4),
    ("flare22", None, False, "Dataset222_FLARE2022", 3, 2, 14),
    ("flare23", None, False, "Dataset223_FLARE2023", 3, 2, 15),
    ("brats_gli", 2023, True, "Dataset230_BraTS2023_GLI", 3, 2, 4),
    ("brats_gli", 2024, True, "Dataset231_BraTS2024_GLI", 3, 2, 5),
    ("brats_men", 2023, False, "Dataset240_BraTS2023_MEN", 3, 2, 4),
    ("brats_met", 2025, True, "Dataset252_BraTS2025_MET", 3, 2, 5),
    ("brats_ped", 2024, False, "Dataset261_BraTS2024_PED", 3, 2, 5),
    ("brats_ssa", 2026, True, "Dataset273_BraTS2026_SSA", 3, 2, 4),
]


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
    year = {"year": task} if (task or 0) > 2000 else {}
    download = getattr(downloads, name)(
        tmp_path / "download", shape=TINY if name not in LARGER else (16, 16, 8), **year
    )
    before = snapshot(tmp_path / "download")
    challenge = get_challenge(name.replace("_", "-"), task)
    summary = convert(challenge, tmp_path / "download", Options(regions=regions))
    assert snapshot(tmp_path / "download") == before
    dataset = raw / folder
    nnunet_accepts(dataset, monkeypatch)
    assert "Warning" not in capsys.readouterr().out  # nnU-Net warns of affines that differ
    channels = 4 if name.startswith("brats") else 1
    assert len(list((dataset / "imagesTr").iterdir())) == train * channels
    assert len(list((dataset / "imagesTs").iterdir())) == held_out * channels
    description = json.loads((dataset / "dataset.json").read_text())
    assert len(description["labels"]) == labels
    assert ("regions_class_order" in description) == regions
    assert description["numTraining"] == train
    assert f"training cases: {train} found" in summary
    for case in (path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").iterdir()):
        truth, affine = download.truth(case)
        if name in ("brats2019", "brats2020", "brats2021"):
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
    convert(challenge, tmp_path / "download", Options(regions=True))
    before = snapshot(raw)
    summary = convert(challenge, tmp_path / "download", Options(regions=True))
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
    convert(get_challenge("btcv"), tmp_path / "download", Options(dataset_id=1, name="One"))
    convert(get_challenge("btcv"), tmp_path / "download", Options(dataset_id=2, name="Two"), processes=2)
    one, two = ({p.relative_to(d): p.read_bytes() for p in d.rglob("*.*")} for d in sorted(raw.iterdir()))
    assert one == two


def test_validation_cases_are_held_out_or_become_a_fold(tmp_path, raw):
    downloads.amos22(tmp_path / "download", shape=TINY)
    challenge = get_challenge("amos22", 1)
    convert(challenge, tmp_path / "download")
    held_out = raw / "Dataset218_AMOS2022_task1"
    assert sorted(p.name for p in (held_out / "labelsTs").iterdir()) == ["amos_0200.nii.gz", "amos_0201.nii.gz"]
    assert [p.name for p in (held_out / "imagesTest").iterdir()] == ["amos_0300_0000.nii.gz"]
    convert(challenge, tmp_path / "download", Options(dataset_id=5, merge_validation=True))
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
        convert(get_challenge("amos22", 1), tmp_path / "download", Options(dataset_id=6, merge_validation=True))


def test_a_sheared_image_gets_a_reader_that_can_read_it(tmp_path, raw):
    """AMOS22 always has it; elsewhere only where it is needed."""
    download = downloads.btcv(tmp_path / "download", shape=TINY)
    convert(get_challenge("btcv"), tmp_path / "download", Options(dataset_id=1))
    assert "overwrite_image_reader_writer" not in json.loads((raw / "Dataset001_BTCV/dataset.json").read_text())
    labels, affine = download.truth("img0061")
    path = next((tmp_path / "download").rglob("img0061.nii.gz"))
    downloads.save(path, labels.astype(np.int16), affine @ downloads.SHEAR, sform_only=True)
    convert(get_challenge("btcv"), tmp_path / "download", Options(dataset_id=2))
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
        convert(get_challenge("kits19"), tmp_path / "download", Options(regions=True))
    with pytest.raises(ConfigurationError, match="Data set number 64 is taken by .*Dataset064_KiTS19"):
        convert(get_challenge("kits19"), tmp_path / "download", Options(name="Other"))
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
    with pytest.raises(ConfigurationError, match="BTCV abdomen has no regions"):
        convert(get_challenge("btcv"), tmp_path / "download", Options(regions=True))


def test_the_decathlon_goes_the_same_way(tmp_path, raw, monkeypatch):
    """Two channels in one 4D file, label maps of floating point numbers, folders in folders and behind links."""
    sources = {}
    for number, folder in ((5, "Task05_Prostate"), (10, "Task10_Colon")):
        sources[number] = downloads.msd_task(tmp_path / "download" / "msd", folder, test=1, shape=TINY)
    (tmp_path / "download" / "msd" / "Task10_Colon").rename(tmp_path / "elsewhere")
    (tmp_path / "download" / "Task10_Colon").symlink_to(tmp_path / "elsewhere")
    assert present(list(MSD.values()), tmp_path / "download") == [MSD[5], MSD[10]]
    convert(MSD[5], tmp_path / "download")
    summary = convert(MSD[10], tmp_path / "download", Options(dataset_id=77, name="Bowel"))
    assert "colon_001: labels were floating point numbers, all of them whole" in summary
    for number, dataset in ((5, raw / "Dataset005_Prostate"), (10, raw / "Dataset077_Bowel")):
        nnunet_accepts(dataset, monkeypatch)
        for case, (labels, affine) in sources[number].cases["train"].items():
            label = nibabel.load(dataset / "labelsTr" / f"{case}.nii.gz")
            assert np.array_equal(np.asarray(label.dataobj), labels)
            np.testing.assert_allclose(label.affine, affine, rtol=1e-6, atol=1e-6)
    names = [f"prostate_{n:03d}_000{c}.nii.gz" for n in (1, 4) for c in (0, 1)]
    images = raw / "Dataset005_Prostate" / "imagesTr"
    assert sorted(p.name for p in images.iterdir()) == names
    source = voxels(next((tmp_path / "download").rglob("imagesTr/prostate_001.nii.gz")))
    for channel in (0, 1):
        assert np.array_equal(voxels(images / names[channel]), source[..., channel])
    before = snapshot(raw)
    assert "0 cases converted now" in convert(MSD[5], tmp_path / "download")
    assert snapshot(raw) == before


def test_another_number_of_channels_is_named(tmp_path, raw):
    downloads.msd_task(tmp_path / "download", "Task05_Prostate", test=1, shape=TINY)
    path = next((tmp_path / "download").rglob("imagesTr/prostate_001.nii.gz"))
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[..., :1], image.affine), path)
    with pytest.raises(ConfigurationError, match=r"prostate_001.nii.gz: holds 1 channels, expected 2"):
        convert(MSD[5], tmp_path / "download")


# downloads that change


def test_a_label_that_was_corrected_is_converted_again(tmp_path, raw):
    download = downloads.kits19(tmp_path / "download", shape=TINY)
    convert(get_challenge("kits19"), tmp_path / "download")
    labels, affine = download.truth("case_00001")
    path = next((tmp_path / "download").rglob("case_00001/segmentation.nii.gz"))
    times = path.stat()
    corrected = labels.copy()
    corrected[corrected == 2] = 1
    downloads.save(path, corrected, affine, sform_only=True)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - 10**12))  # older than what was made of it
    target = raw / "Dataset064_KiTS19" / "labelsTr" / "case_00001.nii.gz"
    others = {p: t for p, t in snapshot(raw).items() if p.is_file() and "case_00001" not in p.name}
    summary = convert(get_challenge("kits19"), tmp_path / "download")
    assert "converted again, because their files in the download have changed: case_00001" in summary
    assert np.array_equal(voxels(target), corrected)
    assert all(snapshot(raw)[p] == t for p, t in others.items() if p.name != MANIFEST)
    path.touch()  # the same content, at another time
    assert "0 cases converted now, 5 were there already" in convert(get_challenge("kits19"), tmp_path / "download")


def test_without_a_list_files_that_are_newer_are_converted_again(tmp_path, raw):
    downloads.kits19(tmp_path / "download", shape=TINY)
    convert(get_challenge("kits19"), tmp_path / "download")
    (raw / "Dataset064_KiTS19" / MANIFEST).unlink()
    assert "0 cases converted now" in convert(get_challenge("kits19"), tmp_path / "download")
    (raw / "Dataset064_KiTS19" / MANIFEST).unlink(missing_ok=True)
    os.utime(next((tmp_path / "download").rglob("case_00001/segmentation.nii.gz")), (2**33, 2**33))
    assert "1 case converted now" in convert(get_challenge("kits19"), tmp_path / "download")


def test_a_download_can_grow(tmp_path, raw, monkeypatch):
    downloads.kits19(tmp_path / "download", shape=TINY)
    hidden = next((tmp_path / "download").rglob("case_00001"))
    hidden.rename(tmp_path / "case_00001")
    convert(get_challenge("kits19"), tmp_path / "download")
    (tmp_path / "case_00001").rename(hidden)
    assert "1 case converted now, 4 were there already" in convert(get_challenge("kits19"), tmp_path / "download")
    dataset = raw / "Dataset064_KiTS19"
    assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == 3
    nnunet_accepts(dataset, monkeypatch)


def test_cases_can_be_excluded_with_what_is_wrong_with_them(tmp_path, raw):
    downloads.kits19(tmp_path / "download", shape=TINY)
    next((tmp_path / "download").rglob("case_00001/segmentation.nii.gz")).write_bytes(b"damaged")
    with pytest.raises(ConfigurationError, match="case_00001/segmentation.nii.gz: cannot be read"):
        convert(get_challenge("kits19"), tmp_path / "download")
    summary = convert(get_challenge("kits19"), tmp_path / "download", Options(exclude=("case_00001",)))
    assert "note: excluded: case_00001" in summary and "4 cases converted now" in summary
    with pytest.raises(ConfigurationError, match="--exclude names case_00007, of which"):
        convert(get_challenge("kits19"), tmp_path / "download", Options(exclude=("case_00007",)))


def test_images_can_be_links(tmp_path, raw, monkeypatch):
    downloads.kits19(tmp_path / "download", shape=TINY)
    convert(get_challenge("kits19"), tmp_path / "download", Options(link=True))
    dataset = raw / "Dataset064_KiTS19"
    source = next((tmp_path / "download").rglob("case_00001/imaging.nii.gz"))
    assert (dataset / "imagesTr" / "case_00001_0000.nii.gz").samefile(source)
    nnunet_accepts(dataset, monkeypatch)
    label = next((tmp_path / "download").rglob("case_00001/segmentation.nii.gz"))
    assert not (dataset / "labelsTr" / "case_00001.nii.gz").samefile(label)


def test_on_another_disk_links_are_symbolic(tmp_path, raw, monkeypatch):
    from nnunet_ext.challenges import cases

    def other_disk(*args):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(cases.os, "link", other_disk)
    downloads.kits19(tmp_path / "download", shape=TINY)
    convert(get_challenge("kits19"), tmp_path / "download", Options(link=True))
    target = raw / "Dataset064_KiTS19" / "imagesTr" / "case_00001_0000.nii.gz"
    assert target.is_symlink() and target.resolve() == next((tmp_path / "download").rglob("case_00001/imaging.nii.gz"))


# files as people have them


def kits_label(tmp_path):
    download = downloads.kits19(tmp_path / "download", shape=TINY)
    path = next((tmp_path / "download").rglob("case_00001/segmentation.nii.gz"))
    return path, *download.truth("case_00001")


def test_a_mirrored_label_map_is_refused(tmp_path, raw):
    """The image's two affines differ, the label map's is the other one: every program shows them mirrored."""
    path, labels, affine = kits_label(tmp_path)
    image_path = path.with_name("imaging.nii.gz")
    image = nibabel.load(image_path)
    mirrored = affine @ np.diag([-1.0, 1, 1, 1])
    mirrored[:3, 3] += affine[:3, 0] * (labels.shape[0] - 1)
    image.set_sform(affine, 1)
    image.set_qform(mirrored, 1)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), image_path)
    downloads.save(path, labels[::-1], mirrored)
    convert(get_challenge("kits19"), tmp_path / "download")  # turned, so that it lies as it should
    ours = raw / "Dataset064_KiTS19" / "labelsTr" / "case_00001.nii.gz"
    where = nibabel.load(ours).affine @ [*np.argwhere(voxels(ours) == 1).mean(0), 1]
    expected = affine @ [*np.argwhere(labels == 1).mean(0), 1]
    np.testing.assert_allclose(where, expected, atol=1e-3)


def test_numbers_in_an_affine_that_are_not_finite_are_refused(tmp_path, raw):
    path, labels, affine = kits_label(tmp_path)
    image = nibabel.load(path.with_name("imaging.nii.gz"))
    image.header["srow_x"][0] = np.nan
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), path.with_name("imaging.nii.gz"))
    with pytest.raises(ConfigurationError, match="case_00001/segmentation.nii.gz: lies .*not finite"):
        convert(get_challenge("kits19"), tmp_path / "download")


def test_label_maps_in_another_order_of_axes_are_turned(tmp_path, raw):
    path, labels, affine = kits_label(tmp_path)
    order = [2, 0, 1]
    turned = labels.transpose(order)[:, ::-1]
    moved = affine[:, [*order, 3]] @ np.diag([1.0, -1, 1, 1])
    moved[:, 3] += affine[:, order[1]] * (turned.shape[1] - 1)
    downloads.save(path, turned, moved)
    summary = convert(get_challenge("kits19"), tmp_path / "download")
    assert "case_00001: the label map's axes lie in another order or direction" in summary
    assert np.array_equal(voxels(raw / "Dataset064_KiTS19" / "labelsTr" / "case_00001.nii.gz"), labels)


def test_a_place_that_differs_can_be_taken_as_it_is(tmp_path, raw):
    path, labels, affine = kits_label(tmp_path)
    affine[:3, 3] += 7
    downloads.save(path, labels, affine, sform_only=True)
    with pytest.raises(ConfigurationError, match="its affine differs"):
        convert(get_challenge("kits19"), tmp_path / "download")
    summary = convert(get_challenge("kits19"), tmp_path / "download", Options(geometry="warn"))
    assert "case_00001: the label map lies up to" in summary and "it is taken as it is" in summary
    assert np.array_equal(voxels(raw / "Dataset064_KiTS19" / "labelsTr" / "case_00001.nii.gz"), labels)
    downloads.save(path, labels[1:], affine, sform_only=True)  # another shape never
    with pytest.raises(ConfigurationError, match="has shape"):
        convert(get_challenge("kits19"), tmp_path / "download", Options(geometry="warn"))


def test_values_off_by_scaling_are_rounded(tmp_path, raw):
    path, labels, affine = kits_label(tmp_path)
    image = nibabel.Nifti1Image((labels * 19).astype(np.uint8), affine)
    image.header.set_slope_inter(1 / 19, 0)
    nibabel.save(image, path)
    stored = nibabel.load(path)
    stored.header.set_slope_inter(np.float32(1 / 19), 0)
    path.write_bytes(gzip.compress(nibabel.Nifti1Image((labels * 19).astype(np.uint8), None, stored.header).to_bytes()))
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[112:116] = np.float32(1 / 19).tobytes()  # scl_slope, which nibabel clears on writing
    path.write_bytes(gzip.compress(bytes(data)))
    assert not np.array_equal(nibabel.load(path).get_fdata(), labels)
    summary = convert(get_challenge("kits19"), tmp_path / "download")
    assert "case_00001: labels were floating point numbers, rounded to whole ones" in summary
    assert np.array_equal(voxels(raw / "Dataset064_KiTS19" / "labelsTr" / "case_00001.nii.gz"), labels)


def test_names_in_capitals_nifti_2_and_wrong_compression_are_taken(tmp_path, raw, monkeypatch):
    path, labels, affine = kits_label(tmp_path)
    image = nibabel.load(path.with_name("imaging.nii.gz"))
    data = np.asarray(image.dataobj)
    two = nibabel.Nifti2Image(data, image.affine)
    path.with_name("imaging.nii.gz").unlink()
    path.with_name("IMAGING.NII.GZ").write_bytes(gzip.compress(two.to_bytes()))
    path.write_bytes(nibabel.Nifti1Image(labels, affine).to_bytes())  # not compressed, whatever its name says
    other = next((tmp_path / "download").rglob("case_00000/imaging.nii.gz"))
    other.write_bytes(other.read_bytes() + b"trailing")
    convert(get_challenge("kits19"), tmp_path / "download")
    dataset = raw / "Dataset064_KiTS19"
    nnunet_accepts(dataset, monkeypatch)
    assert np.array_equal(voxels(dataset / "imagesTr" / "case_00001_0000.nii.gz"), data)
    assert np.array_equal(voxels(dataset / "labelsTr" / "case_00001.nii.gz"), labels)


def test_colours_are_no_labels(tmp_path, raw):
    path, labels, affine = kits_label(tmp_path)
    rgb = np.zeros(labels.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, affine), path)
    with pytest.raises(ConfigurationError, match="cannot be read .its voxels are colours"):
        convert(get_challenge("kits19"), tmp_path / "download")


def test_archives_and_equal_copies_are_named(tmp_path, raw):
    path, _, _ = kits_label(tmp_path)
    copy = path.parents[1] / "copy" / path.parent.name
    copy.mkdir(parents=True)
    (copy / path.name).write_bytes(path.read_bytes())
    (path.parents[1] / "more.zip").write_bytes(b"PK")
    summary = convert(get_challenge("kits19"), tmp_path / "download")
    assert "is the same as" in summary and "more.zip is not unpacked" in summary
    (copy / path.name).write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match="case_00001 is there twice"):
        convert(get_challenge("kits19"), tmp_path / "download")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "RawData.zip").write_bytes(b"PK")
    with pytest.raises(ConfigurationError, match="RawData.zip is not unpacked"):
        convert(get_challenge("btcv"), empty)


def test_two_conversions_do_not_meet(tmp_path, raw):
    fcntl = pytest.importorskip("fcntl")
    from nnunet_ext.challenges.raw_dataset import LOCK

    downloads.kits19(tmp_path / "download", shape=TINY)
    dataset = raw / "Dataset064_KiTS19"
    dataset.mkdir()
    with (dataset / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)  # even so
        with pytest.raises(ConfigurationError, match="Another conversion is writing into"):
            convert(get_challenge("kits19"), tmp_path / "download")
    convert(get_challenge("kits19"), tmp_path / "download")
    assert not (dataset / LOCK).exists()


def test_images_of_amos_without_a_hint_are_asked_for(tmp_path, raw):
    downloads.amos22(tmp_path / "download", shape=TINY, old_layout=True)
    for path in (tmp_path / "download").rglob("task*_dataset.json"):
        path.unlink()
    with pytest.raises(ConfigurationError, match="unpack imagesVa too"):
        convert(get_challenge("amos22", 1), tmp_path / "download")


def test_test_images_of_amos_stay_test_images_without_the_validation_folder(tmp_path, raw):
    import shutil

    downloads.amos22(tmp_path / "download", shape=TINY)
    for folder in ("imagesVa", "labelsVa"):
        shutil.rmtree(next((tmp_path / "download").rglob(folder)))
    test = next((tmp_path / "download").rglob("imagesTs/amos_0300.nii.gz"))
    test.rename(test.with_name("amos_0450.nii.gz"))  # the numbers of training and validation CTs end at 410
    summary = convert(get_challenge("amos22", 1), tmp_path / "download")
    assert "validation cases: 0 found" in summary and "test cases: 1 found" in summary


@pytest.mark.parametrize(("shift", "fine"), [(0.015, True), (0.03, False), (0.3, False)])
def test_how_far_a_label_map_may_lie_from_its_image(tmp_path, raw, shift, fine):
    """In voxels: what rounding does is far less, half a voxel is a real shift."""
    path, labels, affine = kits_label(tmp_path)
    affine[1, 3] += shift * abs(affine[1, 1])
    downloads.save(path, labels, affine, sform_only=True)
    if fine:
        convert(get_challenge("kits19"), tmp_path / "download")
    else:
        with pytest.raises(ConfigurationError, match="its affine differs"):
            convert(get_challenge("kits19"), tmp_path / "download")


def test_label_maps_get_the_header_of_their_image(tmp_path, raw):
    """Whatever their own says of codes and units: nnU-Net wants both alike to the last digit."""
    path, labels, affine = kits_label(tmp_path)
    image = nibabel.Nifti1Image(labels, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 3)
    nibabel.save(image, path)
    convert(get_challenge("kits19"), tmp_path / "download")
    ours = nibabel.load(raw / "Dataset064_KiTS19" / "labelsTr" / "case_00001.nii.gz").header
    theirs = nibabel.load(raw / "Dataset064_KiTS19" / "imagesTr" / "case_00001_0000.nii.gz").header
    for name in ("sform_code", "qform_code", "srow_x", "quatern_b", "qoffset_x", "xyzt_units"):
        assert np.array_equal(ours[name], theirs[name]), name
    assert int(theirs["sform_code"]) == 1


def test_names_of_cases_in_other_letters_are_refused_with_advice(tmp_path, raw):
    downloads.amos22(tmp_path / "download", shape=TINY)
    image = next((tmp_path / "download").rglob("imagesTr/amos_0001.nii.gz"))
    image.rename(image.with_name("AMOS_0001.nii.gz"))
    with pytest.raises(
        ConfigurationError, match=r"AMOS_0001.nii.gz: the case's name has other capital letters than AMOS"
    ):
        convert(get_challenge("amos22", 1), tmp_path / "download")


@pytest.mark.parametrize(
    ("pattern", "text", "fine"),
    [
        (r"img(?P<number>\d{4})\.nii", "IMG0001.NII", True),
        (r"(?P<case>(?:test-)?volume-\d+)\.nii", "test-volume-1.NII", True),
        (r"(?P<case>(?:test-)?volume-\d+)\.nii", "Test-volume-1.nii", False),
        (r"(?P<case>a\(b\)[^/]+)_x", "a(b)Q_X", True),
        (r"(?P<case>a\(b\)[^/]+)_x", "A(b)Q_x", False),
    ],
)
def test_letters_count_in_names_of_cases_alone(pattern, text, fine):
    match = re.fullmatch(pattern, text, re.IGNORECASE)
    assert _written_as_it_should(pattern, match) == fine
