"""`nnunet_ext convert`: from a challenge's download to nnU-Net's raw data set."""

import argparse
from pathlib import Path

from nnunet_ext.challenges.catalogue import get_challenge, get_tasks, has_default
from nnunet_ext.challenges.parallel import default_processes
from nnunet_ext.cli.challenge_arguments import add_challenge, add_task
from nnunet_ext.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext convert`."""
    add_challenge(parser)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the downloaded and unpacked folder, as it is")
    parser.add_argument("--dataset-id", type=int, metavar="N", help="number of the data set (default: the challenge's)")
    parser.add_argument("--name", help="name of the data set after the number (default: the challenge's)")
    add_task(parser)
    parser.add_argument("--regions", action="store_true", help="regions instead of labels (BraTS, KiTS, LiTS)")
    parser.add_argument(
        "--splits",
        action="store_true",
        help="use the official validation cases for training and write splits_final.json, instead of putting them "
        "into imagesTs",
    )
    parser.add_argument("--exclude", nargs="+", metavar="CASE", default=[], help="cases to leave out")
    parser.add_argument(
        "--geometry",
        choices=("error", "warn"),
        default="error",
        help="what a label map is whose header places it elsewhere than its image; warn takes it as it is "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--link", action="store_true", help="link images that need no change to the download instead of copying them"
    )
    parser.add_argument(
        "-np", type=int, default=default_processes(), metavar="N", help="processes (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Converts and prints a summary."""
    from nnunet_ext.challenges.convert import Options, convert
    from nnunet_ext.challenges.discover import present

    if args.np < 1:
        raise ConfigurationError(f"-np takes a number of processes of at least 1, found {args.np}.")
    tasks = [get_challenge(args.challenge, args.task)] if has_default(args.challenge, args.task) else []
    if not tasks:
        everything = list(get_tasks(args.challenge).values())
        tasks = present(everything, args.source)
        if not tasks:
            names = ", ".join(task.title for task in everything)
            raise ConfigurationError(f"{args.source} holds nothing of {names}.")
    if len(tasks) > 1 and (args.dataset_id is not None or args.name or args.exclude):
        raise ConfigurationError("--dataset-id, --name and --exclude need a single task: choose one with --task.")
    options = Options(
        args.dataset_id, args.name, args.regions, args.splits, tuple(args.exclude), args.geometry, args.link
    )
    try:
        for challenge in tasks:
            print(convert(challenge, args.source, options, processes=args.np))
    except KeyboardInterrupt:
        raise ConfigurationError("Interrupted before anything was written.") from None
    return 0
