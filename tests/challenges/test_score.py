"""Folders of predictions are scored, compared and written down, and nothing is scored if something is wrong."""

import csv
import json
import math

import nibabel
import numpy as np
import pytest
from challenges import downloads
from challenges.commands import run
from scipy import stats

from nnunet_ext.challenges.compare import bootstrap_interval, compare, comparison_table, wilcoxon_p
from nnunet_ext.challenges.facts import Metrics
from nnunet_ext.challenges.results import to_json
from nnunet_ext.challenges.score import score_folder
from nnunet_ext.challenges.scoring import Scoring

SHAPE = (12, 12, 6)
BRATS_2023 = {"dice", "hd95", "sensitivity", "specificity", "lesion_dice", "lesion_hd95"}
BRATS_2023 |= {"lesions_found", "lesions_invented", "lesions_missed"}
LABELS = {"background": 0, "outer": 1, "inner": 2}


def write(folder, name, array, affine=None):
    downloads.save(
        folder / f"{name}.nii.gz", array.astype(np.uint8), np.diag([-1, -1, 3, 1.0]) if affine is None else affine
    )


def moved(labels, by):
    return np.roll(labels, by, 0)


@pytest.fixture
def plain(tmp_path):
    """Labels of six cases in a data set, and two methods, the second always one voxel further off."""
    rng = np.random.default_rng(0)
    dataset = tmp_path / "Dataset001_Tiny"
    for number in range(6):
        labels = downloads.nested(rng, SHAPE, (1, 2))
        write(dataset / "labelsTr", f"case_{number}", labels)
        write(tmp_path / "good", f"case_{number}", moved(labels, number % 2))
        write(tmp_path / "worse", f"case_{number}", moved(labels, number % 2 + 1))
    description = {"labels": LABELS, "file_ending": ".nii.gz"}
    (dataset / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def words(folder, *more, predictions="good"):
    return "score", "plain", folder / predictions, folder / "Dataset001_Tiny" / "labelsTr", "-np", 1, *more


def results(folder, predictions="good"):
    return json.loads((folder / predictions / "scores.json").read_text())


def slow_dice(folder, predictions, values):
    scores = []
    for path in sorted((folder / "Dataset001_Tiny" / "labelsTr").iterdir()):
        a, b = (np.isin(np.asarray(nibabel.load(p).dataobj), values) for p in (folder / predictions / path.name, path))
        scores.append(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))
    return scores


def test_plain_folders_are_scored_by_their_data_sets_labels(plain, capsys):
    code, out, _ = run(capsys, *words(plain))
    assert code == 0
    scores = results(plain)
    for name, values in (("outer", [1]), ("inner", [2])):
        expected = slow_dice(plain, "good", values)
        assert [case["structures"][name]["dice"] for case in scores["cases"]] == pytest.approx(expected)
        assert scores["mean"][name]["dice"] == pytest.approx(np.mean(expected))
        assert f"{np.mean(expected):.4f}" in out
    # Moved by 0 or 1 voxel of 1 mm: all surfaces lie within the tolerance of 1 mm.
    assert scores["mean"]["inner"]["nsd"] == 1
    assert [case["structures"]["inner"]["hd95"] for case in scores["cases"]] == [0, 1] * 3
    rows = list(csv.reader((plain / "good" / "scores.csv").open()))
    assert rows[0] == ["case", "structure", "dice", "hd95", "nsd"]
    assert len(rows) == 1 + 6 * 2 + 2 + 2
    assert rows[-2:] == [["cases", "outer", "6", "6", "6"], ["cases", "inner", "6", "6", "6"]]
    assert float(rows[1][2]) == pytest.approx(scores["cases"][0]["structures"]["outer"]["dice"], rel=1e-5)


