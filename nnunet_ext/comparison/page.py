"""The page of a comparison, with the same numbers as JSON and those of each case as CSV beside it."""

import csv
import io
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_ext.challenges.compare import CONFIDENCE, RESAMPLES, comparison_json
from nnunet_ext.challenges.metrics import MEASURES
from nnunet_ext.challenges.results import to_json
from nnunet_ext.comparison.outcome import Outcome
from nnunet_ext.comparison.sections import make_sections
from nnunet_ext.comparison.statistics import distribution
from nnunet_ext.files import write_atomically, write_json
from nnunet_ext.report.html import render_html, write_html
from nnunet_ext.report.parts import counted, number


def write_comparison(outcome: Outcome, output: Path, words: Sequence[str], viewer_mb: float = 0) -> list[Path]:
    """Draws the figures and writes the page, and JSON and CSV under the same name; returns the three files.

    Args:
        outcome: what was found.
        output: the page, `.html`.
        words: of the command that makes the page again.
        viewer_mb: what volumes to be looked through may take of the page, in megabytes; 0 for none.

    Raises:
        ConfigurationError: the page cannot be written.
    """
    json_path, csv_path = output.with_suffix(".json"), output.with_suffix(".csv")
    write_html(render(outcome, words, viewer_mb), output)
    write_json(json_path, to_json(comparison_content(outcome)))
    text = _cases_csv(outcome)
    write_atomically(csv_path, lambda file: file.write(text.encode(errors="surrogateescape")))
    return [output, json_path, csv_path]


def render(outcome: Outcome, words: Sequence[str], viewer_mb: float = 0) -> str:
    """The page as HTML."""
    paired = outcome.paired
    names = [model.name for model in paired.models]
    return render_html(
        "page.html.j2",
        title=f"{' and '.join(names) if len(names) == 2 else counted(len(names), 'model')} on "
        f"{paired.baseline.folder.dataset}",
        headline=headline(outcome),
        notes=paired.notes,
        facts=facts(outcome),
        sections=make_sections(outcome, viewer_mb),
        command=shlex.join(words),
    )


def headline(outcome: Outcome) -> str:
    """The page's one sentence: what the best reaches, and what the baseline does."""
    paired = outcome.paired
    reached = {m.name: outcome.mean_and_interval(m.name, outcome.overall, "dice")[0] for m in paired.models}
    known = {name: value for name, value in reached.items() if not math.isnan(value)}
    folds = f"{'folds' if len(paired.folds) > 1 else 'fold'} {', '.join(paired.folds)}"
    where = f"over {counted(len(paired.cases), 'validation case')} of {folds}"
    if not known:
        return f"No model has a Dice {where}."
    best = max(known, key=lambda name: known[name])
    text = f"{best} has the highest Dice, {number(known[best])} {where}"
    if best == paired.baseline.name:
        return f"{text}; it is the baseline."
    row = outcome.difference(best, outcome.overall, "dice")
    assert row is not None
    interval = f"{CONFIDENCE:.0%} interval {row.paired.low:+.4f} to {row.paired.high:+.4f}"
    return f"{text}: {row.paired.difference:+.4f} against {paired.baseline.name} ({interval})."


def facts(outcome: Outcome) -> list[tuple[str, str]]:
    """Name and value of what was compared, and how."""
    paired = outcome.paired
    return [
        ("Data set", paired.baseline.folder.dataset),
        ("Baseline", paired.baseline.name),
        *((f"Model {k}", f"{m.name}: {m.folder.path.name}") for k, m in enumerate(paired.models, start=1)),
        ("Folds", ", ".join(paired.folds)),
        ("Cases", str(len(paired.cases))),
        ("Measures", ", ".join(MEASURES[measure].text for measure in outcome.measures)),
        ("Bootstrap", f"{RESAMPLES:,} samples of cases, percentile interval, seed {outcome.seed}"),
    ]


def comparison_content(outcome: Outcome) -> dict[str, Any]:
    """All numbers of the page, for a JSON file."""
    paired = outcome.paired
    models: list[dict[str, Any]] = []
    for model in paired.models:
        folder, cost = model.folder, outcome.costs[model.name]
        reached = {
            structure: {m: asdict(distribution(outcome.values(model.name, structure, m))) for m in outcome.measures}
            for structure in outcome.structures
        }
        models.append(
            {
                "name": model.name,
                "trainer": folder.trainer,
                "plans": folder.plans_name,
                "configuration": folder.configuration,
                "missing_folds": folder.missing,
                "costs": {**asdict(cost), "gflops_per_million_voxels": cost.gflops_per_million_voxels},
                "reached": reached,
            }
        )
    against = []
    for model in paired.rivals:
        rows = [row for row in outcome.differences if row.model == model.name]
        content = comparison_json([row.paired for row in rows], model.name, paired.baseline.name, outcome.seed)
        for cells, row in zip(content["rows"], rows, strict=True):
            cells["p_holm"] = row.p_holm
        against.append(content)
    return {
        "dataset": paired.baseline.folder.dataset,
        "baseline": paired.baseline.name,
        "folds": paired.folds,
        "cases": {name: {"fold": fold, "case": case} for name, (fold, case) in paired.cases.items()},
        "measures": list(outcome.measures),
        "nsd_tolerance_mm": outcome.tolerance,
        "notes": paired.notes,
        "correction": "Holm, by measure: over models for the mean over classes, over models and classes for classes",
        "flops": "two per multiply-add, as computed over active weights, of one pass over the patch",
        "models": models,
        "comparisons": against,
        "test_cases": {name: {"mean": r["mean"], "average": r["average"]} for name, r in outcome.tested.items()},
    }


def _cases_csv(outcome: Outcome) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["fold", "case", "model", "class", *outcome.measures])
    for model in outcome.paired.models:
        for case in outcome.results[model.name]["cases"]:
            fold, name = outcome.paired.cases[case["case"]]
            for structure, values in case["structures"].items():
                cells = ["" if math.isnan(values[m]) else repr(float(values[m])) for m in outcome.measures]
                writer.writerow([fold, name, model.name, structure, *cells])
    return text.getvalue()
