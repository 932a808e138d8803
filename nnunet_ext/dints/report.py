"""What DiNTS adds to the page: the topology that was trained, or how a search went and what it found."""

import math
from collections.abc import Sequence
from typing import Any

from nnunet_ext.dints.architecture_code import CVPR_CODE, ArchitectureCode, code_of
from nnunet_ext.dints.code_file import CodeFile, read_code
from nnunet_ext.dints.search_figure import search_figure
from nnunet_ext.dints.search_space import OPERATIONS, edges, level_strides
from nnunet_ext.dints.topology_figure import histogram, topology_figure
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS
from nnunet_ext.report.model_folder import Fold, ModelFolder
from nnunet_ext.report.parts import MISSING, Picture, Section, Table, counted, number, significant

METHOD, SEARCH = "dints", "dints_search"
_NUMBERS = ("iterations", "L_alpha", "L_eta", "L_tp", "memory_ratio", "sigma", "G", "active_edges")

_GRAPH = (
    "Columns are layers, rows are scales, the finest on top. A line is a cell: the change of resolution between its "
    "ends, if any, and the operation of its colour. Filled nodes are active."
)
_CURVES = (
    "The weights learn alone until the dotted line; from there on the architecture moves too. L_alpha and L_eta fall "
    "as operations and connections become decided, L_tp as neighbouring layers come to fit; G counts the edges that "
    "had to change to make the most probable connections feasible. The memory ratio is driven to the budget."
)


def section(model: ModelFolder) -> Section | None:
    """The topology that all folds share."""
    ours = model.planned_network == METHODS[METHOD].network_path
    arch_kwargs = model.arch_kwargs if ours else {"strides": model.strides or []}
    try:
        code = code_of(arch_kwargs)
        picture = _picture(code, arch_kwargs, "All folds train this topology")
    except (ConfigurationError, LookupError, TypeError, ValueError) as error:
        model.notes.append(f"The topology is left out: the plans do not say the network ({error}).")
        return None
    published = code == CVPR_CODE.for_dimensions(len(arch_kwargs["strides"][0]))
    origin = (
        "The plans hold no searched architecture: this is the code that the authors of DiNTS published (CVPR 2021, "
        "sigma 0.8, searched on MSD Pancreas)."
        if published
        else "The architecture code in the plans, as a search or the user put it there."
    )
    return Section("Topology", [origin, _GRAPH], [picture], [_operations_table([("plans", code)], arch_kwargs)])


def search_section(model: ModelFolder) -> Section | None:
    """Curves, and the code of each fold's search."""
    runs = {}
    for fold in model.folds:
        rows = _rows(fold)
        if fold.method == SEARCH and len(rows) < len(fold.history):
            model.notes.append(f"fold_{fold.name}/{SEARCH}_history.json has damaged rows, which were left out.")
        if rows:
            runs[fold.name] = rows
    if not runs:
        return None
    first = next(iter(runs.values()))
    joint = [row["epoch"] for row in first if row.get("discrete_dice") is not None]
    alt = "; ".join(
        f"fold {name}: after epoch {rows[-1]['epoch']} memory ratio {number(rows[-1]['memory_ratio'])} of "
        f"{rows[-1]['sigma']}, G {rows[-1]['G']}, L_tp {significant(rows[-1]['L_tp'])}"
        for name, rows in runs.items()
    )
    pictures = [
        Picture.of(search_figure(runs, joint[0] if joint else None), "The search, epoch by epoch", f"Curves. {alt}.")
    ]
    arch_kwargs = {"strides": model.strides or []}
    found, texts = [], []
    for fold in model.folds:
        file = _code_file(fold, model) if fold.name in runs else None
        if file is not None:
            kwargs = {**arch_kwargs, "use_downsample": file.use_downsample, **file.code.settings()}
            caption = f"Fold {fold.name}: what the search found ({counted(file.code.num_edges, 'active edge')})"
            pictures.append(_picture(file.code, kwargs, caption, (file.meta or {}).get("edge_probabilities")))
            found.append((f"fold {fold.name}", file.code))
    if found:
        texts.append(_GRAPH + " A line is as wide as its edge is probable.")
        texts.append(
            "To train one on all folds: nnunet_ext plan DATASET --method dints --code architecture.json --name PLANS"
        )
    tables = [_last_table(runs)]
    if found:
        tables.append(_operations_table(found, arch_kwargs))
    return Section("Architecture search", [_CURVES, *texts], pictures, tables)


