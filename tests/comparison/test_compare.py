"""`nnunet_ext compare`: cases are paired, numbers are scipy's, what cannot be compared is refused, the page says it."""

import csv
import itertools
import json
import math
import re
import shlex
import shutil
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from end_to_end.stock import stock_architecture
from report.folders import COMPLEXITY, DATASET, E2ENET, LABELS, SHAPE, STRIDES, Model, Page, summary, write_json
from scipy import stats

from nnunet_ext.cli import main as cli
from nnunet_ext.comparison import sections
from nnunet_ext.comparison.compare import compare_models
from nnunet_ext.comparison.models import read_models
from nnunet_ext.comparison.scoring import compared_results
from nnunet_ext.comparison.statistics import MEAN, distribution, holm
from nnunet_ext.errors import ConfigurationError

FOLDS = range(5)
CASES = 3  # a fold


def phantom(rng):
    labels = np.zeros(SHAPE, int)
    z, y, x = (int(rng.integers(0, 3)) for _ in range(3))
    labels[z : z + 3, y : y + 7, x : x + 6] = 1
    labels[z + 1 : z + 2, y + 2 : y + 5, x + 2 : x + 4] = 2
    return labels


def spoilt(labels, rng, share):
    """Some voxels get a random label."""
    wrong = rng.random(labels.shape) < share
    return np.where(wrong, rng.integers(0, 3, labels.shape), labels)


def trained(root, trainer, share, *, seed, folds=FOLDS, architecture=None, prefix="case"):
    """A model folder whose predictions have that share of random voxels; the references depend on fold and case."""
    model = Model(root, trainer, architecture=architecture or stock_architecture(STRIDES))
    for fold in folds:
        cases = {}
        for number in range(CASES):
            reference = phantom(np.random.default_rng([fold, number]))
            prediction = spoilt(reference, np.random.default_rng([seed, fold, number]), share)
            if (seed, fold, number) == (1, 2, 0):  # the class is lost: a distance to it is not defined
                prediction = np.where(prediction == 2, 0, prediction)
            cases[f"{prefix}_{fold}{number}"] = (reference, prediction)
        folder = model.fold(fold, cases)
        if trainer == "E2ENetTrainer":
            write_json(folder / "complexity.json", COMPLEXITY)
        (folder / "checkpoint_final.pth").write_bytes(b"x" * 1000 * (1 + seed))
    return model


def compare(models, *words, names):
    """Runs the command and returns page, JSON and CSV rows."""
    output = models[0].root / "compare.html"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in models[0].environment.items():
            patch.setenv(name, value)
        folders = [f"{names[k]}={model.path}" if k in names else str(model.path) for k, model in enumerate(models)]
        code = cli.main(["compare", *folders, "-o", str(output), "--overwrite", "-np", "1", *map(str, words)])
    assert code == 0
    with output.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    return Page(output.read_text()), json.loads(output.with_suffix(".json").read_text()), rows


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [
        trained(root, "E2ENetTrainer", 0.06, seed=0, architecture=E2ENET),
        trained(root, "nnUNetTrainer", 0.10, seed=1),
        trained(root, "DiNTSTrainer", 0.30, seed=2),
    ]


@pytest.fixture(scope="module")
def compared(models):
    write_json(models[0].root / "timing.json", {"seconds": 30.0, "cases": {"a": {}, "b": {}}, "peak_bytes": {}})
    timing = f"{E2E}={models[0].root / 'timing.json'}"
    return compare(models, "--measures", "hd95", "--timing", timing, names={2: DINTS})


E2E, UNET, DINTS = "E2ENetTrainer E2ENetPlans", "nnUNetTrainer nnUNetPlans", "<b>DiNTS</b>"
DINTS_ITSELF = "DiNTSTrainer nnUNetPlans"


def values_of(rows, measure):
    """(model, class) -> (fold, case) -> number, from the CSV."""
    found = defaultdict(dict)
    for row in rows:
        number = float(row[measure]) if row[measure] else math.nan
        found[row["model"], row["class"]][row["fold"], row["case"]] = number
    return found


# numbers


