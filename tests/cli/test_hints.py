"""Printed commands run on the machine that prints them: found by the shell, quoted, on a device that it has."""

import ast
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from end_to_end.stock import stock_plans

from nnunet_ext.cli.main import main
from nnunet_ext.demo.run import Demo, prepare_work_dir
from nnunet_ext.discovery import commands, devices
from nnunet_ext.discovery.commands import typed_command
from nnunet_ext.discovery.devices import device_words
from nnunet_ext.methods import METHODS

ROOT = Path(__file__).parents[2]
DEVICES = {"cuda": [], "mps": ["-device", "mps"], "cpu": ["-device", "cpu"]}


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """The machine has this device and no better one."""
    monkeypatch.setattr(devices, "best_device", lambda: request.param)
    return request.param


@pytest.fixture
def planned(tmp_path, monkeypatch):
    folder = tmp_path / "preprocessed" / "Dataset007_Tiny"
    folder.mkdir(parents=True)
    plans = stock_plans("nnUNetPlans", [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]])
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    labels = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(labels))
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))


def command_of(text):
    """The words after the colon of the last line."""
    return shlex.split(text.strip().splitlines()[-1].partition(": ")[2])


@pytest.mark.parametrize("name", DEVICES)
def test_devices_are_named_where_nnunets_default_is_not_there(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: name != "cpu")
    assert device_words() == DEVICES[name]
    assert device_words("cpu") == ["-device", "cpu"] and device_words("cuda") == []


@pytest.mark.parametrize("settings", [["--method", "e2enet"], ["--from", "nnUNetPlans", "--set", "batch_size=3"]])
def test_plan_says_how_to_train_here(planned, device, capsys, settings):
    assert main(["plan", "7", "--name", "New", *settings]) == 0
    words = command_of(capsys.readouterr().out)
    assert Path(words[0]).name == "nnUNetv2_train" and shutil.which(words[0])
    trainer = ["-tr", "E2ENetTrainer"] if "--method" in settings else []
    assert words[1:] == ["Dataset007_Tiny", "3d_fullres", "0", *trainer, "-p", "New", *DEVICES[device]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", [method for method in METHODS.values() if method.demo_path], ids=lambda m: m.name)
def test_the_demo_ends_with_commands_for_its_device(tmp_path, capsys, method, device):
    work = prepare_work_dir(tmp_path / "a folder")
    Demo(method, device, work, None).say_what_is_next()
    text = capsys.readouterr().out
    found = [shlex.split(line) for line in text.splitlines() if "-d ID" in line or " ID " in line]
    assert len(found) == 4 and all(shutil.which(words[0]) for words in found)
    for words in found:
        name = Path(words[0]).name
        computes = name in ("nnUNetv2_train", "nnUNetv2_predict")
        assert words[-2:] == (["-device", device] if computes and device != "cuda" else words[-2:])
        assert ("-device" in words) == (computes and device != "cuda")
        assert method.planner in words or method.trainer in words
    report = command_of(text)
    assert report[-2] == "report" and report[-1].startswith(str(work))  # one word, blank and all


def test_a_command_that_the_shell_does_not_find_is_printed_with_its_place(monkeypatch):
    beside = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(beside))
    assert typed_command(["nnUNetv2_train", "1", "a b"]) == "nnUNetv2_train 1 'a b'"
    monkeypatch.setenv("PATH", "/nowhere")
    assert shlex.split(typed_command(["nnUNetv2_train", "1"])) == [str(beside / "nnUNetv2_train"), "1"]
    monkeypatch.setattr(commands.startup, "installed", lambda: False)
    assert shlex.split(typed_command(["nnUNetv2_train"])) == [sys.executable, "-m", "nnunet_ext", "nnUNetv2_train"]


# Texts with a training or prediction that are no commands of this machine: they stand in the help, name a machine
# themselves (the report has the model's device), or leave out what they cannot know.
TEXTS = {
    "nnunet_ext/cli/main.py": "-device DEVICE",
    "nnunet_ext/report/commands.py": "{shlex.join(words)}",
    "nnunet_ext/comparison/models.py": "nnUNetv2_train ...",
    "nnunet_ext/__main__.py": "nnUNetv2_train -h",
    "nnunet_ext/cli/predict.py": "nnUNetv2_predict ",
}


def test_no_other_text_holds_a_training_or_prediction():
    """What computes is put together by `typed_command` and `device_words`, never written into a sentence."""
    found = {}
    for folder in ("nnunet_ext", "trainers", "plans"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    if re.search(r"nnUNetv2_(train|predict) ", node.value):
                        found[path.relative_to(ROOT).as_posix()] = node.value
    assert found.keys() == TEXTS.keys()
    for path, there in TEXTS.items():
        assert there in (ROOT / path).read_text(encoding="utf-8")
