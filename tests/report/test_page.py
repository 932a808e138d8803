"""The page of `nnunet_ext report`: what it says, that its numbers are those of the files, and that it stands alone."""

import argparse
import base64
import gzip
import hashlib
import json
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from report.folders import (
    DATASET,
    LABELS,
    REGIONS,
    SHAPE,
    SPACING,
    Model,
    Page,
    e2enet_model,
    history_row,
    three_cases,
    write_json,
)

from nnunet_ext.cli import main as cli
from nnunet_ext.cli import report
from nnunet_ext.e2enet.report import section as e2enet_section
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.report.commands import predict_command, train_commands
from nnunet_ext.report.facts import fold_notes, headline
from nnunet_ext.report.model_folder import read_model_folder
from nnunet_ext.report.score_sections import postprocessing_section, volumes_section


def run(path, *words):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return report.run(parser.parse_args([str(path), *words]))


def make_page(model, words=(), **environment):
    """Runs the command on a model, with its environment, and reads the page that it writes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**model.environment, **environment}.items():
            patch.setenv(name, value) if value else patch.delenv(name, raising=False)
        run(model.path, "-o", str(model.root / "page.html"), "--overwrite", *words)
    return Page((model.root / "page.html").read_text())


def stock_model(root, folds=(0,)):
    model = Model(root)
    for name in folds:
        model.fold(name, three_cases(f"f{name}_"))
    return model


@pytest.fixture(scope="module")
def e2enet(tmp_path_factory):
    """One fold with history and complexity."""
    return make_page(e2enet_model(tmp_path_factory.mktemp("e2enet")))


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Folds 0, 1, 2 and 4, by nnU-Net's own trainer."""
    model = stock_model(tmp_path_factory.mktemp("stock"), folds=(0, 1, 2, 4))
    return SimpleNamespace(model=model, page=make_page(model))


def test_an_e2enet_folder_has_its_facts_curves_and_fusion_flow(e2enet):
    assert e2enet.headings == [
        f"E2ENetTrainer on {DATASET}",
        "Facts",
        "Folds",
        "Curves",
        "Fusion flow",
        "Share of active connections by direction",
        "Masks in the last epoch",
        "Dice by class",
        "Dice over the cases",
        "Volumes",
        "Best, median and worst case",
        "Dice by case",
        "Reproduce",
    ]
    facts = {name: cells[0] for name, cells in e2enet.table("Facts").items()}
    assert facts["Parameters"] == "4,596 in all, 2,449 active, 4,500 trainable"
    assert facts["Cost of a patch, true convention"].startswith("0.00739 GMACs = 0.0148 GFLOPs")
    assert facts["Cost of a patch, paper convention"].startswith("12.3 GMACs = 24.7 GFLOPs")
    assert facts["Patch"] == "8 × 16 × 16 voxels"
    assert facts["Spacing"] == "5 × 1 × 1.5 mm"
    assert facts["Strides"] == "1 × 1 × 1, 1 × 2 × 2, 2 × 2 × 2"
    assert facts["Training options"] == "update_every = 3"
    assert facts["Trained with"] == "cpu, PyTorch 2.9.0"
    captions = [picture["caption"] for picture in e2enet.pictures]
    assert captions[:4] == [
        "Fold 0",
        "At the start (expected of random masks)",
        "After epoch 2 (fold 0)",
        "Along the training, start dotted",
    ]
    assert e2enet.table("Masks in the last epoch")["0"] == ["12", "4", "61", "60.0 %"]


def test_the_fusion_table_has_the_expected_start_and_the_last_row_of_the_history(e2enet):
    table = e2enet.table("Share of active connections by direction")
    # level 1 has 8 channels forward, 8 up, 6 down: 36, 36 and 27 %; level 0 has nothing above
    assert table["stage 1, level 1"] == ["36 %", "50 %", "36 %", "30 %", "27 %", "20 %"]
    assert table["stage 2, level 0"] == ["50 %", "50 %", "50 %", "50 %", "", ""]


def test_shares_of_several_folds_are_averaged(tmp_path):
    made = e2enet_section(read_model_folder(e2enet_model(tmp_path, folds=(0, 1)).path))
    assert made.pictures[1].caption == "After epoch 2 (mean of folds 0, 1)"
    assert made.tables[0].rows[0][:3] == ["stage 1, level 0", "50 %", "55 %"]