def test_dice_is_that_of_the_summaries(models, compared):
    *_, rows = compared
    table = values_of(rows, "dice")
    for model, name in zip(models, (E2E, UNET, DINTS), strict=True):
        for fold in FOLDS:
            content = json.loads((model.path / f"fold_{fold}" / "validation" / "summary.json").read_text())
            for row in content["metric_per_case"]:
                case = row["prediction_file"].split("/")[-1].removesuffix(".nii.gz")
                dice = [row["metrics"][key]["Dice"] for key in ("1", "2")]
                for structure, expected in zip(("outer", "inner", MEAN), (*dice, np.mean(dice)), strict=True):
                    assert table[name, structure][str(fold), case] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("measure", ["dice", "hd95"])
def test_statistics_are_those_of_numpy_and_scipy(compared, measure):
    _, content, rows = compared
    table = values_of(rows, measure)
    assert content["baseline"] == UNET
    for model in content["models"]:
        for structure in ("outer", "inner", MEAN):
            numbers = np.array(list(table[model["name"], structure].values()))
            known = numbers[~np.isnan(numbers)]
            reached = model["reached"][structure][measure]
            assert reached["cases"] == len(known)
            expected = [known.mean(), np.median(known), *stats.scoreatpercentile(known, [25, 75])]
            found = [reached[key] for key in ("mean", "median", "first_quartile", "third_quartile")]
            assert found == pytest.approx(expected, rel=1e-4)
    compared_rows = [
        (c["first"], row) for c in content["comparisons"] for row in c["rows"] if row["measure"] == measure
    ]
    assert len(compared_rows) == 2 * 3
    for name, row in compared_rows:
        pairs = [
            (value, table[UNET, row["structure"]][key])
            for key, value in table[name, row["structure"]].items()
            if not math.isnan(value + table[UNET, row["structure"]][key])
        ]
        first, second = np.array(pairs).T
        assert row["mean_difference"] == pytest.approx(np.mean(first - second), abs=1e-5)
        assert row["p"] == pytest.approx(stats.wilcoxon(first, second).pvalue, rel=1e-6)
        interval = stats.bootstrap(
            (first - second,), np.mean, n_resamples=9999, method="percentile", random_state=np.random.default_rng(1)
        ).confidence_interval
        width = interval.high - interval.low
        assert row["interval"] == pytest.approx(list(interval), abs=0.05 * width + 1e-9)


def test_a_lost_class_is_counted_out_of_distances_and_named(compared):
    page, content, _ = compared
    for structure in ("inner", MEAN):  # the mean over the other class would favour the model that lost this one
        row = next(
            row
            for comparison in content["comparisons"]
            for row in comparison["rows"]
            if (comparison["first"], row["structure"], row["measure"]) == (E2E, structure, "hd95")
        )
        assert (row["cases"], row["only_first"], row["only_second"]) == (14, ["case_20"], [])
    assert "inner: only E2ENetTrainer E2ENetPlans has a number for 1 case (case_20)." in page.text


def slow_holm(p_values):
    """By its definition as a closed test: a hypothesis is rejected at the level that rejects every set with it."""
    adjusted = []
    for index in range(len(p_values)):
        sets = (s for n in range(len(p_values)) for s in itertools.combinations(range(len(p_values)), n + 1))
        adjusted.append(max(min(1.0, len(s) * min(p_values[k] for k in s)) for s in sets if index in s))
    return adjusted


def test_holm_is_the_closed_test_of_bonferronis():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = list(rng.random(rng.integers(1, 8)) ** 3)
        assert holm(p_values) == pytest.approx(slow_holm(p_values), abs=1e-12)
    assert holm([0.5, 0.5, 0.5]) == [1.0, 1.0, 1.0]


def test_holm_leaves_out_what_is_no_number():
    assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
    assert holm([]) == []


def test_p_values_are_corrected_within_their_family(compared):
    """The means over classes of all models, and the classes of all models, apart for each measure."""
    _, content, _ = compared
    families = defaultdict(list)
    for comparison in content["comparisons"]:
        for row in comparison["rows"]:
            families[row["measure"], row["structure"] == MEAN].append(row)
    assert sorted(map(len, families.values())) == [2, 2, 4, 4]
    for rows in families.values():
        assert [row["p_holm"] for row in rows] == pytest.approx(slow_holm([row["p"] for row in rows]))


