"""`nnunet_ext info`: what a plans file's or a trained model's networks hold and cost."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.costs.pt_score import TABLE_PATCH, Row, pt_scores, published_tables, read_table
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json
from nnunet_ext.methods import method_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext info`."""
    parser.add_argument("path", type=Path, help="a plans file, or the folder of a trained model")
    parser.add_argument(
        "--configuration", action="append", metavar="NAME", help="only this configuration; repeatable (default: all)"
    )
    parser.add_argument(
        "--rivals",
        metavar="TABLE",
        help="PT score against a table: a CSV file with the columns method, mdice, params_m, gflops (paper "
        f"convention), or a published one: {', '.join(published_tables())}",
    )
    parser.add_argument(
        "--patch",
        type=int,
        nargs="+",
        metavar="N",
        help="cost at this patch instead of the plan's (published tables: at theirs)",
    )
    parser.add_argument(
        "--dice", type=float, help="mean Dice in percent for --rivals (default: the model's validation)"
    )
    parser.add_argument("--measure", action="store_true", help="build other networks too and count; imports torch")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints one block per configuration."""
    plans, dataset_json, folds = read_source(args.path)
    names = args.configuration or list(plans["configurations"])
    missing = [name for name in names if name not in plans["configurations"]]
    if missing:
        raise ConfigurationError(
            f"No configuration {', '.join(missing)} in these plans. They have: {', '.join(plans['configurations'])}."
        )
    if args.configuration is None and folds:
        names = [args.path.resolve().name.split("__")[-1]]
    reports = {name: describe(plans, dataset_json, name, measure=args.measure, patch=args.patch) for name in names}
    for report in reports.values():
        report["stored"] = stored_size(report, folds)
    table = None
    if args.rivals:
        suitable = [name for name, report in reports.items() if "paper" in report]
        if not suitable:
            raise ConfigurationError("--rivals needs a configuration whose network has a paper convention.")
        dice = args.dice if args.dice is not None else validation_dice(folds)
        edge = TABLE_PATCH.get(args.rivals)
        patch = args.patch or ([edge] * 3 if edge else None)
        table = rank(args.rivals, describe(plans, dataset_json, suitable[0], measure=False, patch=patch), dice)
    if args.json:
        print(json.dumps({"configurations": reports, "rivals": table}, indent=2))
        return 0
    for name, report in reports.items():
        print(text(name, report))
    if table:
        print(table_text(table))
    return 0


def read_source(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[Path]]:
    """Plans, dataset.json, and the fold folders where `path` is a model folder.

    Raises:
        ConfigurationError: neither a plans file with its dataset.json beside it, nor a model folder.
    """
    plans_file = path / "plans.json" if path.is_dir() else path
    dataset_file = plans_file.parent / "dataset.json"
    if not plans_file.is_file():
        raise ConfigurationError(f"{path} is neither a plans file nor the folder of a trained model (no plans.json).")
    if not dataset_file.is_file():
        raise ConfigurationError(f"{dataset_file} does not exist; channels and labels are read from it.")
    try:
        plans, dataset_json = read_json(plans_file), read_json(dataset_file)
    except ValueError as error:
        raise ConfigurationError(f"{plans_file} or {dataset_file} is not valid JSON ({error}).") from error
    if not isinstance(plans, dict) or not isinstance(plans.get("configurations"), dict):
        raise ConfigurationError(f"{plans_file} is not a plans file: it has no 'configurations'.")
    return plans, dataset_json, sorted(path.glob("fold_*")) if path.is_dir() else []


def describe(
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    name: str,
    *,
    measure: bool,
    patch: list[int] | None = None,
) -> dict[str, Any]:
    """The cost report of one configuration, at `patch` (voxels) or the plan's own.

    Networks that are not ours are built and counted only with `measure`.
    """
    configuration = resolved(plans, name)
    if patch and len(patch) == len(configuration["patch_size"]):
        configuration["patch_size"] = patch
    architecture = configuration["architecture"]
    channels, heads = channels_and_heads(configuration, dataset_json)
    method = method_of(architecture["network_class_name"])
    size = {"patch_size": configuration["patch_size"], "batch_size": configuration["batch_size"]}
    if method is not None:
        from nnunet_ext.costs.planned import planned_report

        report = planned_report(method, channels, heads, configuration["patch_size"], architecture["arch_kwargs"])
        further = method.further_cost_reports()(channels, heads, configuration)
        return {"method": method.title, "num_classes": heads, **size, **report, "further": further}
    report = {"network": architecture["network_class_name"], "input_channels": channels, "num_classes": heads, **size}
    if measure:
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        from nnunet_ext.costs.complexity import complexity_report

        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            channels,
            heads,
            allow_init=False,
            deep_supervision=False,
        )
        report.update(complexity_report(network, channels, configuration["patch_size"]))
    return report


def resolved(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits (nnU-Net's `inherits_from`)."""
    chain: list[str] = []
    while name is not None:
        if name in chain or name not in plans["configurations"]:
            raise ConfigurationError(f"'inherits_from' of configuration '{(chain or [name])[-1]}' leads nowhere.")
        chain.append(name)
        name = plans["configurations"][name].get("inherits_from")
    merged: dict[str, Any] = {}
    for ancestor in reversed(chain):
        merged.update(plans["configurations"][ancestor])
    return merged