def test_an_unfinished_fold_does_not_count_in_the_end(tmp_path):
    model = e2enet_model(tmp_path, folds=(0, 1))
    (model.path / "fold_1" / "checkpoint_final.pth").rename(model.path / "fold_1" / "checkpoint_latest.pth")
    made = e2enet_section(read_model_folder(model.path))
    assert made.pictures[1].caption == "After epoch 2 (fold 0)"
    assert made.tables[0].rows[0][:3] == ["stage 1, level 0", "50 %", "50 %"]


def test_a_start_that_the_history_measured_replaces_the_expectation(tmp_path):
    model = e2enet_model(tmp_path)
    path = model.path / "fold_0" / "e2enet_history.json"
    rows = json.loads(path.read_text())
    write_json(path, [{**rows[0], "epoch": -1, "steps": 0, "updates": 0}, *rows])
    made = e2enet_section(read_model_folder(model.path))
    assert [p.caption for p in made.pictures][0] == "At the start (measured)"
    assert made.tables[0].rows[1][:3] == ["stage 1, level 1", "40 %", "50 %"]


def test_a_stock_folder_has_all_but_what_only_our_trainers_write(stock):
    made = stock.page
    assert "Fusion flow" not in made.headings
    assert made.table("Facts")["Parameters and cost"] == ["not recorded by this trainer"]
    assert made.table("Facts")["Network"] == [
        "dynamic_network_architectures.architectures.unet.PlainConvUNet (as the plans say)"
    ]
    assert [p["caption"] for p in made.pictures if p["caption"].startswith("Fold")] == [
        "Fold 0", "Fold 1", "Fold 2", "Fold 4"
    ]  # fmt: skip


def test_dice_by_class_and_by_case_are_those_of_summary_json(stock):
    made, folds = stock.page, (0, 1, 2, 4)
    summaries = [json.loads((stock.model.path / f"fold_{f}/validation/summary.json").read_text()) for f in folds]
    by_class = made.table("Dice by class")
    for key, name in (("1", "outer"), ("2", "inner")):
        assert by_class[name][:4] == [f"{s['mean'][key]['Dice']:.4f}" for s in summaries]
        pooled = np.mean([row["metrics"][key]["Dice"] for s in summaries for row in s["metric_per_case"]])
        assert by_class[name][4] == f"{pooled:.4f}"
    assert by_class["Mean"][:4] == [f"{s['foreground_mean']['Dice']:.4f}" for s in summaries]
    by_case = made.table("Dice by case")
    for fold, content in zip(folds, summaries, strict=True):
        for row in content["metric_per_case"]:
            dice = [row["metrics"][key]["Dice"] for key in ("1", "2")]
            case = row["prediction_file"].split("/")[-1].removesuffix(".nii.gz")
            assert by_case[case] == [str(fold), *(f"{value:.4f}" for value in (sum(dice) / 2, *dice))]


def test_the_spread_is_that_of_all_cases(e2enet, stock):
    assert stock.page.table("Dice over the cases")["outer"][0] == "12", "of four folds"
    cases = [cells for name, cells in e2enet.table("Dice by case").items() if name != "Case"]
    spread = e2enet.table("Dice over the cases")
    for column, name in ((2, "outer"), (3, "inner"), (1, "Mean of a case")):
        values = [float(cells[column]) for cells in cases]
        expected = np.percentile(values, [50, 25, 75, 0, 100])
        assert spread[name][0] == "3"
        assert [float(cell) for cell in spread[name][1:]] == pytest.approx(expected, abs=1e-4)


def test_volumes_are_counted_over_all_cases(e2enet):
    reference, predictions = three_cases()["good"][0], [prediction for _, prediction in three_cases().values()]
    table = e2enet.table("Volumes")
    for value, name in ((1, "outer"), (2, "inner")):
        true = 3 * (reference == value).sum()
        found = sum((p == value).sum() for p in predictions)
        extra = sum(((p == value) & (reference != value)).sum() for p in predictions)
        missed = sum(((p != value) & (reference == value)).sum() for p in predictions)
        change = f"{100 * (found / true - 1):+.1f} %"
        assert table[name][:5] == [f"{true:,}", f"{found:,}", change, f"{extra:,}", f"{missed:,}"]
    assert table["inner"][5:] == ["1 of 3", "0 of 0"] and table["outer"][5:] == ["0 of 3", "0 of 0"]