def test_the_same_seed_gives_the_same_intervals(models, compared):
    paths = [str(model.path) for model in models]
    first, second, third = (compare_models(paths, seed=seed) for seed in (0, 0, 1))
    once, again, other = (outcome.differences[0].paired for outcome in (first, second, third))
    assert (once.low, once.high) == (again.low, again.high) != (other.low, other.high)
    means = [outcome.mean_and_interval(UNET, MEAN, "dice") for outcome in (first, second, third)]
    assert means[0] == means[1] != means[2] and means[0][0] == means[2][0]
    assert [once.low, once.high] == compared[1]["comparisons"][0]["rows"][0]["interval"]


def test_nsd_takes_the_tolerance(pair):
    paired = read_models([str(model.path) for model in pair])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", pair[0].environment["nnUNet_preprocessed"])
        near, far = (compared_results(paired, ["nsd"], tolerance=mm)[UNET]["mean"]["outer"]["nsd"] for mm in (0, 100))
    assert 0 < near < far == 1


def test_a_distribution_without_numbers_has_none():
    assert distribution([math.nan]).cases == 0 and math.isnan(distribution([math.inf]).median)


# the page


def test_the_page_says_who_is_best_and_by_how_much(compared):
    page, content, _ = compared
    row = content["comparisons"][0]["rows"][0]
    assert (content["comparisons"][0]["first"], row["structure"]) == (E2E, MEAN)
    assert f"{E2E} has the highest Dice, {row['first_mean']:.4f} over 15 validation cases of folds 0, 1, 2, 3, 4" in (
        page.text
    )
    assert f"{row['mean_difference']:+.4f} against {UNET}" in page.text
    cells = page.table("Summary")[E2E]
    assert cells[2] == f"{row['mean_difference']:+.4f}"
    assert cells[-1] == f"{row['first_better']} / {row['equal']} / {15 - row['first_better'] - row['equal']}"
    assert page.table("Summary")[UNET][2] == "baseline"


def test_the_page_has_every_part_and_stands_alone(compared):
    page, *_ = compared
    assert page.headings == [
        f"3 models on {DATASET}",
        "Facts",
        "Summary",
        "Dice",
        "HD95 (mm)",
        "Worst cases",
        "Accuracy and cost",
        "Folds",
        f"Dice by case, {MEAN}",
        "Reproduce",
    ]
    assert not re.search(r"(src|href)=\"(?!data:|#)", page.html)
    assert all(picture["alt"] for picture in page.pictures)


def test_worst_cases_are_shown_with_every_model(compared):
    page, _, rows = compared
    dice = values_of(rows, "dice")
    means = {key: np.mean([dice[name, MEAN][key] for name in (E2E, UNET, DINTS)]) for key in dice[UNET, MEAN]}
    worst = [case for (_, case), _ in sorted(means.items(), key=lambda item: item[1])][:3]
    captions = [picture["caption"] for picture in page.pictures if "low for all" in picture["caption"]]
    assert [caption.split()[0] for caption in captions] == worst
    loss = min(dice[UNET, MEAN], key=lambda key: dice[DINTS, MEAN][key] - dice[UNET, MEAN][key])
    shown = next(p["caption"] for p in page.pictures if f"largest loss of {DINTS}" in p["caption"])
    assert shown.startswith(loss[1]) and f"{DINTS} {dice[DINTS, MEAN][loss]:.4f}" in shown


