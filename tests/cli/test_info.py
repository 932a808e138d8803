"""`nnunet_ext info`: figures of networks that are not built in memory, and the reasons where it cannot answer."""

import json
import subprocess
import sys

import pytest
from end_to_end.stock import handmade_plans, stock_plans

from nnunet_ext.cli.info import text
from nnunet_ext.cli.main import main
from nnunet_ext.costs.describe import channels_and_heads, resolved
from nnunet_ext.errors import ConfigurationError

STRIDES = [[1, 1, 1]] + [[2, 2, 2]] * 5
LABELS = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, **{f"organ{k}": k for k in range(1, 16)}},
    "file_ending": ".nii.gz",
}


@pytest.fixture
def plans_file(tmp_path):
    architecture = {
        "network_class_name": "nnunet_ext.e2enet.network.E2ENet",
        "arch_kwargs": {"strides": STRIDES, "sparsity": 0.8},
        "_kw_requires_import": [],
    }
    plans = handmade_plans(architecture, patch_size=(128, 128, 128), strides=STRIDES)
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (tmp_path / "E2ENetPlans.json").write_text(json.dumps(plans))
    (tmp_path / "dataset.json").write_text(json.dumps(LABELS))
    return tmp_path / "E2ENetPlans.json"


def answer(capsys, *words):
    assert main(["info", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_the_papers_network_in_figures(plans_file, capsys):
    report = json.loads(answer(capsys, plans_file, "--json"))["configurations"]["3d_fullres"]
    assert report["parameters"] == {"total": 23_899_088, "trainable": 9_445_351, "active": 9_445_351}
    assert report["paper"]["gflops"] == pytest.approx(778.74, abs=0.006)
    assert report["paper"]["gmacs"] == pytest.approx(report["paper"]["gflops"] / 2)
    assert report["stored"]["weights_mb"] == pytest.approx(4 * 9.445351)


def test_json_is_indented_for_people(plans_file, capsys):
    text = answer(capsys, plans_file, "--json")
    assert text == json.dumps(json.loads(text), indent=2) + "\n"


def test_the_cascade_has_a_channel_more_per_label(plans_file, capsys):
    reports = json.loads(answer(capsys, plans_file, "--json"))["configurations"]
    assert reports["3d_fullres"]["input_channels"] == 1
    assert reports["3d_cascade_fullres"]["input_channels"] == 16


def test_nothing_heavy_but_torch_is_imported(plans_file):
    code = (
        "import sys; from nnunet_ext.cli.main import main; main(sys.argv[1:]); "
        "sys.exit(bool({'nnunetv2', 'timm', 'matplotlib', 'SimpleITK'} & set(sys.modules)))"
    )
    words = ["info", plans_file, "--configuration", "3d_fullres", "--rivals", "amos-val", "--dice", "90"]
    result = subprocess.run([sys.executable, "-c", code, *words], cwd=plans_file.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_rivals_are_compared_at_the_tables_patch(plans_file, capsys):
    text = answer(capsys, plans_file, "--configuration", "3d_fullres", "--rivals", "btcv", "--dice", "88.3")
    ours = next(line for line in text.splitlines() if line.startswith("this E2ENet"))
    assert "(patch 96x96x96)" in ours and f"{778.7416 * 27 / 64:.2f}" in ours


def test_other_networks_are_counted_only_when_asked(plans_file, capsys):
    assert "--measure" in answer(capsys, plans_file, "--configuration", "2d")
    report = json.loads(answer(capsys, plans_file, "--configuration", "2d", "--measure", "--json"))
    assert report["configurations"]["2d"]["parameters"]["total"] > 0


def test_every_fact_has_its_line():
    count = {"total": 1000, "active": 900, "trainable": 250}
    cost = {"gmacs": 1.5, "gflops": 3.0}
    report = {
        "method": "Method", "patch_size": [8, 16], "batch_size": 2, "input_channels": 3, "num_classes": 4,
        "parameters": count, "parts": {"backbone": {"total": 700, "trainable": 0}}, "true": cost, "paper": cost,
        "further": {"largest": {"patch_size": [8, 8], "parameters": count, "true": cost}},
        "stored": {"weights_mb": 3.6, "checkpoint_mb": 7.25},
    }  # fmt: skip
    assert text("2d", report).splitlines() == [
        "2d: Method",
        "  patch 8x16, batch 2, 3 channels, 4 logits",
        "  parameters 1,000, active 900, trainable 250",
        "  backbone: 700 parameters, 0 trainable",
        "  trainable share 25.00 %",
        "  1.50 GMACs = 3.00 GFLOPs per patch (true convention)",
        "  1.50 GMACs = 3.00 GFLOPs per patch (paper convention)",
        "  largest: parameters 1,000, 1.50 GMACs = 3.00 GFLOPs per patch 8x8 (true convention)",
        "  active weights 3.6 MB in fp32",
        "  checkpoint_final.pth 7.2 MB",
    ]


def test_regions_have_no_background_logit_and_the_ignore_label_none(plans_file):
    labels = {"background": 0, "whole": [1, 2], "inner": 2, "ignore": 3}
    assert channels_and_heads({}, {**LABELS, "labels": labels}) == (1, 2)
    labels = {"background": 0, "a": 1, "b": 2, "ignore": 3}
    assert channels_and_heads({}, {**LABELS, "labels": labels}) == (1, 3)


def test_counts_agree_with_nnunet(plans_file):
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = json.loads(plans_file.read_text())
    manager = PlansManager(plans)
    for labels in (
        LABELS["labels"],
        {"background": 0, "whole": [1, 2], "inner": 2, "ignore": 3},
        {"background": 0, "a": 1, "b": 2, "ignore": 3},
    ):
        order = {"regions_class_order": [1, 2]} if "whole" in labels else {}
        dataset_json = {**LABELS, "labels": labels, **order}
        for name in ("3d_fullres", "3d_cascade_fullres"):
            theirs = (
                determine_num_input_channels(manager, name, dataset_json),
                manager.get_label_manager(dataset_json).num_segmentation_heads,
            )
            assert channels_and_heads(resolved(plans, name), dataset_json) == theirs


def test_plans_of_a_data_set_are_named_from_anywhere(plans_file, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "preprocessed" / "Dataset007_Tiny"
    folder.mkdir(parents=True)
    for name in ("E2ENetPlans.json", "dataset.json"):
        (folder / name).write_text((plans_file.parent / name).read_text())
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    expected = answer(capsys, plans_file)
    for dataset in ("7", "Tiny", "Dataset007_Tiny"):
        assert answer(capsys, dataset, "--plans", "E2ENetPlans") == expected
    assert main(["info", "7", "--plans", "Others"]) == 1
    assert "Plans in this folder: E2ENetPlans" in capsys.readouterr().err


def model_folder(root, plans, name="E2ENetTrainer__nnUNetPlans__3d_fullres"):
    from report.folders import three_cases

    folder = root / "Dataset007_Tiny" / name
    for fold in ("fold_0", "fold_1", "fold_all"):
        (folder / fold / "validation").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(LABELS))
    return folder, three_cases


def test_our_trainer_on_stock_plans_is_described_by_its_own_network(tmp_path, capsys):
    plans = stock_plans("nnUNetPlans", STRIDES)
    plans["configurations"]["3d_fullres"]["patch_size"] = [128] * 3
    folder, _ = model_folder(tmp_path, plans)
    report = json.loads(answer(capsys, folder, "--json"))["configurations"]
    assert list(report) == ["3d_fullres"]
    assert report["3d_fullres"]["method"] == "E2ENet"
    assert report["3d_fullres"]["parameters"]["active"] == 9_445_351
    stock, _ = model_folder(tmp_path, plans, "nnUNetTrainer__nnUNetPlans__3d_fullres")
    assert "not one of our networks" in answer(capsys, stock)


def test_a_link_to_a_model_folder_is_one_by_either_name(tmp_path, capsys):
    plans = stock_plans("nnUNetPlans", STRIDES)
    plans["configurations"]["3d_fullres"]["patch_size"] = [128] * 3
    folder, _ = model_folder(tmp_path, plans)
    (tmp_path / "mine").symlink_to(folder)
    stored = tmp_path / "store" / "abc123"
    stored.parent.mkdir()
    folder.rename(stored)
    folder.symlink_to(stored)
    for path in (folder, tmp_path / "mine"):
        if path.name == "mine":
            path.unlink()
            path.symlink_to(folder)
    assert "E2ENet" in answer(capsys, folder)
    assert main(["info", str(stored)]) == 1
    assert "its name must be TRAINER__PLANS__CONFIGURATION" in capsys.readouterr().err


def test_the_dice_of_a_model_is_that_of_its_report(tmp_path, capsys):
    from report.folders import e2enet_model

    from nnunet_ext.report.facts import headline
    from nnunet_ext.report.model_folder import read_model_folder

    model = e2enet_model(tmp_path)
    read = read_model_folder(model.path)
    rows = json.loads(answer(capsys, model.path, "--rivals", "amos-val", "--json"))["rivals"]
    ours = next(row for row in rows if row["method"].startswith("this E2ENet"))
    shown = float(headline(read).split()[2])
    assert ours["mdice"] == pytest.approx(100 * shown, abs=0.06)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["E2ENetPlans.json", "--patch", "64"], "--patch needs 2 numbers above 0 for 2d, found [64]"),
        (["E2ENetPlans.json", "--configuration", "3d_fullres", "--patch", "0", "0", "0"], "found [0, 0, 0]"),
        (["E2ENetPlans.json", "--rivals", "amos-val", "--dice", "0.901"], "in percent, such as 90.1, found 0.901"),
        (["nowhere.json"], "neither a plans file nor the folder of a trained model"),
        (["E2ENetPlans.json", "--configuration", "4d"], "No configuration 4d in these plans. They have: 2d, 3d"),
        (["E2ENetPlans.json", "--configuration", "3d_fullres", "--rivals", "amos-val"], "needs a mean Dice"),
        (["E2ENetPlans.json", "--configuration", "2d", "--rivals", "amos-val"], "has a paper convention"),
        (["dataset.json"], "is not a plans file"),
    ],
)
def test_what_cannot_be_answered_is_said(plans_file, capsys, monkeypatch, words, message):
    monkeypatch.chdir(plans_file.parent)
    assert main(["info", *words]) == 1
    assert message in capsys.readouterr().err


def test_inheritance_that_leads_nowhere_is_named():
    plans = {"configurations": {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}}
    with pytest.raises(ConfigurationError, match="leads nowhere"):
        resolved(plans, "a")
