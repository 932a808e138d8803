"""What E2ENet's training history adds to the page: the fusion flow and how far the masks moved."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ext.e2enet.fusion_flow import (
    COLOURS,
    Shares,
    flow_figure,
    mean_shares,
    random_shares,
    shares_figure,
)
from nnunet_ext.methods import METHODS
from nnunet_ext.report.figures.training import Topology
from nnunet_ext.report.model_folder import Fold, ModelFolder
from nnunet_ext.report.parts import Picture, Section, Table, percent

METHOD = "e2enet"
MEASURED = "measured"

_SHARES = (
    "Each node of E2ENet's fusion grid takes features from three directions: forward (the same level), up (the coarser "
    "level below) and down (the finer level above). The shares say from which direction the active connections of a "
    "node come: active kernels of its first convolution whose input channel belongs to that direction, divided by all "
    "its active kernels. Ribbons are as wide as the shares."
)
_BLOCKS = (
    "Connections are in blocks: up to {} neighbouring outputs of a convolution share their inputs, and it is inputs of "
    "blocks that are dropped and grown."
)
_EXPECTED = (
    "The start is not recorded. Shown is what masks drawn at random have on average: each direction's share of the "
    "node's input channels. A training from pretrained weights starts with their masks instead."
)


def topology(fold: Fold) -> Topology | None:
    """How the fold's masks moved, or None without E2ENet's history."""
    rows = _rows(fold)
    if not rows:
        return None
    updates = [0, *(row["updates"] for row in rows)]
    return Topology(
        epochs=[row["epoch"] for row in rows],
        ever_active=[row["ever_active"] for row in rows],
        drop_rate=[row["drop_rate"] for row in rows],
        updated=[row["epoch"] for row, before in zip(rows, updates, strict=False) if row["updates"] > before],
    )


def _rows(fold: Fold) -> list[dict[str, Any]]:
    """Rows at the end of an epoch; a row without steps is the state before the training."""
    return [row for row in _usable(fold) if row["steps"]]


def _usable(fold: Fold) -> list[dict[str, Any]]:
    return [row for row in fold.history if _is_row(row)] if fold.method == METHOD else []


def _is_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is as E2ENet's trainer writes it."""
    numbers = [row.get(key) for key in ("steps", "updates", "drop_rate", "active_kernels", "ever_active")]
    nodes = row.get("directions")
    if not isinstance(nodes, dict) or not nodes or not all(re.fullmatch(r"\d+,\d+", node) for node in nodes):
        return False
    for share in nodes.values():
        numbers += [share.get(name) for name in COLOURS] if isinstance(share, dict) else [None]
    return all(isinstance(number, (int, float)) for number in numbers)


def section(model: ModelFolder) -> Section | None:
    """Fusion flow at the start, along the training and at the end; None without E2ENet's history."""
    for fold in model.folds:
        if fold.method == METHOD and len(_usable(fold)) < len(fold.history):
            model.notes.append(f"fold_{fold.name}/{METHOD}_history.json has damaged rows, which were left out.")
    runs = {fold.name: _rows(fold) for fold in model.folds if _rows(fold)}
    if not runs:
        return None
    start, how = start_shares(model)
    finished = [fold.name for fold in model.folds if fold.is_finished]
    ended = {name: rows for name, rows in runs.items() if name in finished} or runs
    end = mean_shares([rows[-1]["directions"] for rows in ended.values()])
    if start is not None and start.keys() != end.keys():
        model.notes.append("The fusion flow at the start is left out: the plans are of another network.")
        start = None
    which = f"fold {next(iter(ended))}" if len(ended) == 1 else f"mean of folds {', '.join(ended)}"
    pictures = []
    if start is not None:
        pictures.append(_flow_picture(start, f"At the start ({how})"))
    last = sorted({rows[-1]["epoch"] for rows in ended.values()})
    pictures.append(_flow_picture(end, f"After epoch {' / '.join(map(str, last))} ({which})"))
    along = [[(row["epoch"], row["directions"]) for row in rows] for rows in runs.values()]
    pictures.append(
        Picture.of(
            shares_figure(along, start),
            "Along the training"
            + (", one line per fold" if len(runs) > 1 else "")
            + (", start dotted" if start is not None else ""),
            "Small line plots at the nodes' places in the fusion grid: share of active connections by direction "
            "over epochs. The table below has the first and last numbers.",
        )
    )
    return Section(
        title="Fusion flow",
        text=[
            _SHARES,
            *([_EXPECTED] if start is not None and how != MEASURED else []),
            *([_BLOCKS.format(block)] if (block := _connection_block(model)) > 1 else []),
            _moved(runs),
        ],
        pictures=pictures,
        tables=[_table(start, end), _masks_table(runs)],
    )


