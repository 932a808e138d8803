"""Archives are accepted by an independent judge, and labels come back as they were."""

import hashlib
import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from challenges import downloads
from challenges.checker import Rejected, itk_geometry, judge, judge_msd, member_to_file

from nnunet_ext.challenges.catalogue import get_challenge
from nnunet_ext.challenges.convert import Options as ConvertOptions
from nnunet_ext.challenges.convert import convert
from nnunet_ext.challenges.export import export
from nnunet_ext.challenges.msd import MSD
from nnunet_ext.challenges.submission import Options
from nnunet_ext.errors import ConfigurationError

TINY = (8, 8, 4)
TO_NNUNET = {"brats2019": {2: 1, 1: 2, 4: 3}, "brats2020": {2: 1, 1: 2, 4: 3}}
# challenge, task, what the full official set needs, split that is submitted
OFFICIAL = [
    ("amos22", 1, {"train": 1, "val": 100, "mr": 0}, "val"),
    pytest.param("amos22", 2, {"train": 1, "val": 100, "mr": 20}, "val", marks=pytest.mark.slow),
    ("btcv", None, {"train": 1, "test": 20}, "test"),
    pytest.param("brats2019", None, {"train": 1, "val": 125}, "val", marks=pytest.mark.slow),
    ("brats2020", None, {"train": 1, "val": 125}, "val"),
    ("kits19", None, {"train": 1, "test": 90}, "test"),
    ("lits17", None, {"train": 1, "test": 70}, "test"),
]
ALL = [
    ("amos22", 1),
    ("amos22", 2),
    ("btcv", None),
    ("brats2019", None),
    ("brats2020", None),
    ("kits19", None),
    ("lits17", None),
]
REGIONS = ["brats2019", "brats2020", "kits19", "lits17"]


def rule_of(name, task):
    return f"{name}-{task}" if task else name


def in_nnunet_values(name, labels):
    result = labels.copy()
    for theirs, ours in TO_NNUNET.get(name, {}).items():
        result[labels == theirs] = ours
    return result


def write_predictions(folder, name, cases):
    """What a perfect nnU-Net would write, with the other files of its folder."""
    folder.mkdir(parents=True)
    for case, (labels, affine) in cases.items():
        nibabel.save(nibabel.Nifti1Image(in_nnunet_values(name, labels), affine), folder / f"{case}.nii.gz")
    for other in ("dataset.json", "plans.json", "predict_from_raw_data_args.json"):
        (folder / other).write_text("{}")
    (folder / "case.npz").write_bytes(b"")
    return folder


def source_image(root, case):
    """The original first image of a case."""
    patterns = {
        "BraTS": f"{case}_t1.nii*",
        "case_": f"{case}/imaging.nii.gz",
    }
    pattern = next((p for start, p in patterns.items() if case.startswith(start)), f"{case}.nii*")
    return next(path for path in sorted(Path(root).rglob(pattern)) if path.is_file())


def selected(download, split, task):
    cases = download.cases[split]
    return {case: value for case, value in cases.items() if not (task == 1 and int(case[-4:]) > 500)}


@pytest.mark.parametrize(("name", "task", "sizes", "split"), OFFICIAL)
def test_the_official_set_is_accepted_from_the_download(tmp_path, name, task, sizes, split):
    download = getattr(downloads, name)(tmp_path / "download", shape=TINY, **sizes)
    cases = selected(download, split, task)
    predictions = write_predictions(tmp_path / "predictions", name, cases)
    output = tmp_path / "submission.zip"
    report = export([get_challenge(name, task)], predictions, tmp_path / "download", output)
    submitted = judge(rule_of(name, task), output, {case: source_image(tmp_path / "download", case) for case in cases})
    assert all(np.array_equal(submitted[case], labels) for case, (labels, _) in cases.items())
    assert f"{len(cases)} files" in report
    assert hashlib.sha256(output.read_bytes()).hexdigest() in report
    assert sorted(p.name for p in tmp_path.iterdir()) == ["download", "predictions", "submission.zip"]


