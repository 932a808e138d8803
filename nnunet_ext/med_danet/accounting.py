"""What Med-DANet's phases learned in an epoch, and what routing chose and spent in a validation. Plain numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

GIGA = 1e9
EMPTY = "no foreground"
UNKNOWN = "not annotated, or not wholly"  # and without foreground
Votes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class SliceCosts:
    """Multiply-adds of one slice of `size` (height and width in pixels), and the candidates' titles in the same order.

    `largest` is the index of the candidate that predicts while nothing is routed.
    """

    size: tuple[int, int]
    titles: tuple[str, ...]
    candidates: tuple[int, ...]
    decision: int
    largest: int

    def spent(self, counts: Sequence[int]) -> int:
        """Multiply-adds of routing, decisions included; `counts` of slices skipped, then sent to each candidate."""
        chosen = sum(count * macs for count, macs in zip(counts[1:], self.candidates, strict=True))
        return sum(counts) * self.decision + chosen

    def report(self, counts: Sequence[int]) -> dict[str, Any]:
        """The same as JSON values, beside the largest candidate on all slices; tiles and mirrored passes count each."""
        slices = sum(counts)
        return {
            "slices": slices,
            "slice_size": list(self.size),
            "choices": ["skip", *self.titles],
            "counts": list(counts),
            "ratios": [count / max(1, slices) for count in counts],
            "gmacs": self.spent(counts) / GIGA,
            "gmacs_decision": slices * self.decision / GIGA,
            "gmacs_unrouted": slices * self.candidates[self.largest] / GIGA,
            "convention": "true",
        }


@dataclass
class EpochNotes:
    """What one epoch of a training with so many `candidates` has to tell."""

    candidates: int
    losses: dict[int, list[float]] = field(default_factory=dict)  # of each candidate's steps
    labels: list[int] = field(default_factory=list)  # slices that should have been skipped, then sent to each candidate
    agreed: int = 0  # slices for which the decision network chose its label
    choices: list[int] = field(default_factory=list)  # in validation, in the order of `labels`
    skips: list[tuple[float, bool]] = field(default_factory=list)  # there: share of skip, and if there is foreground

    def add_loss(self, candidate: int, loss: float) -> None:
        """Notes a step of a candidate."""
        self.losses.setdefault(candidate, []).append(loss)

    def add_labels(self, labels: Sequence[int], chosen: Sequence[int]) -> None:
        """Notes known labels of slices, and what the decision network chose for them."""
        counts = np.bincount(np.asarray(labels, int), minlength=self.candidates + 1)
        self.labels = (counts + (self.labels or 0)).tolist()
        self.agreed += int(np.sum(np.asarray(labels, int) == np.asarray(chosen, int)))

    def add_choices(self, chosen: Sequence[int]) -> None:
        """Notes the choices of a validation epoch."""
        self.choices = np.bincount(np.asarray(chosen, int), minlength=self.candidates + 1).tolist()

    def add_skips(self, skip: Sequence[float], foreground: Sequence[bool]) -> None:
        """Notes slices of the validation: the share of skip, and whether they hold foreground."""
        self.skips += zip(skip, foreground, strict=True)

    def row(self, decides: bool) -> dict[str, Any]:
        """The row of the history; None stands for what did not happen in the epoch."""
        known = sum(self.labels)
        losses = (self.losses.get(index) for index in range(self.candidates))
        return {
            "phase": "decision" if decides else "bank",
            "candidate_losses": [None if values is None else float(np.mean(values)) for values in losses],
            "labels": self.labels if known else None,
            "agreement": self.agreed / known if known else None,
            "choices": self.choices if sum(self.choices) else None,
        }


def row_text(row: Mapping[str, Any]) -> str:
    """A row of the history, for the training log."""
    if row["phase"] == "bank":
        losses = ", ".join("-" if loss is None else f"{loss:.4f}" for loss in row["candidate_losses"])
        return f"Losses of the candidates: {losses}"
    return (
        f"Labels (skip, candidates): {row['labels']}, agreement {row['agreement'] or 0:.3f}; "
        f"choices in validation: {row['choices']}"
    )


def slice_areas(labels: np.ndarray, regions: Mapping[str, Any]) -> tuple[dict[str, list[int]], list[int], list[bool]]:
    """Pixels of each label or region, and of any of them, in each slice of a label map `[D, H, W]`.

    Args:
        regions: name -> its value, or values; "background" aside, and with "ignore" where there is such a label.

    Returns:
        Besides, whether a slice shows no foreground but holds ignored pixels: nobody knows whether it has any.
    """
    named = {name: value for name, value in regions.items() if name not in ("background", "ignore")}
    masks = {name: np.isin(labels, np.atleast_1d(values)) for name, values in named.items()}
    areas = {name: mask.sum((1, 2)).tolist() for name, mask in masks.items()}
    foreground = np.any(list(masks.values()), axis=0).sum((1, 2))
    ignored = (labels == regions["ignore"]).any((1, 2)) if "ignore" in regions else np.zeros(len(labels), bool)
    return areas, foreground.tolist(), (ignored & (foreground == 0)).tolist()


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


def counts_by_content(
    votes: Votes, areas: Mapping[str, Sequence[int]], unknown: Sequence[bool] | None = None
) -> dict[str, list[int]]:
    """Counts of slices without foreground, and of those that hold each label or region; a slice may hold several.

    Args:
        areas: label or region -> its pixels in each slice.
        unknown: where annotation is missing, so that a slice is of a kind of its own; None where all is annotated.
    """
    nothing = [0] * len(votes[0])
    empty = [not any(column) for column in zip(*areas.values(), strict=True)]
    kinds: dict[str, list[bool]] = {EMPTY: empty}
    if unknown is not None:
        kinds = {EMPTY: [e and not u for e, u in zip(empty, unknown, strict=True)], UNKNOWN: list(unknown)}
    kinds |= {name: [area > 0 for area in column] for name, column in areas.items()}
    chosen = {name: [row for row, is_kind in zip(votes, kind, strict=True) if is_kind] for name, kind in kinds.items()}
    return {name: counts_of(rows) if rows else nothing for name, rows in chosen.items()}


def noted_cases(dataset: Any, recorded: Iterable[tuple[Any, Any]], labels: dict[str, Any]) -> list[dict[str, Any]]:
    """What `validation_report` needs of each case.

    Args:
        dataset: nnU-Net's, of the cases in the order in which they were predicted.
        recorded: (votes, padding) of each.
        labels: of dataset.json.
    """
    cases = []
    for name, (votes, padding) in zip(dataset.identifiers, recorded, strict=True):
        areas, foreground, unknown = slice_areas(np.asarray(dataset.load_case(name)[1][:])[0], labels)
        case = {"case": name, "votes": votes, "padding": padding, "areas": areas, "foreground": foreground}
        cases.append({**case, **({"unknown": unknown} if "ignore" in labels else {})})
    return cases


def validation_report(cases: Sequence[Mapping[str, Any]], costs: SliceCosts, unet_macs: int) -> dict[str, Any]:
    """The JSON beside summary.json: all cases together, then each with what every slice got.

    Args:
        cases: dicts with `case`; `votes` of its slices; `padding`, counts of slices that only fill up tiles; `areas`,
            pixels of each label or region in each slice, `foreground`, of any, and where there is an ignore label
            `unknown`, see `slice_areas`.
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
                "by_content": counts_by_content(case["votes"], case["areas"], case.get("unknown")),
                "areas": dict(case["areas"]),
                "foreground": list(case["foreground"]),
                "votes": [list(row) for row in case["votes"]],
            }
        )
    return {
        **spent(counts_of([row["counts"] for row in rows])),
        **skipped_foreground(cases),
        "by_content": {kind: counts_of([row["by_content"][kind] for row in rows]) for kind in rows[0]["by_content"]},
        "cases": rows,
    }


