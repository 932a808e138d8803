"""What DiNTS adds to the page: the topology that was trained, or how a search went and what it found."""

import math
from collections.abc import Sequence
from typing import Any

from nnunet_ext.dints.architecture_code import ArchitectureCode, code_of
from nnunet_ext.dints.code_file import CodeFile, origin_text, read_code
from nnunet_ext.dints.search_figure import search_figure
from nnunet_ext.dints.search_space import OPERATIONS, edges, level_strides
from nnunet_ext.dints.topology_figure import histogram, topology_figure
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS
from nnunet_ext.report.model_folder import Fold, ModelFolder
from nnunet_ext.report.parts import MISSING, Picture, Section, Table, counted, number, significant

METHOD, SEARCH = "dints", "dints_search"
PATCH = 96  # voxels along each axis, at which networks are compared
_NUMBERS = ("iterations", "L_alpha", "L_eta", "L_tp", "memory_ratio", "sigma", "G", "active_edges")

_GRAPH = (
    "Columns are layers, rows are scales, the finest on top. A line is a cell: the change of resolution between its "
    "ends, if any, and the operation of its colour. Filled nodes are active."
)
_CURVES = (
    "The weights learn alone until the dotted line; from there on the architecture moves too. L_alpha and L_eta fall "
    "as operations and connections become decided, L_tp as neighbouring layers come to fit; G counts the edges that "
    "had to change to make the most probable connections feasible. The expectation over edges is driven to the memory "
    "budget; the code that is retrained has a ratio of its own."
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
    origin = model.options.get("code_origin") if isinstance(model.options, dict) else None
    return Section(
        "Topology",
        [origin_text(code, origin if isinstance(origin, dict) else None), _GRAPH],
        [picture],
        [_operations_table([("plans", code, None)], arch_kwargs)],
    )


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
    joint = [after["epoch"] for before, after in zip(first, first[1:], strict=False) if _moved(before, after)]
    alt = "; ".join(
        f"fold {name}: after epoch {rows[-1]['epoch']} expected memory ratio {number(rows[-1]['memory_ratio'])} of "
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
            found.append((f"fold {fold.name}", file.code, (file.meta or {}).get("memory_ratio_of_code")))
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
    optional = [row.get(key) for key in ("dice", "memory_ratio_of_code")]
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values) and all(
        value is None or isinstance(value, (int, float)) for value in optional
    )


def _moved(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether the architecture moved between two rows: no loss of its logits changes otherwise."""
    return any(before[key] != after[key] for key in ("L_alpha", "L_eta", "L_tp"))


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


def _operations_table(
    codes: Sequence[tuple[str, ArchitectureCode, float | None]], arch_kwargs: dict[str, Any]
) -> Table:
    """A row for each code, which comes with the memory ratio that its search says."""
    dimensions = len(arch_kwargs["strides"][0])
    rows = []
    for title, code, ratio in codes:
        counts = histogram(code.active, _names(code, dimensions))
        rows.append(
            [title, str(code.num_layers), str(code.depth), str(code.num_edges)]
            + [str(counts.get(name, 0)) for name in OPERATIONS[dimensions]]
            + [number(ratio) if isinstance(ratio, float) else MISSING, *_costs(code, arch_kwargs, dimensions)]
        )
    head = ["Code", "layers", "scales", "active edges", *OPERATIONS[dimensions], "memory ratio"]
    head += ["M parameters", "GMACs", "MB kept"]
    note = (
        f"Parameters, multiply-adds and the feature maps that a training step keeps (fp32) of the network for 1 "
        f"channel, 2 classes and a patch of {PATCH}^{dimensions}."
    )
    return Table("Edges by operation", head, rows, note)


def _costs(code: ArchitectureCode, arch_kwargs: dict[str, Any], dimensions: int) -> list[str]:
    import torch

    from nnunet_ext.costs.planned import planned_report  # which imports torch too

    kwargs, patch = {**arch_kwargs, **code.settings()}, [PATCH] * dimensions
    report = planned_report(METHODS[METHOD], 1, 2, patch, kwargs)
    with torch.device("meta"):
        kept = METHODS[METHOD].network_class()(1, 2, **kwargs).compute_conv_feature_map_size(patch)
    return [
        significant(report["parameters"]["total"] / 1e6), significant(report["true"]["gmacs"]),
        significant(4 * kept / 1e6),
    ]  # fmt: skip


def _last_table(runs: dict[str, list[dict[str, Any]]]) -> Table:
    rows = [
        [
            name, f"{last['iterations']:,}", number(last["L_alpha"]), number(last["L_eta"], 6), number(last["L_tp"], 2),
            number(last["sigma"]), number(last["memory_ratio"]),
            MISSING if last.get("memory_ratio_of_code") is None else number(last["memory_ratio_of_code"]),
            str(last["G"]), str(last["active_edges"]),
        ]
        for name, last in ((name, rows[-1]) for name, rows in runs.items())
    ]  # fmt: skip
    head = ["Fold", "iterations", "L_alpha", "L_eta", "L_tp", "sigma", "expected", "of the code", "G", "active edges"]
    return Table("At the end", head, rows)
