"""The tables of facts hold together."""

import re
import sys
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest
from challenges import downloads
from challenges.commands import run

from nnunet_ext.challenges.catalogue import CHALLENGES, get_challenge
from nnunet_ext.challenges.facts import map_values
from nnunet_ext.errors import ConfigurationError

TABLES = [challenge for tasks in CHALLENGES.values() for challenge in tasks.values()]


@pytest.mark.parametrize("challenge", TABLES, ids=lambda challenge: challenge.name)
class TestTable:
    def test_labels_are_what_nnunet_wants(self, challenge):
        assert list(challenge.nnunet_values) == list(range(len(challenge.labels)))
        assert challenge.labels["background"] == 0

    def test_the_map_to_the_challenge_loses_nothing(self, challenge):
        values = np.array(challenge.nnunet_values, np.uint8)
        there = map_values(values, challenge.to_challenge)
        assert sorted(there) == list(challenge.challenge_values)
        assert list(map_values(there, challenge.from_challenge)) == list(values)

    def test_regions_give_back_every_label(self, challenge):
        """nnU-Net paints each region over those before it, with its value of regions_class_order."""
        regions = list((challenge.regions or {}).values())
        assert len(challenge.region_order) == len(regions)
        painted = {}
        for values, order in zip(regions, challenge.region_order, strict=True):
            painted |= dict.fromkeys(values, order)
        if regions and challenge.name.partition(" ")[0] != "brats-ped":  # whose non-enhancing and edema stay apart
            assert painted == {value: value for value in challenge.nnunet_values if value}
        assert all(painted[value] == value for value in painted)

    def test_scored_structures_use_the_challenges_values(self, challenge):
        used = {value for values in challenge.metrics.structures.values() for value in values}
        assert used == set(challenge.challenge_values) - {0}

    def test_official_cases_have_names_that_export_knows_and_keeps_apart(self, challenge):
        for split, names in challenge.known.items():
            assert len(set(names)) == len(names) == challenge.counts[split]
        split = challenge.submission.splits[0]
        assert split in challenge.counts
        keys = [challenge.submission.id_of(name) for name in challenge.known.get(split, ())]
        assert None not in keys
        assert len({challenge.submission.name.format(id=key) for key in keys}) == len(keys)

    def test_patterns_compile(self, challenge):
        for files in challenge.files:
            re.compile(files.pattern)
        assert {files.channel for files in challenge.files} >= {None, 0}


def test_the_numbers_of_the_challenges():
    """Against the published numbers, typed anew."""
    counts = {c.name: (c.counts["train"], *(c.counts[split] for split in c.submission.splits)) for c in TABLES}
    assert counts["amos22 task 1"] == (200, 100, 200)
    assert counts["amos22 task 2"] == (240, 120, 240)
    assert counts["btcv"] == (30, 20)
    assert counts["brats2019"] == (335, 125, 166)
    assert counts["brats2020"] == (369, 125, 166)
    assert counts["kits19"] == (210, 90)
    assert counts["lits17"] == (131, 70)
    assert sum(values[1] for name, values in counts.items() if name.startswith("msd")) == 887
    tolerances = [get_challenge("msd", task).metrics.tolerance for task in range(1, 11)]
    assert tolerances == [5, 4, 7, 1, 4, 2, 5, 3, 3, 4]