def test_costs_are_recorded_counted_or_said_to_be_unknown(compared):
    page, content, _ = compared
    costs = {model["name"]: model["costs"] for model in content["models"]}
    assert costs[E2E]["parameters"] == COMPLEXITY["parameters"]["active"]
    assert costs[E2E]["gflops"] == COMPLEXITY["true"]["gflops"]
    assert costs[E2E]["gflops_per_million_voxels"] == pytest.approx(COMPLEXITY["true"]["gflops"] / (8 * 16 * 16) * 1e6)
    assert costs[UNET]["parameters"] > 1000 and costs[UNET]["gflops"] > 0  # counted on the plans' network
    assert [costs[name]["checkpoint_mb"] for name in (E2E, UNET, DINTS)] == [0.001, 0.002, 0.003]
    assert (costs[E2E]["seconds"], costs[UNET]["seconds"]) == (15.0, None)
    assert page.table("Accuracy and cost")[UNET][-1] == "\N{EN DASH}"
    assert "seconds a case" not in next(p["caption"] for p in page.pictures if "against active" in p["caption"])


def test_the_command_on_the_page_makes_it_again(compared, models):
    page, *_ = compared
    words = shlex.split(page.text.partition("Make this page again:")[2].partition("Written by")[0])
    args = cli.build_parser(words[1:]).parse_args(words[1:])
    assert words[0] == "nnunet_ext" and args.models == [*(str(m.path) for m in models[:2]), f"{DINTS}={models[2].path}"]
    assert (args.measures, args.overwrite, len(args.timing)) == (["hd95"], True, 1)


def test_names_are_escaped(compared):
    page, *_ = compared
    assert "<b>" not in page.html and DINTS in page.table("Summary")


def test_test_cases_say_in_how_many_a_number_is_defined(pair):
    rows = [{"case": str(k)} for k in range(3)]
    mean = {"outer": {"dice": 0.5, "hd95": 2.25}, "inner": {"dice": 0.25, "hd95": None}}
    defined = {"outer": {"dice": 3, "hd95": 2}, "inner": {"dice": 3, "hd95": 0}}
    path = pair[0].root / "scores.json"
    write_json(path, {"mean": mean, "defined": defined, "average": {"dice": 0.375, "hd95": 2.25}, "cases": rows})
    outcome = compare_models([str(model.path) for model in pair], tested=[f"best={path}"])
    section = sections.tested_section(replace(outcome, measures=["dice", "hd95"]))
    assert [list(table.rows[0]) for table in section.tables] == [
        ["best", "3", "0.3750", "0.5000", "0.2500"],
        ["best", "3", "2.2500", "2.2500 (2 of 3)", "\N{EN DASH} (0 of 3)"],
    ]
    assert sections.tested_section(replace(outcome, tested={})) is None


# folds


def test_one_fold_is_enough_and_missing_ones_are_named(tmp_path):
    models = [trained(tmp_path, "nnUNetTrainer", 0.1, seed=1, folds=[0, 1]),
              trained(tmp_path, "DiNTSTrainer", 0.2, seed=2, folds=[1])]  # fmt: skip
    outcome = compare_models([str(model.path) for model in models])
    assert outcome.paired.folds == ["1"] and len(outcome.paired.cases) == CASES
    assert outcome.paired.notes == [
        f"{UNET}: folds 2, 3, 4 are missing or not validated. Nothing on this page is of their cases.",
        f"{UNET}: fold 0 is left out, because another model has no scores of it.",
        f"{DINTS_ITSELF}: folds 0, 2, 3, 4 are missing or not validated. Nothing on this page is of their cases.",
    ]
    rows = [row[1:4] for row in sections.folds_section(outcome).tables[0].rows if row[0] == DINTS_ITSELF]
    assert rows == [[n, "finished" if n == "1" else "missing", "yes" if n == "1" else "no"] for n in "01234"]


def test_a_fold_without_validation_is_named(pair):
    for model in pair:
        model.fold(1)
    paired = read_models([str(model.path) for model in pair])
    assert paired.folds == ["0"] and f"{UNET}: folds 1, 2, 3, 4 are missing or not validated" in paired.notes[0]


def test_fold_all_is_never_compared(pair):
    for model in pair:
        model.fold("all", {"case_00": (phantom(np.random.default_rng(0)),) * 2})
    paired = read_models([str(model.path) for model in pair])
    assert paired.folds == ["0"] and any("fold 'all' is left out" in note for note in paired.notes)


# refusals


def refusal(*words, baseline=None):
    with pytest.raises(ConfigurationError) as error:
        read_models([str(word) for word in words], baseline)
    return str(error.value)


