"""The performance trade-off score of the E2ENet papers: accuracy against parameters and FLOPs within one table.

    PT = mDice / mDice_max + 1/2 (P_min / P + F_min / F)

with the maximum and minima over all rows of the table (E2ENet, section 3.1; the weights 1 and 1/2 are the papers').
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.errors import ConfigurationError

# The patch at which the papers count the FLOPs of their tables, in voxels.
TABLE_PATCH = {"amos-val": 128, "amos-test": 128, "brats": 128, "btcv": 96}
TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Row:
    """One method of a table: mean Dice (any unit), parameters (millions), cost (GFLOPs, one convention a table)."""

    method: str
    mdice: float
    params_m: float
    gflops: float
    pt_printed: float | None = None


def pt_scores(rows: Sequence[Row]) -> list[float]:
    """The PT score of each row against all rows."""
    best = max(row.mdice for row in rows)
    parameters = min(row.params_m for row in rows)
    cost = min(row.gflops for row in rows)
    return [row.mdice / best + (parameters / row.params_m + cost / row.gflops) / 2 for row in rows]


def published_tables() -> list[str]:
    """Names of the papers' tables that ship with the package."""
    return sorted(path.stem for path in TABLES.glob("*.csv"))


def read_table(name: str) -> list[Row]:
    """Rows of a published table or of a CSV file with the columns method, mdice, params_m, gflops.

    Raises:
        ConfigurationError: no such table or file, or a column or number is missing.
    """
    path = TABLES / f"{name}.csv" if name in published_tables() else Path(name)
    if not path.is_file():
        raise ConfigurationError(
            f"No file and no published table '{name}'. Published: {', '.join(published_tables())}."
        )
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for line, entry in enumerate(csv.DictReader(file), start=2):
            try:
                printed = entry.get("pt_printed")
                row = Row(
                    entry["method"],
                    float(entry["mdice"]),
                    float(entry["params_m"]),
                    float(entry["gflops"]),
                    float(printed) if printed else None,
                )
            except (KeyError, TypeError, ValueError):
                raise ConfigurationError(
                    f"{path}, line {line}: needs the columns method, mdice, params_m, gflops with numbers, "
                    f"found {entry}."
                ) from None
            rows.append(row)
            if min(row.mdice, row.params_m, row.gflops) <= 0:
                raise ConfigurationError(f"{path}, line {line}: all numbers must be positive, found {entry}.")
    if not rows:
        raise ConfigurationError(f"{path} has no rows.")
    return rows
