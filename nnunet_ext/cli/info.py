"""`nnunet_ext info`: what a plans file's or a trained model's networks hold and cost."""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ext.costs.pt_score import TABLE_PATCH, published_tables
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext info`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a plans file, the folder of a trained model, or with --plans a planned data set (id, name or "
        "DatasetXXX_Name)",
    )
    parser.add_argument("--plans", metavar="PLANS", help="plans of the data set, as for nnU-Net's -p")
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
    parser.add_argument("--measure", action="store_true", help="build networks of others too and count")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints one block per configuration."""
    from nnunet_ext.costs.describe import describe, rank, stored_size

    if args.dice is not None and not 1 < args.dice <= 100:
        raise ConfigurationError(f"--dice is in percent, such as 90.1, found {args.dice}.")
    source = read_source(args.source, args.plans)
    known = list(source.plans["configurations"])
    names = args.configuration or ([source.configuration] if source.configuration else known)
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigurationError(
            f"No configuration {', '.join(missing)} in these plans. They have: {', '.join(known)}."
        )
    told: dict[str, Any] = {"trainer": source.trainer}
    reports = {
        name: describe(source.plans, source.dataset_json, name, measure=args.measure, patch=args.patch, **told)
        for name in names
    }
    for report in reports.values():
        report["stored"] = stored_size(report, source.folds)
    table = None
    if args.rivals:
        suitable = [name for name, report in reports.items() if "paper" in report]
        if not suitable:
            raise ConfigurationError("--rivals needs a configuration whose network has a paper convention.")
        dice = args.dice if args.dice is not None else validation_dice(source)
        edge = TABLE_PATCH.get(args.rivals)
        patch = args.patch or ([edge] * 3 if edge else None)
        ours = describe(source.plans, source.dataset_json, suitable[0], measure=False, patch=patch, **told)
        table = rank(args.rivals, ours, dice)
    if args.json:
        print(json.dumps({"configurations": reports, "rivals": table}, indent=2))
        return 0
    for name, report in reports.items():
        print(text(name, report))
    if table:
        print(table_text(table))
    return 0


@dataclass(frozen=True)
class Source:
    """Plans and dataset.json; of a model also its trainer, its configuration, its folds' folders and itself."""

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    trainer: str | None = None
    configuration: str | None = None
    folds: list[Path] = field(default_factory=list)
    model: Path | None = None


def read_source(source: str, plans_name: str | None = None) -> Source:
    """What SOURCE means.

    Raises:
        ConfigurationError: neither a plans file with its dataset.json beside it, nor a model folder, nor a data set.
    """
    if plans_name is not None:
        from nnunet_ext.planning.plans_files import preprocessed_folder, read_dataset_json, read_plans

        folder = preprocessed_folder(source)
        return Source(read_plans(folder, plans_name), read_dataset_json(folder))
    path = Path(source)
    plans_file = path / "plans.json" if path.is_dir() else path
    dataset_file = plans_file.parent / "dataset.json"
    if not plans_file.is_file():
        raise ConfigurationError(
            f"{path} is neither a plans file nor the folder of a trained model (no plans.json). Plans of a data set "
            f"are named so: nnunet_ext info DATASET --plans PLANS"
        )
    if not dataset_file.is_file():
        raise ConfigurationError(f"{dataset_file} does not exist; channels and labels are read from it.")
    try:
        plans, dataset_json = read_json(plans_file), read_json(dataset_file)
    except ValueError as error:
        raise ConfigurationError(f"{plans_file} or {dataset_file} is not valid JSON ({error}).") from error
    if not isinstance(plans, dict) or not isinstance(plans.get("configurations"), dict):
        raise ConfigurationError(f"{plans_file} is not a plans file: it has no 'configurations'.")
    if not path.is_dir() or not (folds := sorted(path.glob("fold_*"))):
        return Source(plans, dataset_json)
    from nnunet_ext.report.model_folder import model_names

    trainer, _, configuration = model_names(path)
    return Source(plans, dataset_json, trainer, configuration, folds, path)


def validation_dice(source: Source) -> float:
    """Mean foreground Dice in percent over the cases of the cross-validation, as the report has it.

    Raises:
        ConfigurationError: there is none.
    """
    if source.model is not None:
        from nnunet_ext.report.model_folder import read_model_folder
        from nnunet_ext.report.scores import pooled_dice

        dice = pooled_dice(read_model_folder(source.model).cross_validation)
        if not math.isnan(dice):
            return 100 * dice
    raise ConfigurationError("--rivals needs a mean Dice: give --dice, or the folder of a validated model.")


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
    if "density" in report:
        lines.append(f"  sparse convolutions: {report['density']:.2%} of the kernels are active")
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
