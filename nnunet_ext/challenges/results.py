"""What is made of the scores of cases: means with the number of cases behind each, tables and files."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.challenges.facts import Metrics
from nnunet_ext.challenges.metrics import MEASURES
from nnunet_ext.files import write_atomically, write_json

SURFACES = {
    "elements": "surface elements between voxel centres, weighted with their areas (arXiv 1809.04430)",
    "voxels": "boundary voxels with a face neighbour outside the mask; distances between voxel centres",
}


def means(cases: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Mean over the cases in which a number is defined, and how many these are."""
    mean: dict[str, dict[str, float]] = {}
    defined: dict[str, dict[str, int]] = {}
    for name in cases[0]["structures"] if cases else ():
        for key in cases[0]["structures"][name]:
            values = [case["structures"][name][key] for case in cases]
            known = [value for value in values if not math.isnan(value)]
            mean.setdefault(name, {})[key] = float(np.mean(known)) if known else math.nan
            defined.setdefault(name, {})[key] = len(known)
    return mean, defined


def averages(cases: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> dict[str, float]:
    """Over the structures of a case, then over cases."""
    average = {}
    for key in measures:
        of_cases = []
        for case in cases:
            known = [values[key] for values in case["structures"].values() if not math.isnan(values.get(key, math.nan))]
            if known:
                of_cases.append(np.mean(known))
        average[key] = float(np.mean(of_cases)) if of_cases else math.nan
    return average


def conventions_text(metrics: Metrics, assumed: Sequence[str]) -> dict[str, Any]:
    """What a reader of the scores must know."""
    tolerance = metrics.tolerance
    return {
        **asdict(metrics.conventions),
        "one_empty_overlap": 0,
        "nsd_tolerance_mm": dict(tolerance) if isinstance(tolerance, Mapping) else tolerance,
        "surface_text": SURFACES[metrics.conventions.surface],
        "mean": "over the cases in which a number is defined; 'defined' counts them",
        "average": "over the structures of each case, then over the cases",
        "structures": {name: list(values) for name, values in metrics.structures.items()},
        "assumed": list(assumed),
        "notes": list(metrics.notes),
    }


def to_json(value: Any) -> Any:
    """The same with what JSON does not have: null for what is not defined, "inf" for infinite distances."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else ("inf" if math.isinf(value) else float(value))
    return int(value) if isinstance(value, np.integer) else value


def write_scores(result: Mapping[str, Any], json_path: Path) -> Path:
    """Writes the JSON file, and beside it a CSV file with a row per case and structure; returns the latter."""
    write_json(json_path, to_json(result))
    csv_path = json_path.with_suffix(".csv")
    keys = _keys(result)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "structure", *keys])
    rows = [(case["case"], name, values) for case in result["cases"] for name, values in case["structures"].items()]
    rows += [("mean", name, values) for name, values in result["mean"].items()]
    rows += [("cases", name, values) for name, values in result["defined"].items()]
    for case, name, values in rows:
        cells = [values.get(key, math.nan) for key in keys]
        writer.writerow([case, name, *("" if math.isnan(cell) else f"{cell:.6g}" for cell in cells)])
    write_atomically(csv_path, lambda file: _write(file, text.getvalue()))
    return csv_path


def _keys(result: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(key for values in result["mean"].values() for key in values))


def _write(file: Any, text: str) -> None:
    file.write(text.encode(errors="surrogateescape"))


def table(result: Mapping[str, Any]) -> str:
    """Means per structure as text, each with the number of cases behind it, then averages and totals."""
    keys = _keys(result)
    heads = [MEASURES[key].text if key in MEASURES else key.replace("_", " ") for key in keys]
    width = max(len("structure"), *(len(name) for name in result["mean"]))
    rows = [
        (name, [_with_count(values.get(key, math.nan), result["defined"][name].get(key, 0)) for key in keys])
        for name, values in result["mean"].items()
    ]
    rows.append(("average", [_number(result["average"].get(key, math.nan)) for key in keys]))
    widths = [max(len(head), *(len(cells[k]) for _, cells in rows)) for k, head in enumerate(heads)]
    lines = ["  ".join([f"{'structure':<{width}}", *(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True))])]
    lines += [
        "  ".join([f"{n:<{width}}", *(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))]) for n, cells in rows
    ]
    lines.append(f"in brackets: cases in which the number is defined, of {len(result['cases'])}")
    lines += _surface(result, keys)
    lines += [f"{name}: {_number(value)}" for name, value in result["totals"].items()]
    lines += [f"note: {note}" for note in (*result["conventions"]["assumed"], *result["notes"])]
    return "\n".join(lines)


def _surface(result: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Between what distances are, and the tolerance, where they matter."""
    conventions = result["conventions"]
    lines = []
    if any(key in MEASURES and MEASURES[key].surface for key in keys):
        lines.append(f"distances: between {conventions['surface_text']}")
    if "nsd" in keys:
        limits = conventions["nsd_tolerance_mm"]
        alike = not isinstance(limits, Mapping) or len(set(limits.values())) == 1
        shown = next(iter(limits.values())) if alike and isinstance(limits, Mapping) else limits
        text = f"{shown:g}" if alike else ", ".join(f"{name} {limit:g}" for name, limit in limits.items())
        lines.append(f"NSD tolerance in mm: {text}")
    return lines


def _with_count(value: float, count: int) -> str:
    return f"{_number(value)} ({count})"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