def skipped_foreground(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Slices with foreground that every tile and mirrored pass skipped, and their share of all foreground."""
    rows = [(row, area) for case in cases for row, area in zip(case["votes"], case["foreground"], strict=True) if area]
    lost = [area for row, area in rows if not any(row[1:])]
    return {
        "slices_with_foreground": len(rows),
        "skipped_with_foreground": len(lost),
        "share_of_foreground_skipped": sum(lost) / max(1, sum(area for _, area in rows)),
    }


def skipped_text(found: Mapping[str, Any]) -> str:
    """`skipped_foreground` in words."""
    lost, slices = found["skipped_with_foreground"], found["slices_with_foreground"]
    return (
        f"{'WARNING: ' if lost else ''}{lost} of {slices} slices with foreground were skipped, holding "
        f"{found['share_of_foreground_skipped']:.2%} of the foreground."
    )


def report_text(report: Mapping[str, Any], largest: str) -> str:
    """A `validation_report` in sentences, the risk first; `largest` is the title of the largest candidate."""
    shares = ", ".join(f"{n} {r:.1%}" for n, r in zip(report["choices"], report["ratios"], strict=True))
    return (
        f"{skipped_text(report)} Routing of {report['slices']} slices: {shares}. "
        f"{report['gmacs']:.2f} GMACs with the decisions, "
        f"{report['gmacs_unrouted']:.2f} with {largest} on every slice, "
        f"{report['gmacs_unet']:.2f} with nnU-Net's 2D U-Net."
    )