@pytest.fixture
def pair(tmp_path):
    return [trained(tmp_path, t, 0.1, seed=k, folds=[0]) for k, t in enumerate(("nnUNetTrainer", "DiNTSTrainer"))]


def edit(model, change):
    path = model.path / "fold_0" / "validation" / "summary.json"
    content = json.loads(path.read_text())
    change(content["metric_per_case"])
    path.write_text(json.dumps(summary(content["metric_per_case"])))


def test_other_splits_are_refused(pair, tmp_path):
    def rename(rows):
        for key in ("prediction_file", "reference_file"):
            rows[0][key] = rows[0][key].replace("case_00", "case_77")

    edit(pair[1], rename)
    text = refusal(*(model.path for model in pair))
    assert "1 validation case that fold 0 of" in text and "case_00" in text and "other splits" in text


def test_a_validation_that_lacks_cases_is_refused(pair):
    edit(pair[0], lambda rows: rows.pop())
    assert "such as case_02" in refusal(*(model.path for model in pair))


def test_folds_that_nobody_shares_are_refused(tmp_path):
    first, second = (
        trained(tmp_path, t, 0.1, seed=0, folds=[k]) for k, t in enumerate(("nnUNetTrainer", "DiNTSTrainer"))
    )
    assert f"No fold was validated by all models: {UNET} has 0; {DINTS_ITSELF} has 1" in refusal(
        first.path, second.path
    )


def test_labels_that_were_changed_in_between_are_refused(pair):
    edit(pair[1], lambda rows: rows[1]["metrics"]["2"].update(n_ref=1))
    assert re.search(r"The reference of case_01 has \d+ voxels of inner .* and 1 for", refusal(*(m.path for m in pair)))


def test_another_data_set_is_refused(pair):
    plans = pair[1].path / "plans.json"
    plans.write_text(plans.read_text().replace(DATASET, "Dataset008_Other"))
    assert "Dataset008_Other" in refusal(*(model.path for model in pair))


def test_other_classes_are_refused(pair):
    path = pair[1].path / "dataset.json"
    path.write_text(json.dumps({**pair[1].dataset_json, "labels": {**LABELS, "inner": 3}}))
    assert "inner 3" in refusal(*(model.path for model in pair))


def test_models_without_scores_one_model_and_models_twice_are_refused(pair):
    one, other = (model.path for model in pair)
    assert "at least two" in refusal(one)
    assert "is given twice" in refusal(one, other, one)
    assert "The name A is given twice" in refusal(f"A={one}", f"A={other}")
    assert "Choose one of: " in refusal(one, other, baseline="unet")
    assert "no name before" in refusal(f"={one}", other)
    shutil.rmtree(other / "fold_0" / "validation")
    assert f"{DINTS_ITSELF} has no validation scores" in refusal(one, other)


def test_the_baseline_is_named_by_folder_too(pair):
    assert read_models([str(m.path) for m in pair], str(pair[1].path)).baseline.name == DINTS_ITSELF


def test_distances_need_the_label_maps(pair):
    (pair[1].path / "fold_0" / "validation" / "case_00.nii.gz").unlink()
    with pytest.raises(
        ConfigurationError, match=r"HD95 \(mm\) of DiNTSTrainer nnUNetPlans cannot be computed.*case_00"
    ):
        compared_results(read_models([str(m.path) for m in pair]), ["dice", "hd95"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-o", "x.htm"], ".html file"),
        (["-o", "x.html", "--tolerance", "-1"], "--tolerance takes mm"),
        (["-o", "x.html", "--timing", "A=x"], "none of the models"),
        (["-o", "x.html", "--test", "A"], "take NAME=FILE"),
        (["-o", "x.html", "--test", "A=missing.json"], "no JSON file of 'nnunet_ext score'"),
        (["-o", "missing/x.html"], "in a folder that exists"),
    ],
)
def test_bad_words_end_in_a_sentence_and_write_nothing(words, expected, pair, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert cli.main(["compare", *(str(model.path) for model in pair), *words]) == 1
    assert expected in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