# Structures in the order of their values, typed apart from the tables: amos22, msd: the dataset.json of the releases;
# btcv: syn3193805; kits23: kits23/configuration/labels.py; brats: the tissue lists of the lesion-wise scorers; lits17:
# the submission guide; flare: the order of the scorer's tolerances.
SECOND_SOURCE = {
    ("amos22", 1): "spleen, right kidney, left kidney, gall bladder, esophagus, liver, stomach, aorta, postcava, "
    "pancreas, right adrenal gland, left adrenal gland, duodenum, bladder, prostate/uterus",
    ("btcv", None): "spleen, right kidney, left kidney, gallbladder, esophagus, liver, stomach, aorta, inferior vena "
    "cava, portal and splenic vein, pancreas, right adrenal gland, left adrenal gland",
    ("kits19", None): "kidney, tumor",
    ("kits23", None): "kidney, tumor, cyst",
    ("lits17", None): "liver, lesion",
    ("msd", 1): "edema, non-enhancing tumor, enhancing tumour",
    ("msd", 2): "left atrium",
    ("msd", 3): "liver, cancer",
    ("msd", 4): "Anterior, Posterior",
    ("msd", 5): "PZ, TZ",
    ("msd", 6): "cancer",
    ("msd", 7): "pancreas, cancer",
    ("msd", 8): "Vessel, Tumour",
    ("msd", 9): "spleen",
    ("msd", 10): "colon cancer primaries",
    ("flare22", None): "liver, right kidney, spleen, pancreas, aorta, inferior vena cava, right adrenal gland, "
    "left adrenal gland, gallbladder, esophagus, stomach, duodenum, left kidney",
    ("brats-gli", 2023): "non-enhancing tumor core, FLAIR hyperintensity, enhancing tumor",
    ("brats-gli", 2024): "non-enhancing tumor core, FLAIR hyperintensity, enhancing tumor, resection cavity",
    ("brats-ped", 2024): "enhancing tumor, non-enhancing tumor, cystic component, edema",
}
SAME = {
    ("amos22", 2): ("amos22", 1),
    **{("brats-gli", year): ("brats-gli", 2024) for year in (2025, 2026)},
    **{("brats-met", year): ("brats-gli", 2024) for year in (2025, 2026)},
    **{("brats-met", year): ("brats-gli", 2023) for year in (2023, 2024)},
    **{("brats-ped", year): ("brats-ped", 2024) for year in (2025, 2026)},
    ("brats-ped", 2023): ("brats-gli", 2023),
    **{(name, year): ("brats-gli", 2023) for name in ("brats-men", "brats-ssa") for year in range(2023, 2027)},
}


@pytest.mark.parametrize("key", [(name, task) for name, tasks in CHALLENGES.items() for task in tasks], ids=str)
def test_names_and_values_are_those_of_a_second_source(key):
    challenge = get_challenge(*key)
    if key[0] in ("brats2019", "brats2020", "brats2021"):  # 1, 2, 4 in the challenge
        names = {"background": 0, "necrosis and non-enhancing tumor": 1, "edema": 2, "enhancing tumor": 4}
    elif key == ("flare23", None):
        names = {"background": 0, **{n: v for v, n in enumerate(SECOND_SOURCE["flare22", None].split(", "), 1)}}
        names["lesion"] = 14
    else:
        text = SECOND_SOURCE[SAME.get(key, key)]
        names = {"background": 0, **{name: value for value, name in enumerate(text.split(", "), 1)}}
    theirs = {name: challenge.to_challenge.get(value, value) for name, value in challenge.labels.items()}
    assert theirs == names


@pytest.mark.parametrize(
    ("name", "task", "file", "channel"),
    [
        ("brats2020", None, "BraTS20_Training_001/BraTS20_Training_001_t1ce.nii.gz", "T1ce"),
        ("brats2020", None, "BraTS20_Training_001/BraTS20_Training_001_t2.nii", "T2"),
        ("brats2021", None, "BraTS2021_00000/BraTS2021_00000_flair.nii.gz", "Flair"),
        ("brats-gli", 2023, "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz", "T1c"),
        ("brats-met", 2025, "BraTS-MET-00000-000/BraTS-MET-00000-000-t2w.nii.gz", "T2w"),
        ("brats-ped", 2026, "BraTS-PED-00000-000/BraTS-PED-00000-000-t2f.nii.gz", "T2f"),
    ],
)
def test_a_channel_has_the_file_of_its_name(name, task, file, channel):
    challenge = get_challenge(name, task)
    (files,) = [f for f in challenge.files if re.fullmatch(f.pattern, file)]
    assert challenge.channels[files.channel] == channel


