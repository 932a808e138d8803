"""`nnunet_ext export`: from predictions to the archive that a challenge accepts."""

import argparse
from pathlib import Path

from nnunet_ext.challenges.catalogue import get_challenge, get_tasks, has_default
from nnunet_ext.cli.arguments import add_overwrite, add_processes
from nnunet_ext.cli.challenge_arguments import add_challenge, add_task
from nnunet_ext.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext export`."""
    add_challenge(parser)
    parser.add_argument("predictions", metavar="PREDICTIONS", type=Path, help="folder written by nnUNetv2_predict")
    parser.add_argument(
        "--images", required=True, type=Path, metavar="FOLDER", help="nnU-Net's imagesTs or the challenge's download"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="ZIP", help="the archive to write")
    add_task(parser)
    parser.add_argument("--split", choices=("val", "test"), help="which official cases (default: the challenge's)")
    parser.add_argument("--dry-run", action="store_true", help="check everything and show the plan, write nothing")
    add_overwrite(parser)
    rules = parser.add_argument_group("rules that are not known for sure, or that you may want otherwise")
    rules.add_argument("--subset", action="store_true", help="accept another set of cases than the official one")
    rules.add_argument("--missing", choices=("error", "warn"), help="what a case without prediction is")
    rules.add_argument("--empty", choices=("error", "warn"), help="what a prediction without any foreground is")
    rules.add_argument(
        "--values",
        choices=("nnunet", "challenge"),
        default="nnunet",
        help="whose label values the predictions have (default: %(default)s)",
    )
    rules.add_argument("--name", metavar="TEMPLATE", help="name of a submitted file, such as 'label{id:04d}'")
    rules.add_argument("--folder", metavar="NAME", help="folder inside the archive, '' for none")
    rules.add_argument(
        "--fill-missing-tasks", action="store_true", help="msd: submit background for tasks without predictions"
    )
    rules.add_argument(
        "--include-left-out", action="store_true", help="msd: also submit the eleven cases that are to be left out"
    )
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Checks, packs and prints a report."""
    from nnunet_ext.challenges.export import export
    from nnunet_ext.challenges.submission import Options

    if has_default(args.challenge, args.task):
        tasks, title = [get_challenge(args.challenge, args.task)], ""
    else:
        tasks, title = list(get_tasks(args.challenge).values()), args.challenge
    one_archive = len({task.submission.folder for task in tasks}) == len(tasks)
    if not one_archive:
        get_challenge(args.challenge)  # says which tasks there are
    if len(tasks) > 1 and args.folder is not None:
        raise ConfigurationError(f"{args.challenge} has a folder for each task; leave out --folder.")
    if len(tasks) == 1 and args.fill_missing_tasks:
        raise ConfigurationError("--fill-missing-tasks is for challenges that take several tasks in one archive.")
    rules = (args.split, args.missing, args.empty, args.subset, args.values, args.name, args.folder)
    options = Options(*rules, args.fill_missing_tasks, args.include_left_out)
    how = {"overwrite": args.overwrite, "dry_run": args.dry_run, "processes": args.np, "title": title}
    try:
        report = export(tasks, args.predictions, args.images, args.output, options, **how)
    except KeyboardInterrupt:
        raise ConfigurationError(f"Interrupted, {args.output} was not written.") from None
    print(report)
    return 0