@pytest.mark.parametrize(
    ("name", "task", "regions"), [(*c, False) for c in ALL] + [(name, None, True) for name in REGIONS]
)
def test_labels_come_back_as_they_were(tmp_path, monkeypatch, name, task, regions):
    challenge = get_challenge(name, task)
    download, dataset = converted(tmp_path, monkeypatch, name, task, regions)
    split = "val" if "val" in challenge.submission.splits else "test"
    train, target = (list(selected(download, s, task)) for s in ("train", split))
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    truth = {}
    for source, case in zip(train, target, strict=False):
        labels, _ = download.truth(source)
        _, affine = download.truth(case)
        array = np.asarray(nibabel.load(dataset / "labelsTr" / f"{source}.nii.gz").dataobj)
        array = through_region_training(dataset, array) if regions else array
        nibabel.save(nibabel.Nifti1Image(array, affine), predictions / f"{case}.nii.gz")
        truth[case] = labels
    output = tmp_path / "submission.zip"
    export([challenge], predictions, dataset / "imagesTs", output, Options(subset=True))
    references = {case: source_image(tmp_path / "download", case) for case in truth}
    submitted = judge(rule_of(name, task), output, references, official=False)
    assert truth and all(np.array_equal(submitted[case], labels) for case, labels in truth.items())


def converted(tmp_path, monkeypatch, name, task, regions):
    (tmp_path / "raw").mkdir()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    download = getattr(downloads, name)(tmp_path / "download", shape=TINY)
    convert(get_challenge(name, task), tmp_path / "download", ConvertOptions(regions=regions))
    return download, next((tmp_path / "raw").glob("Dataset*"))


def through_region_training(dataset, labels):
    """A region-trained nnU-Net sees the regions of a label map only, and writes a label map by nnU-Net's own code."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    description = json.loads((dataset / "dataset.json").read_text())
    manager = LabelManager(description["labels"], description["regions_class_order"])
    regions = [np.isin(labels, np.atleast_1d(region)) for region in manager.foreground_regions]
    return np.asarray(manager.convert_probabilities_to_segmentation(np.stack(regions).astype(np.float32)), np.uint8)


def test_the_decathlon_with_all_tasks_is_accepted(tmp_path):
    references, truth = msd(tmp_path, dict.fromkeys(downloads.MSD, 1))
    output = tmp_path / "submission.zip"
    report = export(
        list(MSD.values()), tmp_path / "predictions", tmp_path / "download", output, Options(subset=True), title="msd"
    )
    submitted = judge_msd(output, references)
    assert len(submitted) == 10
    assert all(np.array_equal(array, truth[case]) for case, array in submitted.items())
    assert "Task03_Liver/ without 10 cases that the organisers leave out" in report
    assert "Task08_HepaticVessel/ without 1 case that" in report


def msd(tmp_path, sizes, predicted=None):
    """Downloads of some tasks, and predictions of some of them in folders named as nnU-Net's data sets."""
    references, truth = {}, {}
    for folder, test in sizes.items():
        download = downloads.msd_task(tmp_path / "download", folder, train=1, test=test, shape=TINY)
        cases = download.cases["test"]
        references[folder] = {case: tmp_path / "download" / folder / "imagesTs" / f"{case}.nii.gz" for case in cases}
        truth.update({case: labels for case, (labels, _) in cases.items()})
        if predicted is None or folder in predicted:
            name = f"Dataset{int(folder[4:6]):03d}_{folder[7:]}"
            write_predictions(tmp_path / "predictions" / name, "msd", cases)
    return references, truth


@pytest.mark.slow
def test_the_whole_decathlon_has_876_files(tmp_path):
    references, _ = msd(tmp_path, dict.fromkeys(downloads.MSD))
    output = tmp_path / "submission.zip"
    export(list(MSD.values()), tmp_path / "predictions", tmp_path / "download", output)
    assert len(judge_msd(output, references)) == 876


