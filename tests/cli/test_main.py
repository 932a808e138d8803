"""The command: quick to answer, one sentence for what the user can put right, subcommands loaded when used."""

import subprocess
import sys
from importlib import import_module

import pytest

from nnunet_ext import __version__
from nnunet_ext.cli import main as cli
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
        assert f"{name} " in output and command.help.split()[0] in output


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
    assert "Traceback" not in capsys.readouterr().err


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
    assert done.stderr.startswith("nnunet_ext: Data set '7' must match one folder")
    assert "Traceback" not in done.stderr
