"""`nnunet_ext doctor`: what is broken, what is merely not set yet, and one cause once."""

import importlib.metadata
import shlex
import subprocess
import sys

import pytest

import nnunet_ext
from nnunet_ext.cli.main import main
from nnunet_ext.discovery import checks
from nnunet_ext.discovery.registry import PLANNERS, TRAINERS
from nnunet_ext.errors import ConfigurationError

NAMES = {**TRAINERS, **PLANNERS}


def healthy():
    """The answer of a fresh Python in which all is well."""
    return {
        "hook": True,
        "package": list(nnunet_ext.__path__),
        "classes": {name: {"found": f"{module}.{name}"} for name, module in NAMES.items()},
        "nnUNet_extTrainer": {},
        "methods": {},
        "gpus": {"found": []},
        "mps": False,
    }


@pytest.fixture
def answers(monkeypatch):
    """What the fresh Python says; a test changes it."""
    probe = healthy()
    monkeypatch.setattr(checks, "ask", lambda: probe)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer"):
        monkeypatch.delenv(name, raising=False)
    return probe


def doctor(capsys):
    status = main(["doctor"])
    return status, capsys.readouterr().out


def broken(text):
    return [line for line in text.splitlines() if line.startswith("BROKEN")]


def test_after_the_installation_nothing_is_broken(answers, capsys):
    status, text = doctor(capsys)
    assert status == 0 and broken(text) == []
    assert sum(line.startswith("not set ") for line in text.splitlines()) == 3
    assert "Nothing is broken" in text
    for name in NAMES:
        assert name in text


def test_all_is_well(answers, capsys, monkeypatch, tmp_path):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    status, text = doctor(capsys)
    assert status == 0 and text.endswith("All is well.\n") and "not set" not in text


def test_a_start_up_file_that_is_not_active_is_one_fault(answers, capsys):
    answers["hook"] = False
    answers["classes"] = {name: {"error": "RuntimeError: not found"} for name in NAMES}
    status, text = doctor(capsys)
    assert status == 1 and len(broken(text)) == 1 and "nnunet_ext.pth is not active" in text
    assert "1 check failed." in text


def test_classes_that_are_not_found_for_one_reason_are_one_fault(answers, capsys):
    answers["classes"]["E2ENetTrainer"] = {"error": "ImportError: broken"}
    answers["classes"]["E2ENetPlanner"] = {"error": "ImportError: broken"}
    answers["classes"]["DiNTSTrainer"] = {"found": "other.DiNTSTrainer"}
    status, text = doctor(capsys)
    assert status == 1
    assert broken(text) == [
        "BROKEN  nnU-Net does not find DiNTSTrainer: its search returned other.DiNTSTrainer",
        "BROKEN  nnU-Net does not find E2ENetTrainer, E2ENetPlanner: ImportError: broken",
    ]
    assert "2 checks failed." in text


def test_a_python_that_fails_is_one_fault(answers, capsys):
    answers.clear()
    answers["error"] = "ModuleNotFoundError: No module named 'torch'"
    status, text = doctor(capsys)
    (line,) = broken(text)
    assert status == 1 and "No module named 'torch'" in line


def test_another_copy_of_the_package_is_named(answers, capsys):
    answers["package"] = ["/elsewhere/nnunet_ext"]
    status, text = doctor(capsys)
    (line,) = broken(text)
    assert status == 1 and "/elsewhere/nnunet_ext" in line


def test_another_package_of_the_same_name_is_named(answers, capsys, monkeypatch):
    monkeypatch.setattr(checks, "packages_distributions", lambda: {"nnunet_ext": ["nnunet_ext", "Lifelong-nnUNet"]})
    status, text = doctor(capsys)
    (line,) = broken(text)
    assert status == 1 and "Lifelong-nnUNet installs a package named nnunet_ext too" in line


def test_a_package_that_is_missing_or_of_another_release_is_named(answers, capsys, monkeypatch):
    def version(name):
        if name == "SimpleITK":
            raise importlib.metadata.PackageNotFoundError
        return "1"

    def too_old():
        raise ConfigurationError("nnunetv2 2.7 is outside the tested range")

    monkeypatch.setattr(checks, "version", version)
    monkeypatch.setattr(checks, "check_nnunet_version", too_old)
    status, text = doctor(capsys)
    assert status == 1
    assert [line[8:30] for line in broken(text)] == ["nnunetv2 2.7 is outsid", "SimpleITK is not insta"]


