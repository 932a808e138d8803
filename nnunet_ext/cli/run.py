"""`nnunet_ext run`: a study from planning to its comparison, by Snakemake, here or on a cluster."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ext.errors import ConfigurationError

if TYPE_CHECKING:
    from nnunet_ext.studies.layout import Layout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext run`."""
    parser.add_argument(
        "study", type=Path, metavar="STUDY", help="YAML file of what to train; docs/studies.md explains it"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of predictions, scores, logs and the page (default: beside the study file, under its name)",
    )
    parser.add_argument(
        "--profile",
        metavar="NAME",
        help="profile or executor of Snakemake, such as slurm (default: this machine, one training a GPU)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="only show the jobs that are left")
    what.add_argument("--status", action="store_true", help="only show how far each training is")
    parser.add_argument(
        "--snakemake",
        default="",
        metavar="ARGUMENTS",
        help="further arguments of Snakemake's command line, in one: --snakemake='--jobs 20 --retries 1'",
    )


def run(args: argparse.Namespace) -> int:
    """Checks the study, hands it to Snakemake, and says what is missing where something failed."""
    from nnunet_ext.studies.layout import Layout
    from nnunet_ext.studies.study import read_study

    study = read_study(args.study)
    work = (args.output or study.path.with_suffix("")).absolute()
    if work.is_file():
        raise ConfigurationError(f"{work} is a file. Choose a folder with -o.")
    if args.status:
        from nnunet_ext.studies.status import status_table

        print(status_table(Layout(study, work, study.device)))
        return 0
    from nnunet_ext.discovery.devices import chosen_device
    from nnunet_ext.studies.checks import check_study, check_writable, work_device
    from nnunet_ext.studies.launch import check_snakemake, launch, snakemake_words

    check_snakemake(args.profile)
    check_writable(work)
    layout = Layout(study, work, work_device(study.device, args.profile, chosen_device))
    check_study(layout)
    words = snakemake_words(
        layout,
        gpus=_gpus(layout.device, args.profile),
        profile=args.profile,
        dry_run=args.dry_run,
        further=_words(args.snakemake),
    )
    code = launch(layout, words, elsewhere=args.profile is not None)
    if args.dry_run:
        return code
    return _tell(layout, code)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigurationError(f"--snakemake takes words as a shell does, found {text!r} ({error}).") from error


def _gpus(device: str, profile: str | None) -> int:
    """GPUs of this machine, which are shared out here; a cluster shares out its own."""
    if device != "cuda" or profile is not None:
        return 0
    import torch

    return torch.cuda.device_count()


def _tell(layout: "Layout", code: int) -> int:
    """Says where the page is; where jobs failed, writes it with what is there, and says what is not."""
    from nnunet_ext.studies.steps import StepFailed
    from nnunet_ext.studies.steps import run as run_command

    if code == 0:
        print(f"Page: {layout.page}")
        return 0
    for note in layout.missing_notes():
        print(f"nnunet_ext: {note}", file=sys.stderr)
    print(
        f"nnunet_ext: Jobs failed or were stopped; their output is in {layout.work / 'logs'}. Run the command again to "
        f"go on from where they stand.",
        file=sys.stderr,
    )
    try:
        run_command(layout.page_words())
    except (ConfigurationError, StepFailed) as error:
        print(f"nnunet_ext: There is no page yet: {error}", file=sys.stderr)
    return code
