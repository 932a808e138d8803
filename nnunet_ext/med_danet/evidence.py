"""Whether routing pays and what it risks, from whole cases: each candidate alone, the labels, routing, random mixtures.

A slice here is a slice of one tile of prediction, seen once, not mirrored; where tiles overlap, pixels count in each.
Plain numbers: the report reads them without torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # its parts are imported when they are first used

from nnunet_ext.med_danet.accounting import GIGA, SliceCosts

EVIDENCE_FILE = "med_danet_routing.json"  # in a fold's folder
CONFIDENCE = 0.95
ONE_CHOICE = 0.99  # share of the slices from which on a choice is said to be the only one
Case = Mapping[str, np.ndarray]


def joined(parts: Sequence[Case]) -> dict[str, np.ndarray]:
    """The slices of several tiles as one case."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def mean_dice(cases: Iterable[np.ndarray]) -> float:
    """nnU-Net's mean foreground Dice, from `[classes, 3]` of each case: mean over cases that have any, then classes."""
    both, ours, theirs = np.moveaxis(np.array(list(cases), float), 2, 0)
    with np.errstate(invalid="ignore"):
        dice = 2 * both / (ours + theirs)
    there = np.isfinite(dice)
    classes = there.any(0)
    means = np.where(there, dice, 0).sum(0)[classes] / there.sum(0)[classes]
    return float(means.mean()) if len(means) else float("nan")


def _one_hot(choices: np.ndarray, number: int) -> np.ndarray:
    return np.eye(number)[choices]


def _dice_of(cases: Sequence[Case], weights: Sequence[np.ndarray]) -> float:
    return mean_dice(np.einsum("sn,snkt->kt", w, case["counts"]) for case, w in zip(cases, weights, strict=True))


def mixture(macs: Sequence[float], wanted: float) -> np.ndarray | None:
    """Shares of two candidates, neighbours in cost, that cost `wanted` together; None where none are so cheap or dear.

    Returns:
        `[1 + candidates]`; skip has none.
    """
    order = np.argsort(macs, kind="stable")
    for low, high in zip(order[:-1], order[1:], strict=True):
        if macs[low] <= wanted <= macs[high]:
            share = 1.0 if macs[high] == macs[low] else (macs[high] - wanted) / (macs[high] - macs[low])
            return share * np.eye(len(macs) + 1)[1 + low] + (1 - share) * np.eye(len(macs) + 1)[1 + high]
    return None


def upper_bound(found: int, tried: int) -> float | None:
    """With 95 % confidence the true share is not above this (Clopper and Pearson, one-sided); None where none tried."""
    if tried == 0:
        return None
    return 1.0 if found == tried else float(scipy.stats.beta.ppf(CONFIDENCE, found + 1, tried - found))


def risk(cases: Sequence[Case], thresholds: Sequence[float]) -> dict[str, Any]:
    """What is skipped of slices with foreground and of empty ones, with a threshold for each case."""
    skipped = np.concatenate([case["skip"] > t for case, t in zip(cases, thresholds, strict=True)])
    foreground = np.concatenate([case["foreground"] for case in cases])
    known = np.concatenate([case["known"] for case in cases])
    holds, empty = foreground > 0, (foreground == 0) & known
    lost = int((skipped & holds).sum())
    return {
        "slices_with_foreground": int(holds.sum()),
        "skipped_with_foreground": lost,
        "share_of_foreground_skipped": float(foreground[skipped].sum() / max(1, foreground.sum())),
        "at_most": upper_bound(lost, int(holds.sum())),
        "empty_slices": int(empty.sum()),
        "skipped_empty": int((skipped & empty).sum()),
        "not_annotated": int((~holds & ~known).sum()),
    }


def safe_threshold(skip: Sequence[float], foreground: Sequence[bool], risk: float, lowest: float = 0.5) -> float:
    """The threshold above which at most a share `risk` of the slices with foreground lie.

    It is a thousandth nearer to 1 than the last of them: shares are computed anew in prediction, and rounded otherwise.

    Args:
        skip: `routing.lowest_nearby` of each slice of a calibration.
        foreground: whether it holds any.
        lowest: less than this is never enough to skip.
    """
    dangerous = sorted((share for share, holds in zip(skip, foreground, strict=True) if holds), reverse=True)
    allowed = int(risk * len(dangerous))
    if allowed == len(dangerous):
        return lowest
    return max(lowest, dangerous[allowed] + (1 - dangerous[allowed]) / 1000)


def calibrated(cases: Sequence[Case], allowed: float) -> float:
    """The threshold by which at most the share `allowed` of the slices with foreground is skipped."""
    skip = np.concatenate([case["skip"] for case in cases])
    holds = np.concatenate([case["foreground"] > 0 for case in cases])
    return safe_threshold(skip.tolist(), holds.tolist(), allowed)


def held_out_risk(cases: Sequence[Case], allowed: float) -> dict[str, Any] | None:
    """`risk` of each half of the cases with the threshold that the other half gives; None for a single case."""
    if len(cases) < 2:
        return None
    halves = [calibrated(cases[1 - part :: 2], allowed) for part in (0, 1)]
    return risk(cases, [halves[number % 2] for number in range(len(cases))])


