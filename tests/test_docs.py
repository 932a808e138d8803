"""Every code block of README and docs is what it says: Python runs, JSON is JSON, commands are valid or run.

Commands that take no training run on a small planned data set 998. The others (trainings, predictions, conversions of
downloads, the demo) are read by the parser that would read them, and every trainer, planner and plans name is looked
up; the tests through the stock commands run them.
"""

import argparse
import json
import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from end_to_end.stock import stock_plans

from nnunet_ext.cli import main as cli
from nnunet_ext.dints.architecture_code import CVPR_CODE
from nnunet_ext.dints.code_file import CodeFile
from nnunet_ext.discovery.registry import PLANNERS, TRAINERS
from nnunet_ext.methods import METHODS
from nnunet_ext.planning.derive import derive_plans
from nnunet_ext.studies.study import read_study

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = {"plan", "info", "methods", "options", "presets"}  # what runs here
PLACEHOLDERS = {"CHALLENGE": "btcv", "FOLDER": ".", "FILE.zip": "a.zip"}


def blocks(language):
    """`(page, number of the line, text)` of every fenced block of the language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.S | re.M):
            found.append((page, text.count("\n", 0, match.start()) + 1, match[1]))
    return found


def commands():
    """`(where, words)` of every command of the shell blocks, loops and `&&` taken apart."""
    found = []
    for page, start, text in blocks("bash"):
        for number, line in enumerate(text.splitlines(), start=start + 1):
            line = re.sub(r"^for \w+ in .*?; do (.*); done", r"\1", line).replace("$fold", "0")
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                if words:
                    found.append((f"{page.name}:{number}", words))
    return found


COMMANDS = commands()
NAMED = {words[words.index("--name") + 1] for _, words in COMMANDS if words[:2] == ["nnunet_ext", "plan"]}
PLANS = {"nnUNetPlans", *(method.plans_name for method in METHODS.values()), *NAMED}


def ids(items):
    return [f"{item[0]} {' '.join(item[1][:2])}" for item in items]


def test_every_fence_has_a_language_that_is_checked():
    for page in PAGES:
        languages = re.findall(r"^```(\w*)$", page.read_text(encoding="utf-8"), re.M)
        assert set(languages) <= {"bash", "python", "json", "yaml", ""} and languages.count("") * 2 == len(languages), (
            page
        )


@pytest.mark.parametrize(("page", "line", "text"), blocks("python"), ids=lambda value: getattr(value, "name", None))
def test_python_runs(page, line, text):
    exec(compile(text, f"{page.name}:{line}", "exec"), {"__name__": "block"})


@pytest.mark.parametrize(("page", "line", "text"), blocks("json"), ids=lambda value: getattr(value, "name", None))
def test_json_is_json(page, line, text):
    assert json.loads(text)


@pytest.mark.parametrize(("page", "line", "text"), blocks("yaml"), ids=lambda value: getattr(value, "name", None))
def test_yaml_is_a_study(page, line, text, tmp_path):
    (tmp_path / "study.yaml").write_text(text)
    assert read_study(tmp_path / "study.yaml").entries


class Parsed(Exception):
    pass


def parsed_by_nnunet(words, monkeypatch):
    """Has nnU-Net's own command read its arguments, and nothing more."""
    found = list(entry_points(group="console_scripts", name=words[0]))
    assert found, f"{words[0]} is no command"
    parse = argparse.ArgumentParser.parse_known_args

    def stop(parser, *args, **kwargs):
        raise Parsed(*parse(parser, words[1:]))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    with pytest.raises(Parsed) as caught:
        found[0].load()()
    assert caught.value.args[1] == [], "arguments that nnU-Net does not know"


NNUNETS = [(where, words) for where, words in COMMANDS if words[0].startswith("nnUNetv2_")]


