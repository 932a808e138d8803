"""`nnunet_ext convert`: from a challenge's download to nnU-Net's raw data set."""

import argparse
from pathlib import Path

from nnunet_ext.challenges.catalogue import CHALLENGES, get_challenge
from nnunet_ext.challenges.parallel import default_processes
from nnunet_ext.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext convert`."""
    parser.add_argument("challenge", metavar="CHALLENGE", choices=CHALLENGES, help=", ".join(CHALLENGES))
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the downloaded and unpacked folder, as it is")
    parser.add_argument("--dataset-id", type=int, metavar="N", help="number of the data set (default: the challenge's)")
    parser.add_argument("--name", help="name of the data set after the number (default: the challenge's)")
    parser.add_argument(
        "--task", type=int, metavar="N", help="amos22: 1 (CT, default) or 2 (CT and MR); msd: only this task folder"
    )
    parser.add_argument("--regions", action="store_true", help="nested regions instead of labels (BraTS, KiTS, LiTS)")
    parser.add_argument(
        "--splits",
        action="store_true",
        help="use the official validation cases for training and write splits_final.json, instead of putting them "
        "into imagesTs",
    )
    parser.add_argument(
        "-np", type=int, default=default_processes(), metavar="N", help="processes (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Converts and prints a summary."""
    from nnunet_ext.challenges.convert import convert, convert_msd

    try:
        if args.challenge == "msd":
            if args.regions or args.splits or args.name:
                raise ConfigurationError("msd has no --regions, --splits or --name: nnU-Net's own converter does it.")
            tasks = task_folders(args.source, args.task)
            if args.dataset_id is not None and len(tasks) > 1:
                raise ConfigurationError("--dataset-id needs a single task folder.")
            for number, folder in tasks:
                challenge = get_challenge("msd", number)
                print(convert_msd(challenge, folder, dataset_id=args.dataset_id, processes=args.np))
            return 0
        summary = convert(
            get_challenge(args.challenge, args.task),
            args.source,
            dataset_id=args.dataset_id,
            name=args.name,
            regions=args.regions,
            merge_validation=args.splits,
            processes=args.np,
        )
        print(summary)
        return 0
    except KeyboardInterrupt:
        raise ConfigurationError("Interrupted before anything was written.") from None


def task_folders(source: Path, task: int | None) -> list[tuple[int, Path]]:
    """The MSD task folders that `source` is or holds, by number.

    Raises:
        ConfigurationError: none, or not the wanted one.
    """
    from nnunet_ext.challenges.msd import TASKS

    if not source.is_dir():
        raise ConfigurationError(f"{source} is not a folder.")
    numbers = {row.folder: row.number for row in TASKS}
    candidates = [source.resolve(), *sorted(p for p in source.iterdir() if p.is_dir())]
    found = [(numbers[p.name], p) for p in candidates if p.name in numbers]
    wanted = [(number, folder) for number, folder in found if task in (None, number)]
    if not wanted:
        names = ", ".join(numbers)
        raise ConfigurationError(
            f"{source} neither is nor holds {'a task folder' if task is None else f'the folder of task {task}'}. "
            f"Unpacked, the tasks are named {names}."
        )
    return wanted