def start_shares(model: ModelFolder) -> tuple[dict[str, dict[str, float]] | None, str]:
    """Shares at the start, and how they are known: measured if the history says so, else what random masks expect."""
    measured = [row["directions"] for fold in model.folds for row in _usable(fold) if row["steps"] == 0]
    if measured:
        return mean_shares(measured), MEASURED
    try:
        return random_shares(_columns(model)), "expected of random masks"
    except (LookupError, TypeError, ValueError) as error:  # plans that E2ENet cannot be built from
        model.notes.append(f"The fusion flow at the start is left out: the plans do not say the network ({error}).")
        return None, ""


def _columns(model: ModelFolder) -> dict[str, Sequence[int]]:
    """By node, the input channels of its first convolution from the forward, up and down flow."""
    import torch  # here, as most pages need neither

    from nnunet_ext.e2enet.network import E2ENet

    # Plans of another network give the trainer the strides only.
    ours = model.planned_network == METHODS[METHOD].network_path
    arch_kwargs = model.arch_kwargs if ours else {"strides": model.strides or []}
    with torch.device("meta"):
        fusion: Any = E2ENet(1, 1, **arch_kwargs).fusion
    return {
        f"{stage},{level}": node.directions
        for stage, nodes in enumerate(fusion, start=1)
        for level, node in enumerate(nodes)
    }


def _connection_block(model: ModelFolder) -> int:
    block = model.arch_kwargs.get("connection_block")
    return block if isinstance(block, int) and model.planned_network == METHODS[METHOD].network_path else 1


def _flow_picture(shares: Shares, title: str) -> Picture:
    numbers = "; ".join(
        f"{_name(node)}: {', '.join(f'{direction} {percent(value)}' for direction, value in share.items() if value)}"
        for node, share in shares.items()
    )
    return Picture.of(flow_figure(shares), title, f"Fusion grid with the shares of each node. {numbers}.")


def _name(node: str) -> str:
    stage, level = node.split(",")
    return f"stage {stage}, level {level}"


def _moved(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    if all(rows[-1]["updates"] == 0 for rows in runs.values()):
        return "The masks never moved: the topology was frozen, or the training ended before the first update."
    return (
        "The masks moved during the training: at each update a share of the active kernels, the weakest, was dropped "
        "and as many inactive ones were grown, so that the number of active kernels stays the same."
    )


def _table(start: Shares | None, end: Shares) -> Table:
    rows = []
    for node, share in end.items():
        row = [_name(node)]
        for direction, value in share.items():
            absent = direction == "down" and node.endswith(",0")  # nothing is finer than the full resolution
            row += ["", ""] if absent else [percent(start[node][direction]) if start else "", percent(value)]
        rows.append(row)
    head = ["Node", *(f"{name} {when}" for name in next(iter(end.values())) for when in ("start", "end"))]
    return Table("Share of active connections by direction", head, rows)


def _masks_table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    return Table(
        "Masks in the last epoch",
        ["Fold", "steps", "topology updates", "active kernels", "kernels ever active"],
        [
            [fold, *(f"{rows[-1][key]:,}" for key in ("steps", "updates", "active_kernels")),
             percent(rows[-1]["ever_active"], 1)]
            for fold, rows in runs.items()
        ],
    )  # fmt: skip