@pytest.mark.parametrize(
    ("number", "split"), [(410, "train"), (499, "train"), (500, "train"), (501, None), (510, None)]
)
def test_task_1_of_amos_is_ct_up_to_500(number, split):
    case = f"amos_{number:04d}"
    path = PurePosixPath(f"amos22/imagesTr/{case}.nii.gz")
    assert get_challenge("amos22", 1).split(case, path, frozenset()) == split
    assert get_challenge("amos22", 2).split(case, path, frozenset()) == "train"


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("MICCAI_BraTS_2019_Data_Validation/HGG/a/a_t1.nii", "train"),  # the nearest telling folder
        ("HGG/MICCAI_BraTS_2019_Data_Validation/a/a_t1.nii", "val"),
        ("BraTS_2019_Val/a/a_t1.nii", "val"),
        ("evaluation/a/a_t1.nii", "train"),
        ("MICCAI_BraTS_2019_Data_Testing/a/a_t1.nii", "test"),
        ("ASNR-MICCAI-BraTS2023-GLI-Challenge-ValidationData/a/a-t1n.nii.gz", "val"),
    ],
)
def test_brats_cases_belong_to_the_set_of_their_folder(path, split):
    assert get_challenge("brats2019").split("a", PurePosixPath(path), frozenset()) == split


def test_where_a_missing_or_an_empty_prediction_is_an_error():
    rules = {c.name: (c.submission.missing, c.submission.empty) for c in TABLES}
    assert rules["kits19"] == rules["amos22 task 1"] == rules["btcv"] == ("error", "error")
    assert rules["brats2020"] == ("warn", "error")
    assert rules["msd task 6"] == rules["msd task 10"] == rules["brats-met 2023"] == ("error", "warn")
    lits = get_challenge("lits17").submission
    assert lits.expects == {1: "the scorer gives no liver score to a case without value 1 (liver)"}
    assert lits.id_of("test-volume-69") == 69 and lits.id_of("test-volume-70") is None
    sort = get_challenge("lits17").split
    cases = ("test-volume-69", "test-volume-70", "volume-130", "volume-131")
    assert [sort(case, PurePosixPath(case), frozenset()) for case in cases] == ["test", None, "train", None]


def test_tolerances_of_the_organisers():
    flare = get_challenge("flare23").metrics.tolerance
    assert list(flare.values()) == [5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3, 2]
    assert list(get_challenge("flare22").metrics.tolerance.values()) == [5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3]
    assert get_challenge("kits23").metrics.tolerance == {
        "kidney and mass": 1.0330772532390826, "mass": 1.1328796488598762, "tumor": 1.1498198361434828
    }  # fmt: skip
    assert len(get_challenge("kits23").known["train"]) == 489


# tables of users

TABLE = """
from nnunet_ext.challenges.facts import Challenge, Files, Metrics, Submission

def split(case, path, names):
    return "train" if "train" in path.parts else "test"

CHALLENGE = Challenge(
    name="ours", title="Our challenge", dataset_id=700, dataset_name="Ours", channels=("CT",),
    labels={"background": 0, "lung": 1},
    files=(Files(r"(?P<case>p\\d+)_ct.nii.gz"), Files(r"(?P<case>p\\d+)_mask.nii.gz", channel=None)),
    layout="train/p1_ct.nii.gz, train/p1_mask.nii.gz", split=split, counts={"train": None, "test": None},
    submission=Submission(prediction=r"p(?P<id>\\d+)", name="result{id}"),
    metrics=Metrics({"lung": (1,)}, ("dice",)),
)
"""


def test_a_table_of_ones_own_works_with_every_command(tmp_path, monkeypatch, capsys):
    table = tmp_path / "our_challenge.py"
    table.write_text(TABLE.replace("\\\\", "\\"))
    rng = np.random.default_rng(0)
    for name, split in (("p1", "train"), ("p2", "train"), ("p3", "test")):
        labels = downloads.nested(rng, (8, 8, 6), (1,))
        downloads.save(tmp_path / "download" / split / f"{name}_ct.nii.gz", labels.astype(np.int16), np.eye(4))
        downloads.save(tmp_path / "predictions" / f"{name}.nii.gz", labels, np.eye(4))
        if split == "train":
            downloads.save(tmp_path / "download" / split / f"{name}_mask.nii.gz", labels, np.eye(4))
    (tmp_path / "raw").mkdir()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code, out, err = run(capsys, "convert", table, tmp_path / "download", "-np", 2)  # workers find the table too
    assert code == 0, err
    assert "Our challenge -> " in out and "training cases: 2 found in imagesTr" in out
    more = ("--missing", "skip", "-np", 1)
    assert run(capsys, "score", table, tmp_path / "predictions", tmp_path / "download", *more)[0] == 0
    for name in ("p1", "p2"):
        (tmp_path / "predictions" / f"{name}.nii.gz").unlink()
    images = ("--images", tmp_path / "download", "-o", tmp_path / "s.zip", "-np", 1)
    assert run(capsys, "export", table, tmp_path / "predictions", *images)[0] == 0
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist() == ["result3.nii.gz"]


