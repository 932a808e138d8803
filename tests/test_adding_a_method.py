"""docs/adding_a_method.md holds: a fifth method is added by its steps in a copy of the package, and trains."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from end_to_end.stock import Workspace, make_dataset, stock_plans

ROOT = Path(__file__).parents[1]
TOY = Path(__file__).with_name("toy_method")
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]

# What nnU-Net does with a trainer's name, up to the first step.
ONE_STEP = """
import json, os, sys, torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
name, plans, dataset_json = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
trainer = recursive_find_trainer_class_by_name(name)(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
trainer.initialize()
trainer.on_train_epoch_start()
target = torch.randint(0, 3, (2, 1, 8, 16, 16)).float()
if trainer.enable_deep_supervision:
    sizes = [[round(p * s) for p, s in zip((8, 16, 16), scale)] for scale in trainer._get_deep_supervision_scales()]
    target = [torch.nn.functional.interpolate(target, size=size) for size in sizes]
before = [p.detach().clone() for p in trainer.network.parameters()]
loss = float(trainer.train_step({"data": torch.randn(2, 1, 8, 16, 16), "target": target})["loss"])
moved = any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters()))
print(json.dumps([type(trainer).__module__, type(trainer.network).__module__, loss == loss, moved]))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """The package as it is installed, with the toy method's files and its entry, and nothing else changed."""
    tree = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "nnunet_ext", tree / "nnunet_ext", ignore=ignored)
    for folder in ("trainers", "plans"):
        shutil.copytree(ROOT / folder, tree / "nnunet_ext" / folder, ignore=ignored)
    shutil.copytree(TOY / "nnunet_ext", tree / "nnunet_ext", dirs_exist_ok=True, ignore=ignored)
    for folder in ("trainers", "plans"):
        shutil.copytree(TOY / folder, tree / "nnunet_ext" / folder, dirs_exist_ok=True, ignore=ignored)
    methods = tree / "nnunet_ext" / "methods.py"
    head, end, tail = methods.read_text().partition("\n    )\n}\n")
    methods.write_text(head + "\n" + (TOY / "entry.txt").read_text().rstrip() + end + tail)
    return tree


def run(extended, workspace, *words, **environment):
    """One command in the extended package; returns what it prints."""
    variables = {**workspace.environment, "PYTHONPATH": str(extended), **environment}
    result = subprocess.run(words, capture_output=True, text=True, check=False, env=variables, cwd=workspace.root)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def ours(extended, workspace, *words):
    return run(extended, workspace, sys.executable, "-m", "nnunet_ext", *words)


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path)
    folder = workspace.preprocessed / workspace.dataset
    data = folder / "nnUNetPlans_3d_fullres"
    data.mkdir(parents=True)
    (data / "case_000.b2nd").touch()
    (folder / "nnUNetPlans.json").write_text(json.dumps(stock_plans("nnUNetPlans", STRIDES)))
    labels = {"background": 0, "outer": 1, "inner": 2}
    dataset_json = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 5, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return workspace


def one_step(extended, workspace, trainer, plans, **environment):
    folder = workspace.preprocessed / workspace.dataset
    texts = [(folder / name).read_text() for name in (f"{plans}.json", "dataset.json")]
    plans = json.dumps({**json.loads(texts[0]), "continue_training": False})
    output = run(extended, workspace, sys.executable, "-c", ONE_STEP, trainer, plans, texts[1], **environment)
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
def test_the_new_method_is_listed_planned_and_trained_for_an_iteration(extended, workspace):
    assert "-tr ShallowTrainer   -pl ShallowPlanner   -p ShallowPlans" in ours(extended, workspace, "methods")
    assert "momentum of SGD" in ours(extended, workspace, "options", "shallow")
    assert ours(extended, workspace, "presets", "shallow") == "shallow/wide: width=32\n"
    words = ["plan", "7", "--preset", "shallow/wide", "--name", "ShallowPlans", "--set", "momentum=0.5"]
    assert "-tr ShallowTrainer -p ShallowPlans" in ours(extended, workspace, *words)
    text = ours(extended, workspace, "info", "7", "--plans", "ShallowPlans", "--configuration", "3d_fullres")
    assert f"parameters {27 * 32 + 3 * 32 + 32 * 3 + 3:,}" in text
    found = one_step(extended, workspace, "ShallowTrainer", "ShallowPlans")
    assert found == ["nnunet_ext.trainers.shallow", "nnunet_ext.shallow.network", True, True]


@pytest.mark.slow
def test_the_new_method_goes_through_the_stock_commands(extended, tmp_path):
    workspace = Workspace(tmp_path)
    make_dataset(workspace, cases=5, tests=1)
    scripts = Path(sys.executable).parent
    words = ["-d", "7", "-pl", "ShallowPlanner", "-c", "3d_fullres", "-np", "1", "-npfp", "1"]
    run(extended, workspace, str(scripts / "nnUNetv2_plan_and_preprocess"), *words)
    small = ["--set", "num_epochs=1", "--set", "num_iterations_per_epoch=1", "--set", "num_val_iterations_per_epoch=1"]
    ours(extended, workspace, "plan", "7", "--from", "ShallowPlans", "--name", "Short", *small,
         "--set", "patch_size=[8,16,16]", "--configuration", "3d_fullres")  # fmt: skip
    names = ["-tr", "ShallowTrainer", "-p", "Short", "-device", "cpu"]
    run(extended, workspace, str(scripts / "nnUNetv2_train"), "7", "3d_fullres", "0", *names, nnUNet_n_proc_DA="0")
    images = workspace.raw / workspace.dataset / "imagesTs"
    words = ["-i", str(images), "-o", str(tmp_path / "out"), "-d", "7", "-c", "3d_fullres", "-f", "0", *names]
    run(extended, workspace, str(scripts / "nnUNetv2_predict"), *words, "-npp", "0", "-nps", "0")
    assert (tmp_path / "out" / "case_005.nii.gz").is_file()


def test_the_page_names_what_the_toy_method_consists_of():
    files = {path.relative_to(TOY).as_posix() for path in TOY.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert files == {
        "nnunet_ext/shallow/__init__.py", "nnunet_ext/shallow/options.py", "nnunet_ext/shallow/network.py",
        "nnunet_ext/shallow/presets.py", "trainers/shallow.py", "plans/shallow.py", "entry.txt", "docs/shallow.md",
    }  # fmt: skip
    for name in ("options.py", "network.py", "presets.py", "trainers/<method>.py", "plans/<method>.py", "methods.py"):
        assert f"{name}`" in PAGE


@pytest.mark.slow
def test_a_trainer_made_from_ours_is_found_in_a_folder_of_the_users(workspace):
    page = (ROOT / "docs" / "how_to" / "own_trainer.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n# (my_trainers/\w+\.py)\n(.*?)```", page, re.S)
    file = workspace.root / block[1]
    file.parent.mkdir()
    file.write_text(block[2])
    environment = {**workspace.environment, "PYTHONPATH": ""}
    words = [sys.executable, "-m", "nnunet_ext", "plan", "7", "--method", "e2enet", "--name", "E2ENetPlans",
             "--configuration", "3d_fullres", "--set", "base_features=4"]  # fmt: skip
    subprocess.run(words, check=True, env=environment, capture_output=True)
    found = one_step("", workspace, "MyE2ENetTrainer", "E2ENetPlans", nnUNet_extTrainer=str(file.parent))
    assert found[1:] == ["nnunet_ext.e2enet.network", True, True]
    assert os.path.splitext(file.name)[0] in found[0]