def test_volumes_are_left_out_where_nobody_counted(tmp_path):
    model = stock_model(tmp_path)
    path = model.path / "fold_0" / "validation" / "summary.json"
    content = json.loads(path.read_text())
    for row in content["metric_per_case"]:
        row["metrics"] = {key: {"Dice": values["Dice"]} for key, values in row["metrics"].items()}
    write_json(path, content)
    assert volumes_section(read_model_folder(model.path)) is None


def test_distances_are_computed_where_they_are_asked_for(tmp_path):
    """The prediction is one row further back: HD95 of both classes is that."""
    model = Model(tmp_path)
    reference, shifted = three_cases()["fair"]
    model.fold(0, {"fair": (reference, shifted), "good": (reference, reference)})
    made = make_page(model, words=["--measures", "hd95", "nsd", "--tolerance", "0.5", "-np", "1"])
    assert {"HD95 (mm)", "NSD"} <= set(made.headings)
    assert f"{model.path.name} --viewer-mb 4 --measures hd95 nsd --tolerance 0.5" in made.text
    step = f"{SPACING[1]:.4f}"
    assert made.table("HD95 (mm)")["outer"][0] == "2"
    assert made.table("HD95 (mm)")["outer"][4:] == ["0.0000", step]
    low, high = (float(cell) for cell in made.table("NSD")["inner"][4:])
    assert low < high == 1.0
    (model.path / "fold_0" / "validation" / "fair.nii.gz").unlink()
    with pytest.raises(ConfigurationError, match=r"HD95 \(mm\) of .* cannot be computed. The prediction"):
        make_page(model, words=["--measures", "hd95", "-np", "1"])


def test_the_postprocessing_is_what_nnunet_decided(tmp_path):
    model = stock_model(tmp_path)
    assert postprocessing_section(read_model_folder(model.path)) is None
    write_json(
        model.path / "crossval_results_folds_0_1" / "postprocessing.json",
        {
            "input_folder": {"foreground_mean": {"Dice": 0.5}, "mean": {"1": {"Dice": 0.4}, "2": {"Dice": 0.6}}},
            "postprocessed": {"foreground_mean": {"Dice": 0.55}, "mean": {"1": {"Dice": 0.5}, "2": {"Dice": 0.6}}},
            "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
            "postprocessing_kwargs": [{"labels_or_regions": [1]}],
        },
    )
    section = postprocessing_section(read_model_folder(model.path))
    assert section.text[0].startswith("Over folds 0, 1, ") and "applies 1 step " in section.text[0]
    assert section.tables[0].rows == [
        ["outer", "0.4000", "0.5000"],
        ["inner", "0.6000", "0.6000"],
        ["Mean", "0.5000", "0.5500"],
    ]
    (model.path / "crossval_results_folds_0_1" / "postprocessing.json").write_text("{}")
    assert (
        read_model_folder(model.path).notes[0].startswith("crossval_results_folds_0_1/postprocessing.json is damaged")
    )


def test_every_table_has_as_many_cells_as_heads(stock):
    """And every fold its row, those that are missing too."""
    tables = stock.page.tables
    for title in ("Folds", "Dice by class", "Dice by case"):
        assert len({len(row) for row in tables[title]}) == 1, title
    folds = stock.page.table("Folds")
    assert folds["3"][0] == "missing" and len(folds) == 6
    assert [folds[name][1] for name in ("0", "1", "2", "4")] == ["3 of 3"] * 4
    assert tables["Dice by class"][0] == ["Class", *(f"Fold {k} (n = 3)" for k in (0, 1, 2, 4)), "All (n = 12)"]


def test_cases_are_sorted_worst_first_and_shown_best_median_worst(e2enet):
    assert list(e2enet.table("Dice by case"))[1:] == ["f0_bad", "f0_fair", "f0_good"]
    titles = [p["caption"].split(" (")[0] for p in e2enet.pictures if "mean Dice" in p["caption"]]
    assert titles == ["Best: f0_good", "Median: f0_fair", "Worst: f0_bad"]


