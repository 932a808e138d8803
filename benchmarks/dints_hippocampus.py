"""A search on a real data set, and its code against the published one and random ones, by the stock commands.

    python benchmarks/dints_hippocampus.py 4 --work WORK --out benchmarks/results/dints_hippocampus.json \\
        --figure docs/dints_hippocampus.png

DATASET is planned with DiNTSPlanner and DiNTSSearchPlanner and preprocessed for 3d_fullres. One search on fold 0; then
the found code, the published one and two random ones of the found code's memory are trained on fold 0, with the same
steps, patch, batch, width and seed, and validated as nnU-Net does, on whole cases with mirroring. Everything is narrow
and short enough for a CPU. A run that was killed goes on: finished trainings are passed over, others continue.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from stock_commands import command

from nnunet_ext.costs.complexity import complexity_report
from nnunet_ext.dints.architecture_code import CVPR_CODE
from nnunet_ext.dints.code_file import CodeFile, read_code
from nnunet_ext.dints.discretize import decode_in_budget
from nnunet_ext.dints.memory_budget import edge_memory, memory_ratio
from nnunet_ext.dints.network import DiNTSNet
from nnunet_ext.dints.search_space import OPERATIONS, edges, search_structure
from nnunet_ext.dints.topology_figure import topology_figure
from nnunet_ext.files import write_json
from nnunet_ext.planning.derive import settings_words

CONFIGURATION = "3d_fullres"
SIZE = {"patch_size": [32, 48, 32], "batch_size": 2}
SEARCH = {
    **SIZE, "sigma": 0.5, "num_layers": 6, "num_depths": 3, "base_features": 4, "num_epochs": 16, "weight_epochs": 8,
    "num_iterations_per_epoch": 25, "num_val_iterations_per_epoch": 5, "warmup_iterations": 50, "halve_every": 160,
    "architecture_lr": 0.04, "save_every": 1,
}  # fmt: skip
TRAINING = {
    **SIZE, "base_features": 8, "num_epochs": 12, "num_iterations_per_epoch": 25, "num_val_iterations_per_epoch": 5,
    "save_every": 1,
}  # fmt: skip


def plan(dataset, method, name, settings, *words):
    command(
        "nnunet_ext", "plan", dataset, "--method", method, "--name", name, "--configuration", CONFIGURATION,
        "--overwrite", *words, *settings_words(settings),
    )  # fmt: skip


def train(dataset, trainer, name, results):
    """Fold 0, from where it stands; its folder."""
    folder = next(iter(results.glob(f"{trainer}__{name}__{CONFIGURATION}/fold_0")), None)
    if folder is None or not (folder / "checkpoint_final.pth").is_file():
        go_on = ["--c"] if folder is not None and any(folder.glob("checkpoint_*.pth")) else []
        command(
            "nnUNetv2_train", dataset, CONFIGURATION, 0, "-tr", trainer, "-p", name, "-device", "cpu", *go_on
        )  # fmt: skip
    elif trainer == "DiNTSTrainer" and not (folder / "validation" / "summary.json").is_file():
        command(
            "nnUNetv2_train", dataset, CONFIGURATION, 0, "-tr", trainer, "-p", name, "-device", "cpu", "--val"
        )  # fmt: skip
    return results / f"{trainer}__{name}__{CONFIGURATION}" / "fold_0"


def structure_of(plans):
    kwargs = plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]
    return search_structure(
        kwargs["strides"], num_layers=SEARCH["num_layers"], num_depths=SEARCH["num_depths"],
        base_features=SEARCH["base_features"], features_per_stage=None, use_downsample=True,
    )  # fmt: skip


def random_code(structure, ratio, seed):
    rng = np.random.default_rng(seed)
    count = len(edges(structure.depth))
    shapes = (structure.num_layers, count), (structure.num_layers, count, len(OPERATIONS[3]))
    table = np.array(edge_memory(structure, SIZE["patch_size"]))
    return decode_in_budget(*(rng.normal(size=shape) for shape in shapes), table, ratio).code


def row(name, code, folder, plans):
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    configuration = plans["configurations"][CONFIGURATION]
    kwargs = configuration["architecture"]["arch_kwargs"]
    with torch.device("meta"):
        network = DiNTSNet(1, 3, **kwargs)
    report = complexity_report(network, 1, SIZE["patch_size"])
    return {
        "code": name,
        "layers": code.num_layers,
        "scales": code.depth,
        "active_edges": code.num_edges,
        "parameters_m": report["parameters"]["total"] / 1e6,
        "gmacs": report["true"]["gmacs"],
        "kept_mb": 4 * network.compute_conv_feature_map_size(SIZE["patch_size"]) / 1e6,
        "dice": summary["foreground_mean"]["Dice"],
        "dice_by_label": {label: values["Dice"] for label, values in summary["mean"].items()},
        "cases": len(summary["metric_per_case"]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=int)
    parser.add_argument("--work", type=Path, required=True, help="for the random codes' files")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    named = f"Dataset{args.dataset:03d}_*"
    preprocessed = next(Path(os.environ["nnUNet_preprocessed"]).glob(named))
    results = Path(os.environ["nnUNet_results"]) / preprocessed.name

    def plans_of(name):
        return json.loads((preprocessed / f"{name}.json").read_text())

    plan(args.dataset, "dints_search", "HippocampusSearch", SEARCH, "--from", "DiNTSSearchPlans")
    fold = train(args.dataset, "DiNTSSearchTrainer", "HippocampusSearch", results)
    found = read_code(fold / "architecture.json")
    structure = structure_of(plans_of("HippocampusSearch"))
    ratio = memory_ratio(found.code, structure, SIZE["patch_size"])
    codes = {"searched": (found.code, fold / "architecture.json")}
    for number in (1, 2):
        code = random_code(structure, ratio, number)
        CodeFile(code, meta={"source": "random"}).write(args.work / f"random_{number}.json")
        codes[f"random {number}"] = code, args.work / f"random_{number}.json"
    CodeFile(CVPR_CODE).write(args.work / "published.json")
    codes["published"] = CVPR_CODE, args.work / "published.json"
    rows = []
    for name, (code, file) in codes.items():
        plans = f"Hippocampus{name.title().replace(' ', '')}"
        plan(args.dataset, "dints", plans, TRAINING, "--from", "DiNTSPlans", "--code", file)
        folder = train(args.dataset, "DiNTSTrainer", plans, results)
        rows.append(row(name, code, folder, plans_of(plans)))
        ratios = {"memory_ratio": memory_ratio(code, structure, SIZE["patch_size"])} if name != "published" else {}
        rows[-1].update(ratios)
        print(json.dumps(rows[-1]), flush=True)
        result = {
            "data": preprocessed.name, "fold": 0, "search": SEARCH, "training": TRAINING,
            "found": {key: found.meta[key] for key in found.meta if key != "edge_probabilities"}, "rows": rows,
        }  # fmt: skip
        if args.out:
            write_json(args.out, result)
    if args.figure:
        names = [[tuple(OPERATIONS[3])[o] for o in operations] for operations in found.code.operations]
        scales = [f"1/{2 ** (scale + 1)}" for scale in range(found.code.depth)]
        figure = topology_figure(
            edges(found.code.depth), found.code.active, names, scales, found.meta["edge_probabilities"]
        )
        figure.savefig(args.figure, dpi=110)


if __name__ == "__main__":
    main()