def test_a_table_may_take_other_formats(tmp_path, monkeypatch, capsys):
    import nibabel
    import SimpleITK as sitk

    text = TABLE.replace("\\\\", "\\").replace(".nii.gz", ".mha").replace('"ours"', '"mha"')
    (tmp_path / "mha_challenge.py").write_text(text)
    labels = downloads.nested(np.random.default_rng(0), (8, 7, 6), (1,))
    image = sitk.GetImageFromArray(labels.T.astype(np.int16))
    image.SetSpacing((0.8, 0.9, 3.0))
    image.SetOrigin((10, -20, 5))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    (tmp_path / "download" / "train").mkdir(parents=True)
    sitk.WriteImage(image, str(tmp_path / "download" / "train" / "p1_ct.mha"))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt8), str(tmp_path / "download" / "train" / "p1_mask.mha"))
    (tmp_path / "raw").mkdir()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code, _, err = run(capsys, "convert", tmp_path / "mha_challenge.py", tmp_path / "download", "-np", 1)
    assert code == 0, err
    for file in ("imagesTr/p1_0000.nii.gz", "labelsTr/p1.nii.gz"):
        written = sitk.ReadImage(str(tmp_path / "raw" / "Dataset700_Ours" / file))
        assert np.array_equal(sitk.GetArrayFromImage(written), labels.T)
        for what in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(written, what)() == pytest.approx(getattr(image, what)(), abs=1e-5)
    assert nibabel.load(tmp_path / "raw" / "Dataset700_Ours" / "labelsTr" / "p1.nii.gz").get_data_dtype() == np.uint8
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt8), str(predictions / "p1.mha"))
    more = ("-np", 1)
    code, out, err = run(capsys, "score", tmp_path / "mha_challenge.py", predictions, tmp_path / "download", *more)
    assert code == 0 and "1.0000 (1)" in out, err


def test_files_without_a_table_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "no_table_here.py").write_text("CHALLENGE = 7\n")
    code, _, err = run(capsys, "convert", tmp_path / "no_table_here.py", tmp_path)
    assert code == 1 and "has no CHALLENGE that is a nnunet_ext.challenges.facts.Challenge" in err
    (tmp_path / "json.py").write_text("")
    code, _, err = run(capsys, "convert", tmp_path / "json.py", tmp_path)
    assert code == 1 and "has the name of another Python module" in err


def test_tables_of_other_packages_are_found(monkeypatch):
    from nnunet_ext.challenges import catalogue

    class Entry:
        name, value = "theirs", "their_package:TABLE"

        @staticmethod
        def load():
            return {1: get_challenge("btcv")}

    monkeypatch.setattr(catalogue, "entry_points", lambda group: [Entry] if group == "nnunet_ext.challenges" else [])
    assert get_challenge("theirs", 1) is get_challenge("btcv")
    with pytest.raises(ConfigurationError, match="Unknown challenge 'nobodys'. Known: .*, theirs; or a Python file"):
        get_challenge("nobodys")


def test_unknown_challenges_and_tasks_are_refused_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="Unknown challenge 'kits'. Known: amos22, brats2019"):
        get_challenge("kits")
    with pytest.raises(ConfigurationError, match="msd has no task 11. Its tasks: 1, 2, 3"):
        get_challenge("msd", 11)
    with pytest.raises(ConfigurationError, match="msd has the tasks 1, 2, .* choose one with --task"):
        get_challenge("msd")
    with pytest.raises(ConfigurationError, match="btcv has no tasks; leave out --task 2"):
        get_challenge("btcv", 2)