def test_missing_tasks_are_an_error_or_background(tmp_path):
    sizes = {"Task02_Heart": 1, "Task05_Prostate": 1}
    references, _ = msd(tmp_path, sizes, predicted=["Task05_Prostate"])
    output, tasks = tmp_path / "submission.zip", [MSD[2], MSD[5]]
    folders = (tmp_path / "predictions", tmp_path / "download", output)
    with pytest.raises(ConfigurationError, match="Task02_Heart: no folder of this name .*--fill-missing-tasks"):
        export(tasks, *folders)
    assert not output.exists()
    export(tasks, *folders, Options(subset=True, fill_missing_tasks=True))
    submitted = judge_msd(output, references, ("02", "05"))
    assert not submitted[next(iter(references["Task02_Heart"]))].any()
    assert submitted[next(iter(references["Task05_Prostate"]))].any()


def test_left_out_cases_can_be_included(tmp_path):
    msd(tmp_path, {"Task08_HepaticVessel": 1})
    output = tmp_path / "submission.zip"
    predictions = tmp_path / "predictions" / "Dataset008_HepaticVessel"
    images = tmp_path / "download" / "Task08_HepaticVessel" / "imagesTs"
    export([MSD[8]], predictions, images, output, Options(subset=True, include_left_out=True))
    with zipfile.ZipFile(output) as archive:
        assert "Task08_HepaticVessel/hepaticvessel_247.nii.gz" in archive.namelist()


def test_every_folder_with_predictions_is_used_or_named(tmp_path):
    msd(tmp_path, {"Task02_Heart": 1, "Task09_Spleen": 1})
    predictions = tmp_path / "predictions"
    (predictions / "Dataset009_Spleen").rename(predictions / "task09_spleen")  # another case is no other name
    words = ([MSD[2], MSD[9]], predictions, tmp_path / "download", tmp_path / "s.zip", Options(subset=True))
    assert "2 files" in export(*words, title="msd", dry_run=True)
    write_predictions(predictions / "Dataset502_Heart", "msd", {})
    (predictions / "Dataset502_Heart" / "la_999.nii.gz").write_bytes(b"")
    write_predictions(predictions / "heart", "msd", {})
    (predictions / "heart" / "la_999.nii.gz").write_bytes(b"")
    with pytest.raises(ConfigurationError) as error:
        export(*words)
    assert "Dataset002_Heart and " in str(error.value) and "Dataset502_Heart are both of this task" in str(error.value)
    assert "heart holds predictions, but its name is that of no task" in str(error.value)


def test_a_single_task_of_the_decathlon_may_be_the_folder_itself(tmp_path):
    msd(tmp_path, {"Task02_Heart": 1})
    predictions, images = tmp_path / "predictions" / "Dataset002_Heart", tmp_path / "download" / "Task02_Heart"
    report = export(list(MSD.values()), predictions, images, tmp_path / "s.zip", Options(subset=True), title="msd")
    assert "msd: 1 file" in report and "Task09_Spleen: no predictions, left out" in report


def test_the_mapping_of_values_is_said(tmp_path):
    download = downloads.brats2020(tmp_path / "download", val=1, shape=TINY)
    predictions = write_predictions(tmp_path / "predictions", "brats2020", download.cases["val"])
    report = export([get_challenge("brats2020")], predictions, tmp_path / "download", tmp_path / "s.zip")
    assert "predictions have nnU-Net's values (--values); they became the challenge's: 1 to 2, 2 to 1, 3 to 4" in report


def test_a_mirrored_prediction_is_refused(tmp_path):
    """Image with two affines, the prediction with the second: every program shows them mirrored."""
    download = downloads.btcv(tmp_path / "download", shape=TINY)
    predictions = write_predictions(tmp_path / "predictions", "btcv", download.cases["test"])
    labels, affine = download.truth("img0061")
    mirrored = affine @ np.diag([-1.0, 1, 1, 1])
    mirrored[:3, 3] += affine[:3, 0] * (labels.shape[0] - 1)
    path = source_image(tmp_path / "download", "img0061")
    image = nibabel.load(path)
    image.set_sform(affine, 1)
    image.set_qform(mirrored, 1)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    nibabel.save(nibabel.Nifti1Image(labels[::-1], mirrored), predictions / "img0061.nii.gz")
    with pytest.raises(ConfigurationError, match="img0061.nii.gz: lies up to .* its affine differs"):
        export([get_challenge("btcv")], predictions, tmp_path / "download", tmp_path / "s.zip", Options(subset=True))