def evidence(
    cases: Sequence[Case], costs: SliceCosts, threshold: float, neighbours: int, allowed: float | None
) -> dict[str, Any]:
    """The JSON of all this.

    Args:
        cases: of `seen.seen_slices`, joined.
        threshold, neighbours: of the network.
        allowed: the risk by which the threshold was calibrated on these cases; None where it was given.
    """
    macs = np.array([0.0, *costs.candidates])
    number = len(macs)
    routed = [_one_hot(np.where(case["skip"] > threshold, 0, case["chosen"]), number) for case in cases]
    slices = sum(len(case["skip"]) for case in cases)

    def way(name: str, weights: Sequence[np.ndarray], decisions: int = 0) -> dict[str, Any]:
        spent = sum(float((w @ macs).sum()) for w in weights) / slices + decisions * costs.decision
        return {"way": name, "dice": _dice_of(cases, weights), "gmacs_per_slice": spent / GIGA}

    def everywhere(row: np.ndarray) -> list[np.ndarray]:
        return [np.tile(row, (len(case["skip"]), 1)) for case in cases]

    ways = [way(f"{title} on every slice", everywhere(np.eye(number)[n])) for n, title in enumerate(costs.titles, 1)]
    ways.append(way("the labels (needs the truth)", [_one_hot(case["label"], number) for case in cases]))
    ways.append(way("routing", routed, 1))
    kept = sum(float(w[:, 1:].sum()) for w in routed)
    dialled = mixture(costs.candidates, sum(float((w @ macs).sum()) for w in routed) / kept) if kept else None
    if dialled is not None:
        weights = [np.where(w[:, :1] == 1, w, dialled) for w in routed]
        ways.append(way("the same skips, other slices at random between two candidates", weights, 1))
    by_chance = mixture(costs.candidates, ways[-1]["gmacs_per_slice"] * GIGA) if kept else None
    if by_chance is not None:
        ways.append(way("every slice at random between two candidates", everywhere(by_chance)))
    counts = np.concatenate(routed).sum(0).astype(int).tolist()
    found = risk(cases, [threshold] * len(cases))
    if allowed is not None:
        found["at_most"] = None  # no bound holds for the slices that set the threshold
    return {
        "slices": slices,
        "choices": ["skip", *costs.titles],
        "counts": counts,
        "ways": ways,
        "skip_threshold": threshold,
        "skip_neighbours": neighbours,
        "skip_risk_allowed": allowed,
        "risk": found,
        "held_out_risk": None if allowed is None else held_out_risk(cases, allowed),
        "convention": "true",
    }


def risk_text(found: Mapping[str, Any]) -> str:
    """`risk` in words."""
    bound = "" if found["at_most"] is None else f" (with 95 % confidence at most {found['at_most']:.2%})"
    text = (
        f"{found['skipped_with_foreground']} of {found['slices_with_foreground']} slices with foreground were skipped"
        f"{bound}, holding {found['share_of_foreground_skipped']:.2%} of the foreground; of {found['empty_slices']} "
        f"empty ones {found['skipped_empty']} were."
    )
    if found["not_annotated"]:
        text += f" {found['not_annotated']} further slices are not annotated, or not wholly, and show no foreground."
    return text


def warnings_of(report: Mapping[str, Any]) -> list[str]:
    """What a user must know before he trusts the routing: sentences, none where there is nothing to say."""
    said = []
    for key, when in (("risk", ""), ("held_out_risk", " with a threshold from other cases")):
        found = report[key]
        if found is not None and found["skipped_with_foreground"]:
            said.append(
                f"WARNING: routing skips slices with foreground{when}: {found['skipped_with_foreground']} of "
                f"{found['slices_with_foreground']}, {found['share_of_foreground_skipped']:.2%} of the foreground."
            )
    most = max(range(len(report["counts"])), key=lambda choice: report["counts"][choice])
    share = report["counts"][most] / max(1, report["slices"])
    if share >= ONE_CHOICE:
        said.append(f"WARNING: {share:.1%} of the slices get the same, {report['choices'][most]}: nothing is routed.")
    return said


def risk_lines(report: Mapping[str, Any]) -> list[str]:
    """What is risked, in sentences, warnings first."""
    lines = [*warnings_of(report), risk_text(report["risk"])]
    if report["skip_risk_allowed"] is not None:
        lines[-1] += " These slices have set the threshold: they cannot say how safe it is."
    if report["held_out_risk"] is not None:
        lines.append(f"With a threshold from the other half of the cases: {risk_text(report['held_out_risk'])}")
    return lines


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """The report for the log, the risk first."""
    lines = risk_lines(report)
    lines.append(f"Dice and true GMACs a slice, {report['slices']} slices of the validation cases, not mirrored:")
    lines += [f"  {row['dice']:.4f}  {row['gmacs_per_slice']:.4f}  {row['way']}" for row in report["ways"]]
    return lines
