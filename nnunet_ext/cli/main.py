"""`nnunet_ext`: the command with its subcommands, of which only the one that is used is imported."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.errors import ConfigurationError


@dataclass(frozen=True)
class Command:
    """A subcommand: its module, which has `add_arguments(parser)` and `run(args) -> int`, and its line in the help."""

    module: str
    help: str


COMMANDS = {
    "demo": Command("nnunet_ext.cli.demo", "generate data, then plan, train, predict and score in a few minutes"),
    "doctor": Command("nnunet_ext.cli.doctor", "check that nnU-Net finds our trainers and planners"),
    "info": Command("nnunet_ext.cli.info", "parameters, cost and size of a plans file's or model's networks"),
    "plan": Command("nnunet_ext.cli.plan", "write a plans file with a method's network and options"),
    "predict": Command("nnunet_ext.cli.predict", "nnUNetv2_predict with batches of slices in 2d configurations"),
    "report": Command("nnunet_ext.cli.report", "write one HTML page about a trained model folder"),
    "convert": Command("nnunet_ext.cli.convert", "turn a challenge's download into an nnU-Net raw data set"),
    "export": Command("nnunet_ext.cli.export", "check predictions and pack them as a challenge submission"),
    "score": Command("nnunet_ext.cli.score", "score predictions with a challenge's metrics, or compare two methods"),
    "transfer": Command("nnunet_ext.cli.transfer", "fit a checkpoint to other plans, for -pretrained_weights"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `argv` (default: the process's arguments) and returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser(argv).parse_args(argv)
    try:
        return args.run(args)
    except ConfigurationError as error:
        print(f"nnunet_ext: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nnunet_ext: interrupted", file=sys.stderr)
        return 130


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all subcommands, with the arguments of the one that `argv` names."""
    parser = argparse.ArgumentParser(
        prog="nnunet_ext",
        description="Efficient and adaptive segmentation methods for unmodified nnU-Net v2.",
        epilog="Training and prediction are nnU-Net's own commands, for example: "
        "nnUNetv2_train DATASET 3d_fullres 0 -tr E2ENetTrainer -p E2ENetPlans",
    )
    parser.add_argument("--version", action="version", version=f"nnunet_ext {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    chosen = next((argument for argument in argv if not argument.startswith("-")), None)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=_sentence(command.help))
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