def test_the_caption_counts_the_wrong_voxels_of_the_worst_slice(e2enet):
    # `bad` lacks all 36 voxels of slice 4 (the fifth), and 4 inner voxels in each of slices 2 and 3
    worst = next(p for p in e2enet.pictures if p["caption"].startswith("Worst"))
    assert worst["caption"].endswith("Slice 5 of 6 from the feet: 36 of the case's 44 wrong voxels.")
    best = next(p for p in e2enet.pictures if p["caption"].startswith("Best"))
    assert best["caption"].endswith("nothing is wrong.")


def test_a_missing_fold_is_said_in_words_and_gets_its_command(stock):
    made = stock.page
    assert "Fold 3 is missing: the scores are those of the folds that are there" in made.text
    assert made.table("Folds")["3"][0] == "missing"
    assert f"nnUNetv2_train {DATASET} 3d_fullres 3 -tr nnUNetTrainer -p nnUNetPlans -device cpu # missing" in made.text
    assert "-f 0 1 2 4" in made.text


def test_the_split_file_says_how_many_folds_there_are(tmp_path, monkeypatch):
    model = stock_model(tmp_path, folds=(0, 1))
    monkeypatch.setenv("nnUNet_preprocessed", model.environment["nnUNet_preprocessed"])
    assert read_model_folder(model.path).missing == ["2", "3", "4"]
    write_json(model.preprocessed / "splits_final.json", [{}, {}, {}])
    assert read_model_folder(model.path).missing == ["2"]


def test_an_unfinished_fold_is_said_in_words_and_its_command_continues(tmp_path):
    model = stock_model(tmp_path)
    model.fold(1, epochs=2, finished=False)
    read = read_model_folder(model.path)
    assert "Fold 1 is not finished: 2 epochs of 3, checkpoint_latest.pth is there." in fold_notes(read)
    assert train_commands(read)[1].endswith(
        "3d_fullres 1 -tr nnUNetTrainer -p nnUNetPlans -device cpu --c  # not finished: continues it"
    )
    assert predict_command(read).endswith("-f 0 -device cpu")


def test_a_fold_without_validation_gets_the_command_that_makes_it(tmp_path):
    model = stock_model(tmp_path)
    model.fold(1)
    read = read_model_folder(model.path)
    assert any(note.startswith("Fold 1 has no validation scores.") for note in fold_notes(read))
    assert train_commands(read)[1].endswith(
        "3d_fullres 1 -tr nnUNetTrainer -p nnUNetPlans -device cpu --val  # validates it"
    )


def test_fold_all_counts_as_validated_on_its_training_cases(tmp_path):
    read = read_model_folder(stock_model(tmp_path, folds=("all",)).path)
    assert any("was validated on the cases that it was trained on" in note for note in fold_notes(read))
    assert headline(read).startswith("No cross-validation scores")
    assert read.missing == []


def test_without_raw_images_the_labels_are_drawn_alone_and_the_page_says_so(tmp_path, stock):
    model = stock_model(tmp_path)
    made = make_page(model, nnUNet_raw="")
    assert (
        "Best, Median, Worst: The environment variable nnUNet_raw is not set, so the image was not found." in made.text
    )
    assert made.text.count("The labels are drawn alone.") == 1
    assert "drawn alone" not in stock.page.text
    assert made.png("Worst") != stock.page.png("Worst")


def test_without_predictions_the_page_goes_on_without_pictures(tmp_path):
    model = stock_model(tmp_path)
    for path in (model.path / "fold_0" / "validation").glob("*.nii.gz"):
        path.unlink()
    made = make_page(model)
    assert "Worst: f0_bad (fold 0), mean Dice" in made.text
    assert (
        "The prediction fold_0/validation/f0_bad.nii.gz is not in the model folder. There is no picture." in made.text
    )
    assert not any("mean Dice" in p["caption"] for p in made.pictures)


def test_references_are_found_in_nnunet_preprocessed_when_the_folder_was_trained_elsewhere(tmp_path):
    model = stock_model(tmp_path)
    path = model.path / "fold_0" / "validation" / "summary.json"
    content = json.loads(path.read_text())
    for row in content["metric_per_case"]:
        for key in ("reference_file", "prediction_file"):
            row[key] = "D:\\elsewhere\\" + row[key].split("/")[-1]
    write_json(path, content)
    made = make_page(model)
    assert list(made.table("Dice by case"))[1:] == ["f0_bad", "f0_fair", "f0_good"]
    assert sum("mean Dice" in p["caption"] for p in made.pictures) == 3


