"""`nnunet_ext doctor`: whether nnU-Net can find and run our trainers and planners here."""

import argparse
from collections import Counter

from nnunet_ext.discovery.checks import checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    """Prints one line per check; 1 when something is broken, else 0."""
    print("Asking a fresh Python, which takes some seconds ...", flush=True)
    states: Counter[str] = Counter()
    for state, text in checks():
        states[state] += 1
        print(f"{state:8}{text}", flush=True)
    if states["BROKEN"]:
        print(f"\n{states['BROKEN']} check{'s' if states['BROKEN'] > 1 else ''} failed.")
    elif states["not set"]:
        print("\nNothing is broken. What is not set yet is needed for training; the demo does without.")
    else:
        print("\nAll is well.")
    return 1 if states["BROKEN"] else 0
