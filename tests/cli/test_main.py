"""The command: quick to answer, one sentence for what the user can put right, subcommands loaded when used."""

import os
import re
import subprocess
import sys
from importlib import import_module

import pytest

from nnunet_ext import __version__
from nnunet_ext.cli import main as cli
from nnunet_ext.cli.arguments import check_output
from nnunet_ext.errors import ConfigurationError

LIGHT = """
import sys
from nnunet_ext.cli.main import main
try:
    main({argv!r})
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"torch", "nnunetv2", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["demo", "--help"], ["plan", "--help"]], ids=" ".join)
def test_version_and_help_import_nothing_heavy(argv):
    done = subprocess.run([sys.executable, "-c", LIGHT.format(argv=argv)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (__version__ if argv == ["--version"] else "usage: nnunet_ext") in done.stdout


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_subcommand_has_its_two_functions(name):
    module = import_module(cli.COMMANDS[name].module)
    assert callable(module.add_arguments) and callable(module.run)


def test_the_help_names_every_subcommand(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    output = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        # argparse gives a long name a line of its own
        assert re.search(rf"^ +{name}\s+{command.help.split()[0]}", output, re.M), name


@pytest.mark.parametrize("where", ["argument", "variable", "folder"])
def test_names_that_the_locale_cannot_read_end_in_a_sentence(where, tmp_path):
    """SimpleITK aborts the process at such a name."""
    folder = tmp_path / "Müller Daten"
    folder.mkdir()
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "nnUNet_raw": ""}
    if where == "variable":
        environment["nnUNet_raw"] = str(folder)
    words = ["info", folder if where == "argument" else "x"]
    cwd = folder if where == "folder" else tmp_path
    command = [sys.executable, "-m", "nnunet_ext", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "PYTHONUTF8=1" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.fixture
def broken(monkeypatch):
    def set_error(error):
        def run(args):
            raise error

        monkeypatch.setattr("nnunet_ext.cli.plan.run", run)
        return ["plan", "7", "--method", "e2enet", "--name", "P"]

    return set_error


def test_configuration_errors_end_with_their_sentence(broken, capsys):
    assert cli.main(broken(ConfigurationError("The dose is 3 mm too long."))) == 1
    captured = capsys.readouterr()
    assert captured.err == "nnunet_ext: The dose is 3 mm too long.\n"
    assert captured.out == ""


def test_an_interrupt_ends_with_130(broken, capsys):
    assert cli.main(broken(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "nnunet_ext: interrupted\n"


def test_no_option_is_abbreviated(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--vers"])
    assert "--vers" in capsys.readouterr().err
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            PermissionError(13, "Permission denied", "/a/b.json"),
            "nnunet_ext: /a/b.json: Permission denied. Give a place",
        ),
        (FileNotFoundError(2, "No such file or directory", "c"), "nnunet_ext: c: No such file or directory. Give a"),
        (OSError("disk gone"), "nnunet_ext: OSError: disk gone"),
    ],
)
def test_errors_of_the_system_are_a_sentence(broken, capsys, error, sentence):
    assert cli.main(broken(error)) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(sentence) and captured.err.count("\n") == 1


def test_a_reader_that_has_ended_is_no_error():
    """As `nnunet_ext options e2enet | head -1`; the pipe is closed before the first line."""
    command = [sys.executable, "-m", "nnunet_ext.cli.main", "presets", "e2enet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_characters_that_the_console_does_not_have_cost_no_result(tmp_path):
    code = "from nnunet_ext.cli import main as m; m._run = lambda argv: print('Milz \u2192 \u00fc') or 0; m.main([])"
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Milz \\u2192 \\xfc\n"


def parser_of(name):
    """The subparser of a command with its own arguments."""
    parser = cli.build_parser([name])
    return next(a for a in parser._actions if a.choices and name in a.choices).choices[name]


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_one_word_means_one_thing_in_every_command(name):
    actions = {option: action for action in parser_of(name)._actions for option in action.option_strings}
    positional = {action.dest: action for action in parser_of(name)._actions if not action.option_strings}
    for short, long in (("-o", "--output"), ("-device", "--device")):
        assert actions.get(short) is actions.get(long)
    for option, action in actions.items():
        if option == "--overwrite":
            assert (action.nargs, action.help) == (0, "replace what is there")
        if option == "--plans":
            assert action.metavar == "PLANS"
    if "dataset" in positional:
        assert "id, name or DatasetXXX_Name" in positional["dataset"].help
    assert all(action.metavar is None or action.metavar.isupper() for action in positional.values())


ARGUMENTS = {  # what scripts of users rely on; the challenges' commands have theirs in tests/challenges
    "demo": "--method --all --dataset --device --work-dir --epochs",
    "doctor": "",
    "methods": "--json",
    "options": "method --json",
    "presets": "method --json",
    "plan": "dataset --method --preset --from --code --name --set --configuration --overwrite",
    "info": "source --plans --configuration --rivals --patch --dice --measure --json",
    "predict": "-i -o -d -c -tr -p -m -f -chk -step_size --disable_tta --save_probabilities "
    "--continue_prediction -prev_stage_predictions -num_parts -part_id -device --not_on_device --disable_progress_bar "
    "--verbose -npp -nps --precision --backend --dicom-seg --timing",
    "report": "model_folder -o --measures --tolerance -np --viewer-mb --overwrite",
    "container": "model_folder -o --layout --input --output-slug --base --folds --checkpoint --disable-tta --step-size "
    "--challenge --task",
    "transfer": "checkpoint dataset --plans --configuration --seed -o --overwrite",
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_no_argument_is_lost(name):
    actions = [action for action in parser_of(name)._actions if action.dest != "help"]
    names = [action.option_strings[0] if action.option_strings else action.dest for action in actions]
    assert names == ARGUMENTS[name].split()


def test_options_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "7", "--meth", "e2enet", "--name", "P"])
    assert "unrecognized arguments: --meth" in capsys.readouterr().err


def test_other_errors_keep_their_traceback(broken):
    with pytest.raises(ZeroDivisionError):
        cli.main(broken(ZeroDivisionError()))


@pytest.mark.parametrize("argv", [[], ["train"], ["plan"], ["demo", "--device", "abacus"]], ids=" ".join)
def test_wrong_usage_ends_with_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2
    assert "usage: nnunet_ext" in capsys.readouterr().err


def test_the_installed_command_reports_errors_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "nnunet_ext.cli.main", "plan", "7", "--method", "e2enet", "--name", "P"]
    done = subprocess.run(command, capture_output=True, text=True, env={"nnUNet_preprocessed": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.startswith("nnunet_ext: Data set '7' is none of")
    assert "Traceback" not in done.stderr


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    check_output(tmp_path / "new.html")
    check_output(tmp_path / "file", overwrite=True)
    for path, message in (
        (tmp_path, "give a file in a folder"),
        (tmp_path / "missing" / "a", "give a file in a folder"),
        (tmp_path / "file", "--overwrite"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            check_output(path)
    monkeypatch.setattr(os, "access", lambda folder, mode: (folder, mode) != (tmp_path, os.W_OK))
    with pytest.raises(ConfigurationError, match=f"may not write into {tmp_path}"):
        check_output(tmp_path / "new.html")
