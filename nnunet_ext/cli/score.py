"""`nnunet_ext score`: predictions against labels, with a challenge's own measures or plainly, one method or two."""

import argparse
from pathlib import Path

from nnunet_ext.challenges.catalogue import get_challenge
from nnunet_ext.challenges.metrics import MEASURES
from nnunet_ext.cli.arguments import add_overwrite, add_processes, check_output
from nnunet_ext.cli.challenge_arguments import add_challenge, add_task
from nnunet_ext.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext score`."""
    add_challenge(parser, "plain (any nnU-Net data set)")
    parser.add_argument("predictions", metavar="PREDICTIONS", type=Path, help="folder with predictions")
    parser.add_argument("labels", metavar="LABELS", type=Path, help="folder with labels, or the challenge's download")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="JSON", help="scores, with a CSV beside (default: PREDICTIONS/scores.json)"
    )
    add_overwrite(parser)
    add_task(parser)
    parser.add_argument(
        "--compare", type=Path, metavar="OTHER_PREDICTIONS", help="score these too and compare case by case"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap of --compare (default: %(default)s)")
    parser.add_argument(
        "--missing",
        choices=("error", "empty", "skip"),
        default="error",
        help="a label without prediction is an error, counts as empty, or is skipped (default: %(default)s)",
    )
    parser.add_argument("--dataset-json", type=Path, metavar="FILE", help="plain: where labels and regions are named")
    parser.add_argument(
        "--values", choices=("nnunet", "challenge"), default="nnunet", help="label values of PREDICTIONS"
    )
    parser.add_argument(
        "--label-values",
        choices=("nnunet", "challenge"),
        help="label values of LABELS (default: the challenge's in a download, else what the values tell)",
    )
    measures = parser.add_argument_group("measures and conventions (default: the challenge's; all stand in the JSON)")
    measures.add_argument("--measures", nargs="+", metavar="NAME", help=", ".join(MEASURES))
    measures.add_argument("--tolerance", nargs="+", metavar="MM", help="of the NSD; for one structure: liver=5")
    measures.add_argument(
        "--surface",
        choices=("elements", "voxels"),
        help="distances between surface elements weighted with their areas, or between boundary voxels",
    )
    measures.add_argument("--both-empty", choices=("nan", "perfect"), help="structure in neither mask")
    measures.add_argument(
        "--one-empty-distance",
        choices=("nan", "inf", "diagonal", "voxel diagonal"),
        help="distance where one mask alone is empty",
    )
    measures.add_argument("--hausdorff", choices=("directed", "pooled"), help="larger directed, or pooled percentile")
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Scores, writes JSON and CSV, prints a table; with --compare also a comparison and its figure."""
    try:
        _run(args)
    except KeyboardInterrupt:
        raise ConfigurationError("Interrupted, no scores were written.") from None
    except OSError as error:
        raise ConfigurationError(f"Writing the scores failed: {error}") from error
    return 0


def _run(args: argparse.Namespace) -> None:
    from nnunet_ext.challenges.facts import counted
    from nnunet_ext.challenges.results import table, write_scores
    from nnunet_ext.challenges.score import score_folder
    from nnunet_ext.challenges.scoring import plain_scoring, scoring_of

    for folder in (args.predictions, args.labels, *([args.compare] if args.compare else [])):
        if not folder.is_dir():
            raise ConfigurationError(f"{folder} is not a folder.")
    challenge = None
    if args.challenge == "plain":
        if args.task is not None:
            raise ConfigurationError("plain has no tasks; leave out --task.")
        scoring = plain_scoring(args.predictions, args.labels, args.dataset_json, args.np)
    else:
        challenge = get_challenge(args.challenge, args.task)
        scoring = scoring_of(challenge, args.labels, args.values, args.label_values)
    scoring = scoring.changed(
        measures=None if args.measures is None else tuple(args.measures),
        tolerance=args.tolerance,
        both_empty=args.both_empty,
        one_empty_distance=args.one_empty_distance,
        hausdorff=args.hausdorff,
        surface=args.surface,
    )
    output = args.output or args.predictions / "scores.json"
    if output.suffix != ".json":
        raise ConfigurationError(f"The scores go into a .json file, found {output.name!r}.")
    check_output(output, overwrite=args.overwrite or args.output is None)  # its own file is made anew
    common = {"challenge": challenge, "missing": args.missing, "processes": args.np}
    result = score_folder(scoring, args.predictions, args.labels, **common)
    other = score_folder(scoring, args.compare, args.labels, **common) if args.compare else None
    print(f"{scoring.title}: {counted(len(result['cases']), 'case')}\n{table(result)}")
    csv_path = write_scores(result, output)
    print(f"{output}\n{csv_path}")
    if other is not None:
        _compare(args, result, other, output)


def _compare(args: argparse.Namespace, result: dict, other: dict, output: Path) -> None:
    from nnunet_ext.challenges.compare import compare, comparison_json, comparison_table
    from nnunet_ext.challenges.comparison_figure import draw_comparison
    from nnunet_ext.challenges.results import to_json
    from nnunet_ext.files import write_json

    first, second = str(args.predictions), str(args.compare)
    rows = compare(result, other, seed=args.seed)
    json_path, png_path = (output.with_name(f"{output.stem}_comparison{ending}") for ending in (".json", ".png"))
    write_json(json_path, to_json(comparison_json(rows, first, second, args.seed)))
    draw_comparison(rows, first, second, png_path)
    print(f"\n{comparison_table(rows, first, second)}\n{json_path}\n{png_path}")
