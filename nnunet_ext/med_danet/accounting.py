"""What routing chose and spent in the cases of a validation: by case, and by what is in a slice. Plain numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ext.med_danet.costs import SliceCosts

EMPTY = "no foreground"
Votes = Sequence[Sequence[int]]


def case_votes(
    record: Sequence[Sequence[int]], depths: Sequence[Sequence[Sequence[int]]], slices: int, choices: int
) -> list[list[int]]:
    """How often each slice of a case got each choice: `slices` rows of `choices` counts.

    Args:
        record: what each routed pass chose, in order (`MedDANet.record`).
        depths: for each batch of tiles, the slice numbers of each tile; every batch has equally many passes (mirrored).

    Raises:
        ValueError: the record does not fit the tiles.
    """
    votes = [[0] * choices for _ in range(slices)]
    passes = len(record) // len(depths)
    if passes * len(depths) != len(record):
        raise ValueError(f"{len(record)} passes cannot be those of {len(depths)} batches of tiles")
    for number, chosen in enumerate(record):
        where = [depth for tile in depths[number // passes] for depth in tile]
        for depth, choice in zip(where, chosen, strict=True):
            votes[depth][choice] += 1
    return votes


def counts_of(votes: Votes) -> list[int]:
    """Sum over the slices: one count a choice."""
    return [sum(column) for column in zip(*votes, strict=True)]


def counts_by_content(votes: Votes, areas: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Counts of slices without foreground, and of those that hold each label or region; a slice may hold several.

    Args:
        areas: label or region -> its pixels in each slice.
    """
    nothing = [0] * len(votes[0])
    kinds: dict[str, list[bool]] = {EMPTY: [not any(column) for column in zip(*areas.values(), strict=True)]}
    kinds |= {name: [area > 0 for area in column] for name, column in areas.items()}
    chosen = {name: [row for row, is_kind in zip(votes, kind, strict=True) if is_kind] for name, kind in kinds.items()}
    return {name: counts_of(rows) if rows else nothing for name, rows in chosen.items()}


def validation_report(cases: Sequence[Mapping[str, Any]], costs: SliceCosts, unet_macs: int) -> dict[str, Any]:
    """The JSON beside summary.json: all cases together, then each with what every slice got.

    Args:
        cases: dicts with `case`; `votes` of its slices; `padding`, counts of slices that only fill up tiles; `areas`,
            pixels of each label or region in each slice, and `foreground`, of any.
        costs: of one slice, which has the size of a tile.
        unet_macs: multiply-adds of nnU-Net's 2D U-Net for one tile.
    """

    def spent(counts: Sequence[int]) -> dict[str, Any]:
        report = costs.report(counts)
        return {**report, "gmacs_unet": report["slices"] * unet_macs / 1e9}

    rows: list[dict[str, Any]] = []
    for case in cases:
        counts = [a + b for a, b in zip(counts_of(case["votes"]), case["padding"], strict=True)]
        report = spent(counts)
        rows.append(
            {
                "case": case["case"],
                **{key: report[key] for key in ("slices", "counts", "ratios")},
                **{key: value for key, value in report.items() if key.startswith("gmacs")},
                "by_content": counts_by_content(case["votes"], case["areas"]),
                "areas": dict(case["areas"]),
                "foreground": list(case["foreground"]),
                "votes": [list(row) for row in case["votes"]],
            }
        )
    kinds = [EMPTY, *cases[0]["areas"]]
    return {
        **spent(counts_of([row["counts"] for row in rows])),
        "by_content": {kind: counts_of([row["by_content"][kind] for row in rows]) for kind in kinds},
        "cases": rows,
    }