def channels_and_heads(configuration: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> tuple[int, int]:
    """Input channels and logits of the network, by nnU-Net's rules for regions, the ignore label and the cascade."""
    labels = {key: value for key, value in dataset_json["labels"].items() if key != "ignore"}
    regions = any(isinstance(value, (list, tuple)) and len(value) > 1 for value in labels.values())
    channels = len(dataset_json.get("channel_names") or dataset_json["modality"])
    foreground = len({v for value in labels.values() for v in (value if isinstance(value, list) else [value])} - {0})
    if configuration.get("previous_stage"):
        channels += foreground
    return channels, len(labels) - (1 if regions else 0)


def stored_size(report: Mapping[str, Any], folds: list[Path]) -> dict[str, float]:
    """MB (1e6 bytes): of the active weights in fp32, and of the largest final checkpoint where there is one."""
    sizes: dict[str, float] = {}
    if "parameters" in report:
        sizes["weights_mb"] = report["parameters"]["active"] * 4 / 1e6
    files = [fold / "checkpoint_final.pth" for fold in folds]
    found = [file.stat().st_size for file in files if file.is_file()]
    if found:
        sizes["checkpoint_mb"] = max(found) / 1e6
    return sizes


def validation_dice(folds: list[Path]) -> float:
    """Mean foreground Dice in percent over the folds' validation summaries.

    Raises:
        ConfigurationError: there is none.
    """
    summaries = [fold / "validation" / "summary.json" for fold in folds]
    values = [read_json(file)["foreground_mean"]["Dice"] for file in summaries if file.is_file()]
    if not values:
        raise ConfigurationError("--rivals needs a mean Dice: give --dice, or the folder of a validated model.")
    return 100 * sum(values) / len(values)


def rank(table: str, report: Mapping[str, Any], dice: float) -> list[dict[str, Any]]:
    """The rows of the table and ours, each with its PT score, best first."""
    size = "x".join(map(str, report["patch_size"]))
    ours = Row(
        f"this {report['method']} (patch {size})", dice, report["parameters"]["active"] / 1e6, report["paper"]["gflops"]
    )
    rows = [*read_table(table), ours]
    scored = [{"pt": score, **vars(row)} for score, row in zip(pt_scores(rows), rows, strict=True)]
    return sorted(scored, key=lambda entry: -entry["pt"])


def text(name: str, report: Mapping[str, Any]) -> str:
    """One configuration as lines."""
    lines = [f"{name}: {report.get('method') or report['network'].rpartition('.')[2]}"]
    lines.append(
        f"  patch {'x'.join(map(str, report['patch_size']))}, batch {report['batch_size']}, "
        f"{report['input_channels']} channels, {report['num_classes']} logits"
    )
    if "parameters" not in report:
        return "\n".join([*lines, "  not one of our networks; --measure builds it and counts", ""])
    parameters = report["parameters"]
    lines.append(
        f"  parameters {parameters['total']:,}, active {parameters['active']:,}, trainable {parameters['trainable']:,}"
    )
    for part, counts in report.get("parts", {}).items():
        lines.append(f"  {part}: {counts['total']:,} parameters, {counts['trainable']:,} trainable")
    if "parts" in report:
        lines.append(f"  trainable share {100 * parameters['trainable'] / parameters['total']:.2f} %")
    for convention in ("true", "paper"):
        if convention in report:
            cost = report[convention]
            lines.append(
                f"  {cost['gmacs']:.2f} GMACs = {cost['gflops']:.2f} GFLOPs per patch ({convention} convention)"
            )
    for title, other in report.get("further", {}).items():
        shape, cost = "x".join(map(str, other["patch_size"])), other["true"]
        lines.append(
            f"  {title}: parameters {other['parameters']['total']:,}, {cost['gmacs']:.2f} GMACs = "
            f"{cost['gflops']:.2f} GFLOPs per patch {shape} (true convention)"
        )
    stored = report["stored"]
    lines.append(f"  active weights {stored['weights_mb']:.1f} MB in fp32")
    if "checkpoint_mb" in stored:
        lines.append(f"  checkpoint_final.pth {stored['checkpoint_mb']:.1f} MB")
    return "\n".join([*lines, ""])


def table_text(table: list[dict[str, Any]]) -> str:
    """The ranking as aligned lines."""
    width = max(len(row["method"]) for row in table)
    lines = [f"{'method':{width}}  {'mDice':>6}  {'M params':>8}  {'GFLOPs':>8}  {'PT':>6}"]
    for row in table:
        lines.append(
            f"{row['method']:{width}}  {row['mdice']:6.1f}  {row['params_m']:8.2f}  "
            f"{row['gflops']:8.2f}  {row['pt']:6.4f}"
        )
    return "\n".join(lines)