@pytest.mark.parametrize(("where", "words"), NNUNETS, ids=ids(NNUNETS))
def test_nnunets_commands_are_read_by_nnunet_and_name_what_there_is(where, words, monkeypatch):
    parsed_by_nnunet(words, monkeypatch)
    for flag, known in (
        ("-tr", {*TRAINERS, "nnUNetTrainer", "MyE2ENetTrainer"}),
        ("-pl", set(PLANNERS)),
        ("-p", PLANS),
    ):
        if flag in words:
            assert words[words.index(flag) + 1] in known, words


OURS = [(where, words) for where, words in COMMANDS if words[0] == "nnunet_ext"]


@pytest.mark.parametrize(("where", "words"), OURS, ids=ids(OURS))
def test_our_commands_are_valid(where, words, capsys):
    words = [PLACEHOLDERS.get(word, word) for word in words[1:]]
    assert words[0] in cli.COMMANDS
    cli.build_parser(words).parse_args(words)


OTHERS = [
    (where, words) for where, words in COMMANDS if words[0] not in ("nnunet_ext",) and (where, words) not in NNUNETS
]


def test_other_commands_are_known():
    assert {words[0] for _, words in OTHERS} <= {
        "bash",
        "conda",
        "docker",
        "export",
        "pip",
        "pytest",
        "python",
        "sbatch",
    }
    assert all((ROOT / words[1]).is_file() for _, words in OTHERS if words[0] == "python")


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """$nnUNet_preprocessed with the data sets 4, 997 and 998, the plans of all methods, and a searched code."""
    root = tmp_path_factory.mktemp("preprocessed")
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    stock = stock_plans("nnUNetPlans", strides)
    stock["configurations"]["3d_fullres"]["patch_size"] = [32, 64, 64]
    stock["configurations"]["2d"]["patch_size"] = [64, 64]
    labels = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    for name in ("Dataset004_Hippocampus", "Dataset997_Other", "Dataset998_Phantoms"):
        folder = root / name
        folder.mkdir()
        (folder / "dataset.json").write_text(json.dumps(labels))
        (folder / "nnUNetPlans.json").write_text(json.dumps(stock))
        for method in METHODS.values():
            settings = {"pretrained": False} if method.name == "med_tuning" else {}
            plans = derive_plans(stock, labels, method, name=method.plans_name, settings=settings)
            (folder / f"{method.plans_name}.json").write_text(json.dumps(plans))
    code = root / "fold_0" / "architecture.json"
    code.parent.mkdir()
    CodeFile(CVPR_CODE, True, 3, {}).write(code)
    return root


RUNNING = [(where, words) for where, words in OURS if words[1] in RUN]


@pytest.mark.parametrize(("where", "words"), RUNNING, ids=ids(RUNNING))
def test_commands_without_a_training_run(where, words, planned, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(planned))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [word.replace("MODEL_FOLDER", str(planned)) for word in words[1:]]
    if "arch_code_cvpr.pth" in words:
        words[words.index("arch_code_cvpr.pth")] = str(planned / "fold_0" / "architecture.json")
    if any("med_tuning" in word for word in words):  # ImageNet's weights are not at hand
        words += ["--set", "pretrained=false"]
    assert cli.main(words) == 0, capsys.readouterr().err


def test_the_readmes_table_has_what_the_planners_planned():
    rows = json.loads((ROOT / "benchmarks" / "results" / "planned_networks.json").read_text())["rows"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = {re.sub(r"\[(.+?)\].*", r"\1", line.split(" | ")[0].strip("| ")): line for line in text.splitlines()
             if " MB |" in line and line.startswith("|")}  # fmt: skip
    for row in rows:
        line = table.get(row["network"].removesuffix(" search"))
        patch = "x".join(map(str, row["patch_size"]))
        assert f"{patch}, {row['batch_size']}" in line
        if row["network"] in table:
            assert f"{row['parameters'] / 1e6:.1f} M" in line and f"{row['stored_mb']:.0f} MB" in line
            if row["trained_parameters"] < row["parameters"]:
                assert f"{row['trained_parameters'] / 1e6:.1f} M trained" in line
