"""`nnunet_ext presets METHOD`: the named settings of `nnunet_ext plan --preset`."""

import argparse
import json

from nnunet_ext.cli.arguments import add_method
from nnunet_ext.methods import METHODS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext presets`."""
    add_method(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints each preset with its settings."""
    from nnunet_ext.planning.describe import short_json

    presets = METHODS[args.method].preset_settings()
    if args.json:
        print(json.dumps(presets, indent=2))
        return 0
    for name, settings in presets.items():
        shown = ", ".join(f"{key}={short_json(value)}" for key, value in settings.items())
        print(f"{args.method}/{name}: {shown}")
    return 0