def _rows(fold: Fold) -> list[dict[str, Any]]:
    return [row for row in fold.history if _is_row(row)] if fold.method == SEARCH else []


def _is_row(row: dict[str, Any]) -> bool:
    values = [row.get(key) for key in _NUMBERS]
    optional = [row.get(key) for key in ("dice", "discrete_dice")]
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values) and all(
        value is None or isinstance(value, (int, float)) for value in optional
    )


def _code_file(fold: Fold, model: ModelFolder) -> CodeFile | None:
    path = fold.folder / "architecture.json"
    if not path.is_file():
        return None
    try:
        return read_code(path)
    except ConfigurationError as error:
        model.notes.append(f"The code of fold {fold.name} was left out: {error}")
        return None


def _names(code: ArchitectureCode, dimensions: int) -> list[list[str]]:
    names = tuple(OPERATIONS[dimensions])
    return [[names[value] for value in row] for row in code.for_dimensions(dimensions).operations]


def _picture(
    code: ArchitectureCode,
    arch_kwargs: dict[str, Any],
    caption: str,
    probabilities: Sequence[Sequence[float]] | None = None,
) -> Picture:
    names = _names(code, len(arch_kwargs["strides"][0]))
    try:
        figure = topology_figure(edges(code.depth), code.active, names, _scales(code, arch_kwargs), probabilities)
    except (LookupError, TypeError, ValueError):  # probabilities of another shape: a file may come from anywhere
        figure = topology_figure(edges(code.depth), code.active, names, _scales(code, arch_kwargs))
    rows = []
    for layer, (row, of) in enumerate(zip(code.active, names, strict=True), start=1):
        cells = [f"{s} to {t} {name}" for (s, t), on, name in zip(edges(code.depth), row, of, strict=True) if on]
        rows.append(f"layer {layer}: {', '.join(cells)}")
    return Picture.of(figure, caption, f"Graph of scales and layers. {'; '.join(rows)}.")


def _scales(code: ArchitectureCode, arch_kwargs: dict[str, Any]) -> list[str]:
    """The resolution of each scale relative to the image, "1/4" or by axis "1/2, 1/8, 1/8"."""
    downsampled = arch_kwargs.get("use_downsample", True)
    used = level_strides(arch_kwargs["strides"], code.depth, downsampled)
    texts = []
    for scale in range(code.depth):
        steps = [math.prod(axis) for axis in zip(*used[: scale + downsampled + 1], strict=True)]
        texts.append(f"1/{steps[0]}" if len(set(steps)) == 1 else ", ".join(f"1/{s}" if s > 1 else "1" for s in steps))
    return texts


def _operations_table(codes: Sequence[tuple[str, ArchitectureCode]], arch_kwargs: dict[str, Any]) -> Table:
    dimensions = len(arch_kwargs["strides"][0])
    from nnunet_ext.costs.planned import planned_report  # which imports torch

    rows = []
    for title, code in codes:
        counts = histogram(code.active, _names(code, dimensions))
        report = planned_report(METHODS[METHOD], 1, 2, [96] * dimensions, {**arch_kwargs, **code.settings()})
        rows.append(
            [title, str(code.num_layers), str(code.depth), str(code.num_edges)]
            + [str(counts.get(name, 0)) for name in OPERATIONS[dimensions]]
            + [significant(report["parameters"]["total"] / 1e6), significant(report["true"]["gmacs"])]
        )
    head = ["Code", "layers", "scales", "active edges", *OPERATIONS[dimensions], "M parameters", "GMACs"]
    note = f"Parameters and multiply-adds of the network for 1 channel, 2 classes and a patch of {96}^{dimensions}."
    return Table("Edges by operation", head, rows, note)


def _last_table(runs: dict[str, list[dict[str, Any]]]) -> Table:
    rows = [
        [
            name, f"{last['iterations']:,}", number(last["L_alpha"]), number(last["L_eta"], 6), number(last["L_tp"], 2),
            number(last["memory_ratio"]), str(last["G"]), str(last["active_edges"]),
            MISSING if last.get("discrete_dice") is None else number(last["discrete_dice"]),
        ]
        for name, last in ((name, rows[-1]) for name, rows in runs.items())
    ]  # fmt: skip
    head = ["Fold", "iterations", "L_alpha", "L_eta", "L_tp", "memory ratio", "G", "active edges", "Dice, discrete"]
    return Table("At the end", head, rows)