def test_folders(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {"nnUNet_raw": str(tmp_path / "file"), "nnUNet_results": str(tmp_path)}
    found = list(checks.folders(environment))
    assert [state for state, _ in found] == ["BROKEN", "not set", "ok"]
    assert "mkdir -p" in found[0][1] and "GiB free" in found[2][1]


@pytest.mark.parametrize("value", ["'/a b'", '"/data"'])
def test_quotation_marks_in_a_variable_are_named(value):
    ((state, text), *_) = checks.folders({"nnUNet_raw": value})
    assert state == "BROKEN" and "quotation marks" in text and "mkdir" not in text


def test_names_with_blanks_can_be_pasted():
    ((_, text), *_) = checks.folders({"nnUNet_raw": "/no such/it's"})
    assert shlex.split(text.partition("Create it: ")[2]) == ["mkdir", "-p", "/no such/it's"]


def test_folders_that_may_not_be_written(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(checks.os, "access", lambda path, mode: asked.append(mode) or False)
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    found = list(checks.folders(dict.fromkeys(names, str(tmp_path))))
    assert [state for state, _ in found] == ["BROKEN"] * 3
    assert [text.split()[-1] for _, text in found] == ["read", "write", "write"]
    assert asked == [checks.os.R_OK, checks.os.W_OK, checks.os.W_OK]


def test_what_a_method_looks_for_is_a_note_where_it_is_not_there(answers, capsys):
    answers["methods"] = {
        "a": {"found": [True, "a has it"]},
        "b": {"found": [False, "b lacks it"]},
        "c": {"error": "x"},
    }
    status, text = doctor(capsys)
    assert status == 0
    assert "ok      a has it" in text and "note    b lacks it" in text and "note    x" in text


def test_the_machine(answers, capsys):
    assert "no GPU: use -device cpu" in doctor(capsys)[1]
    answers["mps"] = True
    assert "-device mps" in doctor(capsys)[1]
    answers["gpus"] = {"found": [["A100", 10 * 2**30, 40 * 2**30]]}
    assert "GPU A100: 10.0 of 40.0 GiB free" in doctor(capsys)[1]
    answers["gpus"] = {"error": "RuntimeError: driver"}
    assert broken(doctor(capsys)[1]) == ["BROKEN  torch cannot ask the GPU: RuntimeError: driver"]


def test_a_fresh_python_is_asked_with_nnunets_own_searches(tmp_path, monkeypatch):
    """One process: ours are found, and each folder of `nnUNet_extTrainer` is imported as nnU-Net does."""
    good, bad, missing = tmp_path / "good", tmp_path / "bad", tmp_path / "missing"
    good.mkdir(), bad.mkdir()
    (good / "mine.py").write_text("class Mine: ...\n")
    (bad / "mine.py").write_text("import no_such_module\n")
    monkeypatch.setenv("nnUNet_extTrainer", ":".join(map(str, (good, bad, missing))))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nnunet_ext").mkdir()  # must not shadow the package
    probe = checks.ask()
    assert [state for state, _ in checks.discovery(probe)] == ["ok", "ok"]
    states = dict(zip((good, bad, missing), checks.further_trainers(probe["nnUNet_extTrainer"]), strict=True))
    assert states[good][0] == "ok"
    assert states[bad][0] == "BROKEN" and "No module named 'no_such_module'" in states[bad][1]
    assert states[missing][0] == "BROKEN" and "is no folder" in states[missing][1]
    assert set(probe["methods"]) == {"e2enet", "med_tuning"}
    assert all("found" in answer for answer in probe["methods"].values())


def test_a_python_that_does_not_start_is_told(monkeypatch):
    monkeypatch.setattr(checks.sys, "executable", "/no/such/python")
    assert "No such file" in checks.ask()["error"]


def test_a_python_that_dies_is_told(monkeypatch, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho out of memory >&2\nexit 9\n")
    (tmp_path / "python").chmod(0o700)
    monkeypatch.setattr(checks.sys, "executable", str(tmp_path / "python"))
    assert checks.ask() == {"error": "it ended with 9: out of memory"}


def test_doctor_is_a_command():
    result = subprocess.run([sys.executable, "-m", "nnunet_ext", "doctor", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "usage: nnunet_ext doctor" in result.stdout
