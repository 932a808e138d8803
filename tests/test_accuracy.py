"""The results in `benchmarks/accuracy/results`: unchanged, and what is said of them follows from Dice by case."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from nnunet_ext.files import read_json, sha256_of

ROOT = Path(__file__).parents[1]
ACCURACY = ROOT / "benchmarks" / "accuracy"
STUDIES = {study: yaml.safe_load(study.read_text(encoding="utf-8")) for study in sorted(ACCURACY.glob("*.yaml"))}
FOLDERS = {
    study: folder for study, content in STUDIES.items()
    for folder in (ACCURACY / "results").glob(f"Dataset{content['dataset']:03d}_*/{study.stem}")
}  # fmt: skip
IN_README = ("hippocampus",)
with_results = pytest.mark.parametrize("study", FOLDERS, ids=lambda study: study.stem)


def means(folder):
    """Row -> fold and case -> mean over the classes."""
    dice = {}
    with (folder / "cases.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            dice.setdefault(line["row"], {}).setdefault((line["fold"], line["case"]), []).append(float(line["dice"]))
    return {row: {case: np.mean(values) for case, values in cases.items()} for row, cases in dice.items()}


@with_results
def test_the_manifest(study):
    manifest = read_json(FOLDERS[study] / "manifest.json")
    assert {path.name for path in FOLDERS[study].iterdir()} == {*manifest, "manifest.json"}
    assert manifest == {name: sha256_of(FOLDERS[study] / name) for name in manifest}


@with_results
def test_every_row_has_every_case_and_missing_rows_are_named(study):
    folder, content = FOLDERS[study], STUDIES[study]
    reached, rows = means(folder), read_json(folder / "rows.json")
    assert set(reached) == set(rows)
    for fold in {fold for cases in reached.values() for fold, _ in cases}:
        there = [frozenset(case for of, case in cases if of == fold) for cases in reached.values()]
        assert len({cases for cases in there if cases}) == 1, "cases of a fold are there or not, all of them"
    missing = [entry["name"] for entry in content["methods"] if entry["name"] not in rows]
    assert read_json(folder / "summary.json")["missing"] == missing
    for entry in content["methods"]:
        if entry["name"] in rows:
            assert rows[entry["name"]]["entry"] == entry, "a row that was run is not described anew"


@with_results
def test_the_summary_follows_from_the_cases(study):
    folder = FOLDERS[study]
    reached, summary = means(folder), read_json(folder / "summary.json")
    baseline = reached.get(summary["baseline"])
    tests = {}
    for row, cases in reached.items():
        said = summary["reached"][row]["mean over classes"]
        assert said["mean"] == pytest.approx(np.mean(list(cases.values())), abs=1e-12)
        assert f"| `{row}` |" in (folder / "table.md").read_text(encoding="utf-8")
        if baseline is None:
            assert summary["baseline"] in summary["missing"] and not summary["against_baseline"]
        elif row != summary["baseline"]:
            differences = np.array([cases[case] - baseline[case] for case in cases])
            against = summary["against_baseline"][row]["mean over classes"]
            assert against["difference"] == pytest.approx(differences.mean(), abs=1e-12)
            assert against["low"] < differences.mean() < against["high"]
            assert against["p"] == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-6)
            tests[row] = against
    for rank, row in enumerate(sorted(tests, key=lambda row: tests[row]["p"])):  # Holm: at least p times the tests left
        assert tests[row]["p_holm"] >= min(1, tests[row]["p"] * (len(tests) - rank)) - 1e-12


@with_results
def test_every_row_has_the_curves_of_its_folds(study):
    folder, content = FOLDERS[study], STUDIES[study]
    curves = {}
    with (folder / "curves.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            curves.setdefault((line["row"], line["fold"]), []).append(line)
    assert set(curves) == {(row, fold) for row, cases in means(folder).items() for fold, _ in cases}
    for lines in curves.values():
        assert [int(line["epoch"]) for line in lines] == list(range(content["schedule"]["epochs"]))
        assert all(np.isfinite(float(line[column])) for line in lines for column in ("train_loss", "pseudo_dice"))


@with_results
def test_collecting_again_gives_the_same_files(study, tmp_path):
    folder = FOLDERS[study]
    copy = tmp_path / folder.parent.name / folder.name
    shutil.copytree(folder, copy)
    for name in ("summary.json", "table.md", "manifest.json"):
        (copy / name).unlink()
    words = [sys.executable, ACCURACY / "collect.py", study, "--out", tmp_path, "--again"]
    subprocess.run(words, check=True, capture_output=True, cwd=tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in copy.iterdir()
    }


@with_results
def test_the_table_stands_where_users_look(study):
    table = (FOLDERS[study] / "table.md").read_text(encoding="utf-8")
    for page in ("docs/accuracy.md", *(("README.md",) if study.stem in IN_README else ())):
        assert table in (ROOT / page).read_text(encoding="utf-8")
