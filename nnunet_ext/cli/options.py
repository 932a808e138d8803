"""`nnunet_ext options METHOD`: what `nnunet_ext plan --set` can set, with defaults and what it means."""

import argparse
import json
import textwrap

from nnunet_ext.cli.arguments import add_method
from nnunet_ext.methods import METHODS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext options`."""
    add_method(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the options of training, network and configuration."""
    from nnunet_ext.planning.describe import describe_options, kinds_text

    described = describe_options(METHODS[args.method])
    if args.json:
        print(json.dumps(described, indent=2))
        return 0
    for title, options in described.items():
        print(f"{title}:")
        for option in options:
            kinds = kinds_text(option)
            print(f"  {option['name']} = {json.dumps(option['default'])}{f'   ({kinds})' if kinds else ''}")
            if option["help"]:
                print(textwrap.fill(option["help"], 100, initial_indent="      ", subsequent_indent="      "))
    print(f"\nSet them with: nnunet_ext plan DATASET --method {args.method} --name PLANS --set KEY=VALUE")
    return 0
