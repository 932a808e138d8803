"""From predictions to the archive that a challenge accepts. Everything is checked before anything is written."""

import os
from collections.abc import Sequence
from pathlib import Path

from nnunet_ext.challenges.archive import check_entry, values_never_seen, write_archive
from nnunet_ext.challenges.facts import Challenge, counted, listed
from nnunet_ext.challenges.parallel import each
from nnunet_ext.challenges.submission import Options, plan_folder, plan_tasks
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import sha256_of


def export(
    challenges: Sequence[Challenge],
    predictions: Path,
    images: Path,
    output: Path,
    options: Options = Options(),  # noqa: B008 (immutable)
    *,
    title: str = "",
    overwrite: bool = False,
    dry_run: bool = False,
    processes: int = 1,
) -> str:
    """Checks folders of predictions and packs them as the challenge wants them.

    Args:
        challenges: whose rules hold; of several tasks that go into one archive, each has a folder in `predictions` and
            in `images`, named as in the challenge or as nnU-Net's data set.
        predictions: folder written by nnUNetv2_predict.
        images: nnU-Net's imagesTs or the download: gives the cases and their geometry.
        output: the archive.
        options: where the rules are not known for sure.
        title: of the whole; "" is that of the only challenge.
        overwrite: replace an existing archive.
        dry_run: check and report, write nothing.
        processes: worker processes.

    Returns:
        A report for people.

    Raises:
        ConfigurationError: every problem at once; no file is written then.
    """
    _check_output(output, overwrite or dry_run)
    tasks = [options.applied(challenge) for challenge in challenges]
    if len(tasks) == 1:
        plan = plan_folder(tasks[0], predictions, images, options)
    else:
        plan = plan_tasks(tasks, predictions, images, options)
    checked = list(each(check_entry, plan.entries, processes=processes, title="Checking"))
    for result in checked:
        plan.problems += result.problems
        plan.notes += result.notes
    if plan.problems:
        raise listed(plan.problems, "{count}, no archive was written:")
    plan.notes += values_never_seen(plan.entries, checked)
    plan.notes += _mapping_note(tasks, options)
    entries = sorted(plan.entries, key=lambda entry: entry.name)
    lines = [f"{title or tasks[0].title}: {counted(len(entries), 'file')}"]
    lines += [f"  note: {note}" for note in plan.notes]
    if dry_run:
        lines += [f"  {entry.name} <- {entry.prediction or 'background'}" for entry in entries]
        return "\n".join([*lines, f"Nothing was written; {output} would be."])
    write_archive(entries, output, processes)
    lines.append(f"  {output}: {output.stat().st_size} bytes, sha256 {sha256_of(output)}")
    return "\n".join([*lines, tasks[0].submission.upload])


def _mapping_note(tasks: Sequence[Challenge], options: Options) -> list[str]:
    """What was taken for granted of the predictions' values."""
    changed = next((task.to_challenge for task in tasks if task.to_challenge), {})
    if not changed:
        return []
    if options.values == "challenge":
        return ["predictions have the challenge's values already (--values challenge)"]
    text = ", ".join(f"{ours} to {theirs}" for ours, theirs in changed.items())
    return [f"predictions have nnU-Net's values (--values); they became the challenge's: {text}"]


def _check_output(output: Path, may_exist: bool) -> None:
    if output.suffix != ".zip":
        raise ConfigurationError(f"The archive must end in .zip, found {output.name!r}.")
    if output.exists() and not may_exist:
        raise ConfigurationError(f"{output} exists already; --overwrite replaces it.")
    folder = output.resolve().parent
    if not folder.is_dir():
        raise ConfigurationError(f"The folder {folder} does not exist.")
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"You may not write into {folder}. Choose another place with -o.")
