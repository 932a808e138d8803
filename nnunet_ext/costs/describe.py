"""What the networks of a plans file hold and cost, what is stored of them, and their rank in a table of the papers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.costs.complexity import complexity_report
from nnunet_ext.costs.planned import planned_report
from nnunet_ext.costs.pt_score import Row, pt_scores, read_table
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import method_of, method_of_trainer


def describe(
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    name: str,
    *,
    measure: bool,
    patch: list[int] | None = None,
    trainer: str | None = None,
) -> dict[str, Any]:
    """The cost report of one configuration, at `patch` (voxels) or the plan's own.

    Networks that are not ours are built and counted only with `measure`. `trainer` is whose model it is: one of ours
    trains its own network on plans that name another.

    Raises:
        ConfigurationError: a patch of other axes than the plan's, or of no voxels.
    """
    configuration = resolved(plans, name)
    if patch is not None:
        if len(patch) != len(configuration["patch_size"]) or min(patch) < 1:
            raise ConfigurationError(
                f"--patch needs {len(configuration['patch_size'])} numbers above 0 for {name}, found {patch}. "
                f"Choose a configuration with --configuration."
            )
        configuration["patch_size"] = patch
    architecture = configuration["architecture"]
    channels, heads = channels_and_heads(configuration, dataset_json)
    method = method_of(architecture["network_class_name"])
    if method is None:
        method = method_of_trainer(trainer or "")
        if method is not None:
            arch_kwargs = method.arch_kwargs_at(architecture["arch_kwargs"]["strides"], configuration["patch_size"])
            configuration["architecture"] = architecture = {**architecture, "arch_kwargs": arch_kwargs}
    size = {"patch_size": configuration["patch_size"], "batch_size": configuration["batch_size"]}
    if method is not None:
        report = planned_report(method, channels, heads, configuration["patch_size"], architecture["arch_kwargs"])
        further = method.further_cost_reports()(channels, heads, configuration)
        return {"method": method.title, "num_classes": heads, **size, **report, "further": further}
    report = {"network": architecture["network_class_name"], "input_channels": channels, "num_classes": heads, **size}
    if measure:
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

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


def rank(table: str, report: Mapping[str, Any], dice: float) -> list[dict[str, Any]]:
    """The rows of the table and ours, each with its PT score, best first."""
    size = "x".join(map(str, report["patch_size"]))
    ours = Row(
        f"this {report['method']} (patch {size})", dice, report["parameters"]["active"] / 1e6, report["paper"]["gflops"]
    )
    rows = [*read_table(table), ours]
    scored = [{"pt": score, **vars(row)} for score, row in zip(pt_scores(rows), rows, strict=True)]
    return sorted(scored, key=lambda entry: -entry["pt"])