def test_regions_are_named_and_ignored_voxels_are_not_wrong(tmp_path):
    model = Model(tmp_path, labels=REGIONS)
    reference = np.zeros(SHAPE, int)
    reference[1:4, 3:9, 2:8] = 1
    reference[2, 5:7, 4:6] = 2
    reference[5] = 3  # ignored
    prediction = np.where(reference == 2, 1, reference)  # the whole is right, the inner region is missed
    prediction[5] = 1
    model.fold(0, {"case": (reference, prediction)})
    made = make_page(model)
    assert made.table("Dice by class")["whole"] == ["1.0000"]
    assert made.table("Dice by class")["inner"] == ["0.0000"]
    assert made.table("Facts")["Regions"] == ["whole (1 + 2), inner (2), label 3 is ignored"]
    assert made.pictures[-1]["caption"].endswith("Slice 3 of 6 from the feet: 4 of the case's 4 wrong voxels.")


def test_a_class_that_is_nowhere_has_a_dash_and_does_not_count(tmp_path):
    model = Model(tmp_path)
    reference = np.zeros(SHAPE, int)
    reference[2, 3:6, 3:6] = 1
    model.fold(0, {"plain": (reference, reference), **three_cases()})
    made = make_page(model)
    assert made.table("Dice by case")["plain"] == ["0", "1.0000", "1.0000", "–"]


def test_nothing_is_loaded_from_anywhere(e2enet):
    loading = {"link", "iframe", "object", "embed", "video", "audio", "source", "base"}
    assert not loading & {tag for tag, _ in e2enet.tags}
    assert all("src" not in attributes for tag, attributes in e2enet.tags if tag == "script")
    sources = [attributes.get(key) for _, attributes in e2enet.tags for key in ("src", "srcset", "poster")]
    assert all(source.startswith("data:image/png;base64,") for source in sources if source)
    assert not re.search(r"url\(|@import|://", re.sub(r"data:image/png;base64,[\w+/=]+", "", e2enet.html))
    assert len(e2enet.pictures) == 9
    assert all(e2enet.png(p["caption"]).startswith(b"\x89PNG") and p["alt"] for p in e2enet.pictures)


def test_only_the_styles_and_scripts_that_the_policy_names_by_hash_count(e2enet):
    policy = next(a["content"] for tag, a in e2enet.tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert set(rules) == {"default-src", "img-src", "style-src", "script-src"} and rules["default-src"] == "'none'"
    packed = re.search(r'id="niivue-packed">([^<]+)', e2enet.html).group(1)
    running = re.findall(r"<script>(.*?)</script>", e2enet.html, re.DOTALL)
    texts = {
        "style-src": [style.encode() for style in re.findall(r"<style>(.*?)</style>", e2enet.html, re.DOTALL)],
        "script-src": [*(script.encode() for script in running), gzip.decompress(base64.b64decode(packed))],
    }
    for rule, found in texts.items():
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found]
        assert len(found) == len(rules[rule].split()) and hashes == rules[rule].split()


def test_contents_and_links_lead_to_places_of_the_page(e2enet):
    ids = [a["id"] for _, a in e2enet.tags if "id" in a]
    links = [a["href"] for tag, a in e2enet.tags if tag == "a"]
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links} <= set(ids) and all(link.startswith("#") for link in links)
    assert {"#facts", "#dice-by-class", "#reproduce", "#case-f0-bad", "#dice-by-case"} <= set(links)


def test_names_from_a_strangers_folder_are_escaped(tmp_path):
    model = Model(tmp_path, labels={**LABELS, "<script>alert(1)</script>": 3})
    write_json(model.path / "plans.json", {**model.plans, "dataset_name": "Data<img src=x onerror=alert(1)>; rm"})
    model.fold(0, three_cases())
    made = make_page(model)
    assert not re.search(r"<script>\s*alert|<img src=x", made.html)
    assert all("onerror" not in attributes for _, attributes in made.tags)
    assert "nnUNetv2_train 'Data<img src=x onerror=alert(1)>; rm' 3d_fullres 0" in made.text