def test_stray_files_beside_a_nested_download_hide_nothing(tmp_path):
    download = downloads.btcv(tmp_path / "download", shape=TINY)
    predictions = write_predictions(tmp_path / "predictions", "btcv", download.cases["test"])
    nibabel.save(nibabel.Nifti1Image(np.zeros(TINY, np.uint8), np.eye(4)), tmp_path / "download" / "atlas.nii.gz")
    words = (predictions, tmp_path / "download", tmp_path / "s.zip", Options(subset=True))
    report = export([get_challenge("btcv")], *words, dry_run=True)
    assert "label0061.nii.gz <-" in report


@pytest.fixture
def lits(tmp_path):
    """LiTS, because its geometry differs from case to case; images, predictions."""
    download = downloads.lits17(tmp_path / "download", shape=TINY)
    return tmp_path / "download", write_predictions(tmp_path / "predictions", "lits17", download.cases["test"])


def test_the_archive_is_the_same_byte_for_byte(lits, tmp_path):
    images, predictions = lits
    outputs = [tmp_path / "one.zip", tmp_path / "two.zip"]
    for number, output in enumerate(outputs):
        for path in predictions.iterdir():
            path.touch()
        export([get_challenge("lits17")], predictions, images, output, Options(subset=True), processes=1 + number)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_nothing_in_the_archive_tells_the_time_or_the_machine(tmp_path):
    download = downloads.btcv(tmp_path / "download", shape=TINY)
    predictions = write_predictions(tmp_path / "predictions", "btcv", download.cases["test"])
    export([get_challenge("btcv")], predictions, tmp_path / "download", tmp_path / "s.zip", Options(subset=True))
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        for member in archive.infolist():
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            assert (member.create_system, member.external_attr) == (3, 0o644 << 16)
            assert archive.read(member)[3:9] == bytes(6)  # gzip: no name, no time


def test_a_dry_run_shows_the_plan_and_writes_nothing(lits, tmp_path):
    images, predictions = lits
    output = tmp_path / "submission.zip"
    before = sorted(tmp_path.rglob("*"))
    options = Options(subset=True)
    report = export([get_challenge("lits17")], predictions, images, output, options, dry_run=True)
    assert f"test-segmentation-1.nii <- {predictions / 'test-volume-1.nii.gz'}" in report
    assert sorted(tmp_path.rglob("*")) == before


def test_the_geometry_of_brats_is_exactly_the_images(tmp_path):
    download = downloads.brats2020(tmp_path / "download", val=1, shape=TINY)
    cases = download.cases["val"]
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for case, (labels, affine) in cases.items():
        rounded = affine.copy()
        rounded[:3, 3] += 1e-4  # as another reader may round it
        array = in_nnunet_values("brats2020", labels).astype(np.float64)  # whole numbers, another type
        nibabel.save(nibabel.Nifti1Image(array, rounded), predictions / f"{case}.nii.gz")
    output = tmp_path / "submission.zip"
    export([get_challenge("brats2020")], predictions, tmp_path / "download", output)
    case = next(iter(cases))
    submitted = member_to_file(output, f"{case}.nii.gz", tmp_path / "one.nii.gz")
    assert itk_geometry(submitted) == itk_geometry(source_image(tmp_path / "download", case))


def test_predictions_written_by_itk_lie_on_their_images_whatever_the_header_says(tmp_path):
    """Headers without geometry, and with two that disagree, are read differently by ITK and nibabel."""
    import SimpleITK as sitk

    images, predictions = tmp_path / "images", tmp_path / "predictions"
    images.mkdir()
    predictions.mkdir()
    labels = downloads.nested(np.random.default_rng(0), TINY, (1, 2))
    for number, (qform, sform) in enumerate([(0, 0), (1, 2), (2, 1)]):
        header = nibabel.Nifti1Header()
        header.set_data_shape(TINY)
        header.set_zooms((0.8, 0.7, 3))
        affine = np.diag([-0.8, -0.7, 3, 1])
        if qform:
            header.set_qform(affine, code=qform)
            affine[:3, 3] = 30
            header.set_sform(affine, code=sform)
        image = images / f"test-volume-{number}_0000.nii.gz"
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.int16), None, header), image)
        read = sitk.ReadImage(str(image))
        prediction = sitk.GetImageFromArray(sitk.GetArrayFromImage(read).astype(np.uint8))
        prediction.CopyInformation(read)
        sitk.WriteImage(prediction, str(predictions / f"test-volume-{number}.nii.gz"))
    export([get_challenge("lits17")], predictions, images, tmp_path / "s.zip", Options(subset=True))