def test_the_conventions_stand_in_the_json(plain, capsys):
    run(capsys, *words(plain, "--tolerance", 2.5, "--both-empty", "perfect", "--hausdorff", "pooled"))
    conventions = results(plain)["conventions"]
    assert conventions["nsd_tolerance_mm"] == {"outer": 2.5, "inner": 2.5}
    assert conventions["surface"] == "elements" and "arXiv 1809.04430" in conventions["surface_text"]
    assert conventions["both_empty"] == "perfect"
    assert conventions["hausdorff"] == "pooled"
    assert conventions["one_empty_distance"] == "nan"
    assert conventions["structures"] == {"outer": [1], "inner": [2]}


def test_regions_and_the_ignore_label_of_a_data_set(plain, capsys):
    description = {"labels": {"background": 0, "whole": [1, 2], "inner": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    (plain / "Dataset001_Tiny" / "dataset.json").write_text(json.dumps(description))
    label = plain / "Dataset001_Tiny" / "labelsTr" / "case_0.nii.gz"
    array = np.asarray(nibabel.load(label).dataobj).copy()
    array[6:] = 3
    write(label.parent, "case_0", array)
    prediction = array.copy()
    prediction[6:] = 2  # does not count
    write(plain / "good", "case_0", prediction)
    code, _, _ = run(capsys, *words(plain))
    assert code == 0
    scores = results(plain)
    assert scores["cases"][0]["structures"]["whole"]["dice"] == 1
    assert scores["mean"]["whole"]["dice"] == pytest.approx(np.mean([1, *slow_dice(plain, "good", [1, 2])[1:]]))


def test_without_a_description_the_values_in_the_labels_count(plain, capsys):
    (plain / "Dataset001_Tiny" / "dataset.json").unlink()
    code, out, _ = run(capsys, *words(plain))
    assert code == 0
    assert set(results(plain)["mean"]) == {"label 1", "label 2"}
    assert "labels by their values" in out


def test_structures_that_are_nowhere_are_not_counted_as_anything(plain, capsys):
    for name in ("labelsTr", "good"):
        folder = plain / "Dataset001_Tiny" / name if name == "labelsTr" else plain / name
        array = np.asarray(nibabel.load(folder / "case_0.nii.gz").dataobj).copy()
        array[array == 2] = 1
        write(folder, "case_0", array)
    code, out, _ = run(capsys, *words(plain))
    scores = results(plain)
    assert scores["cases"][0]["structures"]["inner"]["dice"] is None
    assert scores["defined"]["inner"]["dice"] == 5
    assert scores["mean"]["inner"]["dice"] == pytest.approx(np.mean(slow_dice(plain, "good", [2])[1:]))
    line = next(line for line in out.splitlines() if line.startswith("inner"))
    assert line.count("(5)") == 3 and "(6)" not in line
    assert "in brackets: cases in which the number is defined, of 6" in out


def test_other_formats_are_scored_alike(plain, capsys):
    import SimpleITK as sitk

    run(capsys, *words(plain))
    before = results(plain)["mean"]
    for folder in (plain / "good", plain / "Dataset001_Tiny" / "labelsTr"):
        for path in folder.glob("*.nii.gz"):
            sitk.WriteImage(sitk.ReadImage(str(path)), str(path).replace(".nii.gz", ".nrrd"))
            path.unlink()
    code, _, _ = run(capsys, *words(plain))
    assert code == 0
    assert results(plain)["mean"]["inner"] == pytest.approx(before["inner"])


def test_both_definitions_of_surfaces_and_a_tolerance_for_each_structure(plain, capsys):
    means = {}
    for surface in ("elements", "voxels"):
        code, out, _ = run(capsys, *words(plain, "--surface", surface, "--tolerance", "0.5", "inner=3"))
        assert code == 0 and "NSD tolerance in mm: outer 0.5, inner 3" in out
        means[surface] = results(plain)["mean"]
        assert means[surface]["inner"]["nsd"] == 1 > means[surface]["outer"]["nsd"]
    assert "boundary voxels" in out
    assert means["elements"]["outer"]["nsd"] != pytest.approx(means["voxels"]["outer"]["nsd"], abs=0.01)


def test_the_average_is_over_structures_then_over_cases(plain, capsys):
    run(capsys, *words(plain))
    rows = [slow_dice(plain, "good", values) for values in ([1], [2])]
    assert results(plain)["average"]["dice"] == pytest.approx(np.mean(rows))
    assert results(plain)["average"]["dice"] != pytest.approx(np.mean([row[0] for row in rows]))


def test_the_core_of_a_tumour_is_necrosis_and_enhancing_tumour(tmp_path, capsys):
    rng = np.random.default_rng(0)
    ours, theirs = (np.array([0, 1, 2, 4])[rng.choice(4, SHAPE, p=(0.1, 0.2, 0.3, 0.4))] for _ in range(2))
    write(tmp_path / "p", "BraTS20_Training_001", ours)
    write(tmp_path / "labels", "BraTS20_Training_001", theirs)
    more = ("--values", "challenge", "--measures", "dice", "-np", 1)
    assert run(capsys, "score", "brats2020", tmp_path / "p", tmp_path / "labels", *more)[0] == 0
    scores = json.loads((tmp_path / "p" / "scores.json").read_text())["mean"]
    for structure, values in (("whole tumor", (1, 2, 4)), ("tumor core", (1, 4)), ("enhancing tumor", (4,))):
        a, b = (np.isin(array, values) for array in (ours, theirs))
        assert scores[structure]["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_what_is_taken_for_granted_of_values_is_said(tmp_path, capsys):
    download = downloads.brats2020(tmp_path / "download", train=2, shape=SHAPE, ending=".nii.gz")
    without = {}
    for name, (labels, affine) in download.cases["train"].items():
        write(tmp_path / "ours", name, np.choose(labels, [0, 2, 1, 0, 3]), affine)
        write(tmp_path / "labels", name, np.choose(labels, [0, 2, 1, 0, 3]), affine)
        without[name] = np.where(labels == 4, 1, labels)
        write(tmp_path / "low grade", name, without[name], affine)
    code, out, _ = run(capsys, "score", "brats2020", tmp_path / "ours", tmp_path / "labels", "-np", 1)
    assert code == 0
    assumed = json.loads((tmp_path / "ours" / "scores.json").read_text())["conventions"]["assumed"]
    assert assumed[0].startswith("labels have nnU-Net's values (BraTS20_Training_001.nii.gz tells)")
    assert assumed[1] == "predictions have nnU-Net's values (--values)"
    assert all(f"note: {text}" in out for text in assumed)
    code, _, err = run(capsys, "score", "brats2020", tmp_path / "ours", tmp_path / "low grade", "-np", 1)
    assert code == 1 and "nothing in them tells which. Say --label-values" in err
    more = ("--label-values", "challenge", "-np", 1)
    assert run(capsys, "score", "brats2020", tmp_path / "ours", tmp_path / "low grade", *more)[0] == 0


def test_kits_without_dice_has_no_composite(tmp_path, capsys):
    download = downloads.kits19(tmp_path / "download", shape=SHAPE)
    for case, (labels, affine) in download.cases["train"].items():
        write(tmp_path / "p", case, labels, affine)
    more = ("--measures", "hd95", "nsd", "-np", 1)
    code, out, _ = run(capsys, "score", "kits19", tmp_path / "p", tmp_path / "download", *more)
    assert code == 0 and "composite: -" in out


def test_3d_tiffs_have_the_voxel_size_of_their_sidecars(plain, capsys):
    import SimpleITK as sitk

    run(capsys, *words(plain, "--surface", "voxels"))
    before = results(plain)["mean"]
    for folder in (plain / "good", plain / "Dataset001_Tiny" / "labelsTr"):
        for path in folder.glob("*.nii.gz"):
            image = sitk.ReadImage(str(path))
            sitk.WriteImage(sitk.GetImageFromArray(sitk.GetArrayFromImage(image)), str(path)[:-7] + ".tif")
            # as nnU-Net's Tiff3DIO has it: in the order of the array
            (folder / (path.name[:-7] + ".json")).write_text(json.dumps({"spacing": image.GetSpacing()[::-1]}))
            path.unlink()
    code, _, _ = run(capsys, *words(plain, "--surface", "voxels"))
    assert code == 0 and results(plain)["mean"]["inner"] == pytest.approx(before["inner"])


FAULTS = {
    "a value that the data set does not know": (
        lambda p: write(p / "good", "case_1", np.where(np.indices(SHAPE)[0] == 0, 9, 1)),
        "case_1.nii.gz: holds the value 9, allowed are 0, 1, 2",
    ),
    "4D": (
        lambda p: write(p / "good", "case_1", np.ones((*SHAPE, 1))),
        "case_1.nii.gz: is 4D (12x12x6x1), expected 2D or 3D",
    ),
    "missing prediction": (
        lambda p: (p / "good" / "case_1.nii.gz").unlink(),
        "case_1: no prediction of this case in",
    ),
    "missing label": (
        lambda p: (p / "Dataset001_Tiny" / "labelsTr" / "case_1.nii.gz").unlink(),
        "case_1.nii.gz: no such label in",
    ),
    "other shape": (
        lambda p: write(p / "good", "case_1", np.ones((11, 12, 6))),
        "has shape 11x12x6, its label map has 12x12x6",
    ),
    "shifted": (
        lambda p: write(p / "good", "case_1", np.ones(SHAPE), np.diag([-1, -1, 3, 1.0]) + np.eye(4, k=3) * 2),
        "case_1.nii.gz: lies up to 2 voxels away from its label map",
    ),
    "unreadable": (
        lambda p: (p / "good" / "case_1.nii.gz").write_bytes(b"\x1f\x8b no"),
        "case_1.nii.gz: cannot be read (",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_scored_if_something_is_wrong(plain, capsys, fault):
    spoil, message = FAULTS[fault]
    spoil(plain)
    before = sorted(plain.rglob("*"))
    code, out, err = run(capsys, *words(plain))
    assert (code, out) == (1, "")
    assert message in err
    assert "1 problem, nothing was scored" in err
    assert sorted(plain.rglob("*")) == before


def test_missing_predictions_can_count_as_empty_or_be_skipped(plain, capsys):
    (plain / "good" / "case_1.nii.gz").unlink()
    expected = [score for n, score in enumerate(slow_dice_of_existing(plain)) if n != 1]
    assert run(capsys, *words(plain, "--missing", "empty"))[0] == 0
    assert results(plain)["mean"]["inner"]["dice"] == pytest.approx(np.sum(expected) / 6)
    assert run(capsys, *words(plain, "--missing", "skip"))[0] == 0
    assert results(plain)["mean"]["inner"]["dice"] == pytest.approx(np.mean(expected))


def slow_dice_of_existing(folder):
    absent = folder / "good" / "case_1.nii.gz"
    write(folder / "good", "case_1", np.zeros(SHAPE))
    scores = slow_dice(folder, "good", [2])
    absent.unlink()
    return scores


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--measures", "iou"), "Unknown measure iou. Known: dice, nsd"),
        (("--tolerance", "-1"), "--tolerance takes mm of at least 0"),
        (("--tolerance", "middle=1"), "STRUCTURE=MM for one of outer, inner; found 'middle=1'"),
        (("--tolerance", "much"), "found 'much'"),
        (("-o", "scores.txt"), "go into a .json file"),
        (("--task", "1"), "plain has no tasks"),
        (("--dataset-json", "nowhere.json"), "nowhere.json is not a file"),
        (("--compare", "nowhere"), "nowhere is not a folder"),
    ],
)
def test_bad_options_are_refused(plain, capsys, more, message):
    code, _, err = run(capsys, *words(plain, *more))
    assert code == 1
    assert message in err


def test_brats_is_scored_alike_with_either_set_of_values(tmp_path, capsys):
    """nnU-Net's values for predictions, the download's for labels, or the challenge's for both."""
    download = downloads.brats2020(tmp_path / "download", shape=SHAPE, ending=".nii.gz")
    for name, (labels, affine) in download.cases["train"].items():
        ours = np.choose(labels, [0, 2, 1, 0, 3])
        write(tmp_path / "nnunet", name, moved(ours, 1), affine)
        write(tmp_path / "challenge", name, moved(labels, 1), affine)
        write(tmp_path / "labels", name, ours, affine)
    common = ("-np", 1)
    assert run(capsys, "score", "brats2020", tmp_path / "nnunet", tmp_path / "download", *common)[0] == 0
    first = json.loads((tmp_path / "nnunet" / "scores.json").read_text())
    assert 0 < first["mean"]["enhancing tumor"]["dice"] < first["mean"]["whole tumor"]["dice"] < 1
    again = ("score", "brats2020", tmp_path / "challenge", tmp_path / "download", "--values", "challenge", *common)
    assert run(capsys, *again)[0] == 0
    assert json.loads((tmp_path / "challenge" / "scores.json").read_text())["cases"] == first["cases"]
    assert run(capsys, "score", "brats2020", tmp_path / "nnunet", tmp_path / "labels", *common)[0] == 0
    assert json.loads((tmp_path / "nnunet" / "scores.json").read_text())["cases"] == first["cases"]
    code, _, err = run(capsys, "score", "brats2020", tmp_path / "challenge", tmp_path / "labels", *common)
    assert code == 1
    assert "holds 4, so it has the challenge's values already; if all files do, see --values" in err


@pytest.mark.parametrize(
    ("name", "task", "keys"),
    [
        ("btcv", None, {"dice", "hd95", "hausdorff", "assd"}),
        ("amos22", 2, {"dice", "nsd"}),
        ("kits19", None, {"dice"}),
        ("lits17", None, {"dice", "voe", "rvd", "assd", "rmsd", "msd"}),
        ("kits23", None, {"dice", "nsd"}),
        ("flare22", None, {"dice", "nsd"}),
        ("flare23", None, {"dice", "nsd"}),
        ("brats2021", None, {"dice", "hd95", "sensitivity", "specificity"}),
        ("brats_gli", 2023, BRATS_2023),
        ("brats_ped", 2024, {"dice", "hd95", "sensitivity", "specificity"}),
        ("brats_met", 2025, {"dice", "hd95", "sensitivity", "specificity"}),
    ],
)
def test_every_challenge_scores_its_own_labels_as_perfect(tmp_path, capsys, name, task, keys):
    """Labels are found in the download under the challenge's own names."""
    download = getattr(downloads, name)(
        tmp_path / "download", **({"year": task} if (task or 0) > 2000 else {}), shape=SHAPE
    )
    name = name.replace("_", "-")
    for case, (labels, affine) in download.cases["train"].items():
        write(tmp_path / "predictions", case, labels, affine)
    task_words = ("--task", task) if task else ()
    more = (
        "--missing",
        "skip",
        "--values",
        "challenge",
        "-np",
        1,
        *task_words,
    )  # AMOS22 has labels of its validation cases too
    assert run(capsys, "score", name, tmp_path / "predictions", tmp_path / "download", *more)[0] == 0
    scores = json.loads((tmp_path / "predictions" / "scores.json").read_text())
    assert len(scores["cases"]) == len(download.cases["train"])
    assert set().union(*(values for values in scores["mean"].values())) == keys
    assert all(values["dice"] == 1 for values in scores["mean"].values())
    if name == "kits19":
        assert scores["totals"] == {"composite": 1}
    if name == "lits17":
        assert scores["totals"]["lesion_recall_iou>0.5"] == scores["totals"]["lesion_precision_iou>0.5"] == 1
        assert scores["totals"]["tumor_burden_rmse"] == 0


# two methods


def test_two_methods_are_compared_case_by_case(plain, capsys):
    code, out, _ = run(capsys, *words(plain, "--compare", plain / "worse"))
    assert code == 0
    rows = json.loads((plain / "good" / "scores_comparison.json").read_text())["rows"]
    row = next(r for r in rows if (r["structure"], r["measure"]) == ("inner", "dice"))
    differences = np.subtract(slow_dice(plain, "good", [2]), slow_dice(plain, "worse", [2]))
    assert list(row["differences"].values()) == pytest.approx(differences)
    assert row["mean_difference"] == pytest.approx(differences.mean())
    assert row["mean_difference"] > 0
    assert row["interval"][0] <= row["mean_difference"] <= row["interval"][1]
    assert row["p"] == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert (row["cases"], row["first_better"], row["equal"], row["left_out"]) == (6, 6, 0, 0)
    distance = next(r for r in rows if (r["structure"], r["measure"]) == ("inner", "hd95"))
    assert distance["mean_difference"] == -1  # lower is better
    assert distance["first_better"] == 6
    assert "inner      dice" in out
    assert (plain / "good" / "scores_comparison.png").read_bytes().startswith(b"\x89PNG")


def test_scoring_again_does_not_take_its_own_figure_for_a_prediction(plain, capsys):
    again = words(plain, "--compare", plain / "worse")
    first = run(capsys, *again)
    assert (first[0], run(capsys, *again)[:2]) == (0, first[:2])


def test_the_bootstrap_is_the_same_for_the_same_seed():
    differences = np.random.default_rng(0).normal(0.1, 1, 40)
    assert (
        bootstrap_interval(differences, 1) == bootstrap_interval(differences, 1) != bootstrap_interval(differences, 2)
    )
    low, high = bootstrap_interval(differences, 1)
    # Close to the interval of the normal approximation; 10000 samples scatter by about a hundredth of it.
    half = 1.96 * differences.std() / math.sqrt(40)
    assert (low, high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.1 * half)
    assert all(math.isnan(bound) for bound in bootstrap_interval(differences[:1], 1))


def test_the_bootstrap_is_that_of_10000_samples_drawn_one_by_one():
    differences = np.random.default_rng(1).normal(size=7)
    rng = np.random.default_rng(5)
    means = sorted(np.mean(differences[row]) for row in rng.integers(0, 7, (10_000, 7)))
    assert bootstrap_interval(differences, 5) == pytest.approx((np.quantile(means, 0.025), np.quantile(means, 0.975)))


def test_equal_methods_have_no_difference():
    assert wilcoxon_p(np.zeros(5)) == 1
    assert bootstrap_interval(np.zeros(5), 0) == (0, 0)
    assert math.isnan(wilcoxon_p(np.array([])))


def test_cases_without_a_number_are_left_out_of_a_comparison():
    def result(values):
        cases = [{"case": str(n), "structures": {"a": {"hd95": value}}} for n, value in enumerate(values)]
        return {"cases": cases, "mean": {"a": {"hd95": 0.0}}}

    row = compare(result([1, math.nan, math.inf, 4]), result([2, 3, 3, 5]))[0]
    assert (row.cases, row.left_out, row.difference, row.better) == (("0", "3"), 2, -1, 2)
    assert (row.only_first, row.only_second) == ((), ("1", "2"))
    text = comparison_table([row], "first", "second")
    assert "a hd95: only B has a number for 1, 2" in text and "nan" not in text
    nothing = comparison_table(compare(result([math.nan]), result([math.nan])), "first", "second")
    assert "nan" not in nothing and "only" not in nothing


def test_json_says_what_is_not_a_number():
    assert to_json({"a": [math.nan, math.inf, np.float64(2), np.int64(3)]}) == {"a": [None, "inf", 2.0, 3]}


def test_several_processes_score_the_same(plain):
    scoring = Scoring("test", Metrics({"inner": (2,)}, ("dice", "hd95")))
    folders = (plain / "good", plain / "Dataset001_Tiny" / "labelsTr")
    assert score_folder(scoring, *folders) == score_folder(scoring, *folders, processes=2)