def test_the_host_name_is_not_passed_on(stock):
    assert "secret-host" in (stock.model.path / "fold_0" / "debug.json").read_text()
    assert "secret-host" not in stock.page.html


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("validation/summary.json", "{not json"),
        ("validation/summary.json", '{"mean": []}'),
        ("complexity.json", '{"parameters": 3}'),
        ("e2enet_history.json", "{}"),
        ("e2enet_history.json", '[{"steps": 4}]'),
        ("debug.json", "[]"),
    ],
)
def test_a_damaged_file_is_left_out_and_named(tmp_path, name, content):
    model = e2enet_model(tmp_path)
    (model.path / "fold_0" / name).write_text(content)
    assert [note.split(" ")[0] for note in read_model_folder(model.path).notes] == [f"fold_0/{name}"]


def test_damaged_rows_of_a_history_are_left_out_and_named(tmp_path):
    model = e2enet_model(tmp_path)
    rows = [{**history_row(0, 0.4), "directions": {"1,0": 3}}, {**history_row(1, 0.4), "updates": "<b>"}]
    write_json(model.path / "fold_0" / "e2enet_history.json", rows)
    read = read_model_folder(model.path)
    assert e2enet_section(read) is None
    assert read.notes == ["fold_0/e2enet_history.json has damaged rows, which were left out."]


def test_the_page_lies_in_the_model_folder_by_default(tmp_path, capsys):
    model = stock_model(tmp_path)
    assert run(model.path) == 0
    assert "Wrote" in capsys.readouterr().out
    assert (model.path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_what_is_no_model_folder_is_refused_in_one_sentence(tmp_path):
    model = stock_model(tmp_path)
    unnamed = tmp_path / "results" / "model"
    unnamed.mkdir()
    empty = Model(tmp_path / "other")
    for path, message in (
        (tmp_path / "nowhere", "is not a folder"),
        (model.path / "fold_0", "is one fold of a model. Give the folder above it"),
        (unnamed, "its name must be TRAINER__PLANS__CONFIGURATION"),
        (empty.path, "nothing was trained here"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            run(path)
    (model.path / "plans.json").unlink()
    with pytest.raises(ConfigurationError, match="it has no plans.json"):
        run(model.path)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_drawn(tmp_path):
    model = stock_model(tmp_path)
    with pytest.raises(ConfigurationError, match="give a file in a folder that exists"):
        run(model.path, "-o", str(tmp_path / "nowhere" / "page.html"))


def test_only_the_models_own_page_is_made_anew_unasked(tmp_path, capsys):
    model = stock_model(tmp_path)
    own, other = model.path / "report.html", tmp_path / "page.html"
    for path in (own, other):
        path.write_text("old")
    assert cli.main(["report", str(model.path)]) == 0
    assert "<html" in own.read_text()
    assert capsys.readouterr().out == f"Wrote {own} ({own.stat().st_size / 1e6:.1f} MB)\n"
    assert own.stat().st_size > 50_000
    assert cli.main(["report", str(model.path), "--output", str(other)]) == 1
    assert "replace it with --overwrite" in capsys.readouterr().err and other.read_text() == "old"
    assert cli.main(["report", str(model.path), "-o", str(other), "--overwrite"]) == 0
    assert "<html" in other.read_text()


def test_pages_of_nnunets_own_models_are_made_without_torch(tmp_path):
    code = (
        "import sys, argparse; from nnunet_ext.cli import report; p = argparse.ArgumentParser(); "
        "report.add_arguments(p); report.run(p.parse_args(sys.argv[1:])); sys.exit('torch' in sys.modules)"
    )
    model = stock_model(tmp_path)
    assert subprocess.run([sys.executable, "-c", code, model.path], timeout=300).returncode == 0


def test_the_headline_is_the_mean_over_classes_of_the_means_over_cases(tmp_path):
    model = stock_model(tmp_path)
    mean = json.loads((model.path / "fold_0/validation/summary.json").read_text())["foreground_mean"]["Dice"]
    assert not math.isnan(mean)
    assert f"Mean Dice {mean:.4f} over 3 validation cases of fold 0." == headline(read_model_folder(model.path))


def test_without_any_log_the_curves_are_missed_in_words(tmp_path):
    model = stock_model(tmp_path)
    for path in model.path.rglob("training_log*.txt"):
        path.unlink()
    assert cli.main(["report", str(model.path), "-o", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "There is no training log in this folder, and no checkpoint that holds the curves." in text
