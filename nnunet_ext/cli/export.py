"""`nnunet_ext export`: from predictions to the archive that a challenge accepts."""

import argparse
from pathlib import Path

from nnunet_ext.challenges.catalogue import CHALLENGES, get_challenge
from nnunet_ext.challenges.parallel import default_processes
from nnunet_ext.cli.arguments import add_overwrite
from nnunet_ext.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext export`."""
    parser.add_argument("challenge", metavar="CHALLENGE", choices=CHALLENGES, help=", ".join(CHALLENGES))
    parser.add_argument("predictions", metavar="PREDICTIONS", type=Path, help="folder written by nnUNetv2_predict")
    parser.add_argument(
        "--images", required=True, type=Path, metavar="FOLDER", help="nnU-Net's imagesTs or the challenge's download"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="ZIP", help="the archive to write")
    parser.add_argument("--task", type=int, metavar="N", help="amos22: 1 (CT, default) or 2 (CT and MR)")
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
    parser.add_argument(
        "-np", type=int, default=default_processes(), metavar="N", help="worker processes (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Checks, packs and prints a report."""
    from nnunet_ext.challenges.export import Options, export, export_msd
    from nnunet_ext.challenges.msd import LEFT_OUT, MSD

    options = Options(args.split, args.missing, args.empty, args.subset, args.values, args.name, args.folder)
    common = {"overwrite": args.overwrite, "dry_run": args.dry_run, "processes": args.np}
    try:
        if args.challenge == "msd":
            if args.task is not None or args.folder is not None:
                raise ConfigurationError("msd takes one archive of all tasks; it has no --task and no --folder.")
            left_out = [] if args.include_left_out else [name for names in LEFT_OUT.values() for name in names]
            report = export_msd(
                list(MSD.values()),
                args.predictions,
                args.images,
                args.output,
                options,
                fill_missing_tasks=args.fill_missing_tasks,
                left_out=left_out,
                **common,
            )
        else:
            if args.fill_missing_tasks or args.include_left_out:
                raise ConfigurationError("--fill-missing-tasks and --include-left-out are for msd only.")
            challenge = get_challenge(args.challenge, args.task)
            report = export(challenge, args.predictions, args.images, args.output, options, **common)
    except KeyboardInterrupt:
        raise ConfigurationError(f"Interrupted, {args.output} was not written.") from None
    print(report)
    return 0
