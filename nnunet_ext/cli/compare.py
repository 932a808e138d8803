"""`nnunet_ext compare`: trained models of one data set, case by case, as one HTML page."""

import argparse
from pathlib import Path

from nnunet_ext.challenges.metrics import PLAIN_MEASURES
from nnunet_ext.cli.arguments import add_overwrite, add_processes, add_tolerance, add_viewer_mb, check_output
from nnunet_ext.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext compare`."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL_FOLDER",
        help="trained models of one data set, ours or nnU-Net's; NAME=MODEL_FOLDER names one on the page",
    )
    parser.add_argument(
        "--baseline",
        metavar="MODEL",
        help="name or folder that the others are compared with (default: nnU-Net's own trainer, else the first)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="HTML", help="the page; JSON and CSV are written beside it"
    )
    add_viewer_mb(parser)
    add_overwrite(parser)
    parser.add_argument(
        "--measures",
        nargs="+",
        default=["dice"],
        choices=PLAIN_MEASURES,
        help="hd95 and nsd are computed from the label maps of the validations (default: dice)",
    )
    add_tolerance(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument(
        "--timing",
        action="append",
        default=[],
        metavar="MODEL=FILE",
        help="seconds of that model, from nnunet_ext predict --timing FILE; repeatable",
    )
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="NAME=SCORES",
        help="JSON of nnunet_ext score plain on test cases, of a model or an ensemble; repeatable",
    )
    parser.add_argument(
        "--note", action="append", default=[], metavar="TEXT", help="a sentence for the head of the page; repeatable"
    )
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Pairs, scores, tests and draws; writes page, JSON and CSV and says where."""
    from nnunet_ext.comparison.compare import compare_models
    from nnunet_ext.comparison.page import headline, write_comparison

    if args.output.suffix != ".html":
        raise ConfigurationError(f"The comparison is an .html file, found {args.output.name!r}.")
    for path in (args.output, args.output.with_suffix(".json"), args.output.with_suffix(".csv")):
        check_output(path, overwrite=args.overwrite)
    outcome = compare_models(
        args.models,
        baseline=args.baseline,
        measures=args.measures,
        tolerance=args.tolerance,
        seed=args.seed,
        timings=args.timing,
        tested=args.test,
        processes=args.np,
    )
    outcome.paired.notes.extend(args.note)
    paths = write_comparison(outcome, args.output, _command(args), args.viewer_mb)
    print(headline(outcome))
    for note in outcome.paired.notes:
        print(f"note: {note}")
    print(*paths, sep="\n")
    return 0


def _command(args: argparse.Namespace) -> list[str]:
    """The command that writes the page again."""
    words = ["nnunet_ext", "compare", *args.models, "-o", str(args.output), "--overwrite", "--measures", *args.measures]
    for flag, value in (
        ("--baseline", args.baseline),
        ("--tolerance", args.tolerance),
        ("--seed", args.seed),
        ("--viewer-mb", args.viewer_mb),
    ):
        words += [] if value is None else [flag, str(value)]
    for flag, values in (("--timing", args.timing), ("--test", args.test), ("--note", args.note)):
        words += [word for value in values for word in (flag, value)]
    return words
