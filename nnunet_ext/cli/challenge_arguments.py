"""Arguments that `convert`, `export` and `score` share."""

import argparse

from nnunet_ext.challenges.catalogue import CHALLENGES


def add_challenge(parser: argparse.ArgumentParser, *more: str) -> None:
    """CHALLENGE, by its name or as a file with a table of its own."""
    names = ", ".join([*more, *CHALLENGES])
    parser.add_argument(
        "challenge",
        metavar="CHALLENGE",
        help=f"{names}; or a Python file with a table of your own (docs/challenges.md)",
    )


def add_task(parser: argparse.ArgumentParser) -> None:
    """--task, what it means for each challenge."""
    parser.add_argument(
        "--task",
        type=int,
        metavar="N",
        help="amos22: 1 (CT, default) or 2 (CT and MR); msd: 1 to 10; brats-gli, -men, -met, -ped, -ssa: the year",
    )
