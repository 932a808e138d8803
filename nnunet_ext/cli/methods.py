"""`nnunet_ext methods`: the methods with their names for nnU-Net."""

import argparse
import json

from nnunet_ext.methods import METHODS, Method


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext methods`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints one block a method."""
    if args.json:
        print(json.dumps({name: facts(method) for name, method in METHODS.items()}, indent=2))
        return 0
    for name, method in METHODS.items():
        print(f"{name}: {method.title}, {method.summary}")
        print(f"  -tr {', '.join(method.trainers)}   -pl {method.planner}   -p {method.plans_name}   ({method.docs})")
    print("\nWhat can be set: nnunet_ext options METHOD, nnunet_ext presets METHOD")
    return 0


def facts(method: Method) -> dict[str, object]:
    """A method as JSON values."""
    return {
        "title": method.title,
        "summary": method.summary,
        "trainers": list(method.trainers),
        "planner": method.planner,
        "plans": method.plans_name,
        "docs": method.docs,
    }