def test_names_and_folder_can_be_changed_where_the_rules_are_not_known(tmp_path):
    download = downloads.btcv(tmp_path / "download", shape=TINY)
    predictions = write_predictions(tmp_path / "predictions", "btcv", download.cases["test"])
    options = Options(subset=True, name="seg_{id:03d}", folder="upload")
    export([get_challenge("btcv")], predictions, tmp_path / "download", tmp_path / "s.zip", options)
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist() == ["upload/seg_061.nii.gz", "upload/seg_062.nii.gz"]
    for template in ("label", "label{number}", "label{id:q}"):
        with pytest.raises(ConfigurationError, match="template"):
            Options(name=template).applied(get_challenge("btcv"))


@pytest.mark.parametrize(
    ("name", "stem", "submitted"),
    [
        ("btcv", "ABD_061", "label0061"),
        ("btcv", "label0061", "label0061"),
        ("lits17", "test_7", "test-segmentation-7"),
        ("brats2019", "HGG__BraTS19_CBICA_AAB_1", "BraTS19_CBICA_AAB_1"),
        ("kits19", "case_00210", "prediction_00210"),
    ],
)
def test_names_of_older_conversions_are_known(name, stem, submitted):
    submission = get_challenge(name).submission
    assert submission.name.format(id=submission.id_of(stem)) == submitted


@pytest.mark.parametrize(
    ("name", "task", "stem"),
    [
        ("btcv", None, "amos_0001"),
        ("amos22", 1, "amos_0501"),
        ("kits19", None, "case_00209"),
        ("lits17", None, "volume-3"),
        ("brats2020", None, "BraTS20_Training_001"),
        ("msd", 3, "spleen_1"),
    ],
)
def test_other_names_are_not(name, task, stem):
    assert get_challenge(name, task).submission.id_of(stem) is None


def test_the_judge_rejects_what_the_challenges_reject(tmp_path):
    """The judge of these tests is worth something only if it can say no."""
    download = downloads.brats2020(tmp_path / "download", val=2, shape=TINY, ending=".nii.gz")
    cases = download.cases["val"]
    references = {case: source_image(tmp_path / "download", case) for case in cases}

    def archive(change=lambda array, affine: (array, affine), folder="", ending=".nii.gz"):
        path = tmp_path / "judged.zip"
        with zipfile.ZipFile(path, "w") as opened:
            for case, (labels, affine) in cases.items():
                file = tmp_path / f"one{ending}"
                nibabel.save(nibabel.Nifti1Image(*change(labels, affine)), file)
                header = nibabel.load(references[case]).header
                image = nibabel.load(file)
                for form in ("qform", "sform"):
                    getattr(image, f"set_{form}")(image.affine, int(header[f"{form}_code"]))
                nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), file)
                opened.write(file, f"{folder}{case}{ending}")
        return path

    judge("brats2020", archive(), references, official=False)
    shifted = downloads.BRATS_AFFINE.copy()
    shifted[0, 3] += 0.01
    for bad in (
        archive(folder="results/"),
        archive(ending=".nii"),
        archive(lambda array, affine: (np.where(array == 4, 3, array).astype(np.uint8), affine)),
        archive(lambda array, affine: (array.astype(np.float32), affine)),
        archive(lambda array, affine: (array[:-1], affine)),
        archive(lambda array, affine: (array[..., None], affine)),
        archive(lambda array, affine: (array, shifted)),
    ):
        with pytest.raises(Rejected):
            judge("brats2020", bad, references, official=False)
    with pytest.raises(Rejected, match="2 cases"):
        judge("brats2020", archive(), references)
    with pytest.raises(Rejected, match="wrong files"):
        judge("brats2020", archive(), dict(list(references.items())[:1]), official=False)
