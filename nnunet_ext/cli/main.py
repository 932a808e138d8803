"""`nnunet_ext`: the command with its subcommands, of which only the one that is used is imported."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.errors import ConfigurationError


@dataclass(frozen=True)
class Command:
    """A subcommand: its module, with `add_arguments(parser)` and `run(args) -> int`, and its line in the help."""

    module: str
    help: str


COMMANDS = {
    "demo": Command("nnunet_ext.cli.demo", "generate data, then plan, train, predict and score in a few minutes"),
    "doctor": Command("nnunet_ext.cli.doctor", "check that nnU-Net finds our trainers and planners"),
    "methods": Command("nnunet_ext.cli.methods", "list the methods with their trainers, planners and plans"),
    "options": Command("nnunet_ext.cli.options", "list what can be set in a method's plans, with defaults and help"),
    "presets": Command("nnunet_ext.cli.presets", "list a method's named settings"),
    "plan": Command("nnunet_ext.cli.plan", "write a plans file with a method's network and options"),
    "info": Command("nnunet_ext.cli.info", "parameters, cost and size of a plans file's or model's networks"),
    "run": Command("nnunet_ext.cli.run", "run a study: methods x folds, from planning to the comparison"),
    "predict": Command("nnunet_ext.cli.predict", "predict with any nnU-Net model, as nnUNetv2_predict does, sooner"),
    "report": Command("nnunet_ext.cli.report", "write one HTML page about a trained model folder"),
    "compare": Command("nnunet_ext.cli.compare", "compare trained models case by case, on one HTML page"),
    "transfer": Command("nnunet_ext.cli.transfer", "fit a checkpoint to other plans, for -pretrained_weights"),
    "convert": Command("nnunet_ext.cli.convert", "turn a challenge's download into an nnU-Net raw data set"),
    "export": Command("nnunet_ext.cli.export", "check predictions and pack them as a challenge submission"),
    "export-model": Command("nnunet_ext.cli.export_model", "write a slim model that nnU-Net's commands predict with"),
    "container": Command("nnunet_ext.cli.container", "write the folder that a challenge's container is built from"),
    "score": Command("nnunet_ext.cli.score", "score predictions with a challenge's metrics, or compare two methods"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `argv` (default: the process's arguments) and returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the console cannot show must not cost the result
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_names(argv)
        code = _run(argv)
        sys.stdout.flush()
        return code
    except ConfigurationError as error:
        print(f"nnunet_ext: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # what reads the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except OSError as error:
        print(f"nnunet_ext: {_os_error_text(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nnunet_ext: interrupted", file=sys.stderr)
        return 130


def _run(argv: Sequence[str]) -> int:
    args = build_parser(argv).parse_args(argv)
    return args.run(args)


def _check_names(argv: Sequence[str]) -> None:
    """Refuses names of files that this locale cannot read: SimpleITK would end the whole process at one."""
    variables = [value for name, value in os.environ.items() if name.startswith("nnUNet_")]
    for name in (*argv, os.getcwd(), *variables):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ConfigurationError(
                f"{name} cannot be read with this locale's encoding of file names, {sys.getfilesystemencoding()}, and "
                f"SimpleITK cannot either. Run: export PYTHONUTF8=1 LC_ALL=C.UTF-8"
            ) from error


def _os_error_text(error: OSError) -> str:
    """One sentence: which file, and what the system says of it."""
    if error.filename is None or error.strerror is None:
        return f"{type(error).__name__}: {error}"
    return f"{error.filename}: {error.strerror}. Give a place that exists and that you may write or read."


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all subcommands, with the arguments of the one that `argv` names."""
    parser = argparse.ArgumentParser(
        prog="nnunet_ext",
        description="Efficient and adaptive segmentation methods for unmodified nnU-Net v2.",
        epilog="Training and prediction are nnU-Net's own commands, for example: "
        "nnUNetv2_train DATASET 3d_fullres 0 -tr E2ENetTrainer -p E2ENetPlans -device DEVICE (cuda, cpu or mps)",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"nnunet_ext {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    chosen = next((argument for argument in argv if not argument.startswith("-")), None)
    for name, command in COMMANDS.items():
        description = _sentence(command.help)
        subparser = subparsers.add_parser(name, help=command.help, description=description, allow_abbrev=False)
        if name == chosen:
            module = import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=_run_of(module))
    return parser


def _run_of(module: Any) -> Callable[[argparse.Namespace], int]:
    return module.run


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    sys.exit(main())
