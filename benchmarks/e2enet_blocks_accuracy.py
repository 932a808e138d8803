"""Does E2ENet learn as well where blocks of outputs share their inputs? Equal trainings by the stock commands.

    python benchmarks/e2enet_blocks_accuracy.py 4 --out benchmarks/results/e2enet_blocks_accuracy.json
    python benchmarks/e2enet_blocks_accuracy.py 4 --summary --out benchmarks/results/e2enet_blocks_accuracy.json

DATASET must be planned with E2ENetPlanner and nnU-Net's planner, and preprocessed for 3d_fullres, and nnU-Net's folders
set. Each training is short and narrow enough for one core of a CPU: 500 steps of batch 2 at two thirds of the width, 20
updates of the topology, training passes in bfloat16 autocast. nnU-Net validates it on the fold's cases, in float32 and
with mirroring. nnU-Net's U-Net has its own plans and width, the same batch, steps and autocast, and no fixed seed.

The Dice of each case and label is appended to the file as soon as a training ends; trainings that the file has are not
made again, so that it grows over as many days as it takes, and several processes can share the work (`--share 0 2`
and `--share 1 2`). The most telling ones come first. `--summary` prints means, and differences paired by fold, seed and
case with a bootstrap interval over cases.
"""

import argparse
import fcntl
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from stock_commands import command

from nnunet_ext.files import read_json, write_json
from nnunet_ext.planning.derive import settings_words

CONFIGURATION = "3d_fullres"
EPOCHS, STEPS = 10, 50
COMMON = {
    "base_features": 32, "batch_size": 2, "num_epochs": EPOCHS, "num_iterations_per_epoch": STEPS,
    "num_val_iterations_per_epoch": 5, "save_every": 1, "update_every": 25, "train_bfloat16": True,
}  # fmt: skip
REFERENCE = "single kernels, S=0.8"
VARIANTS = {  # the order in which they are trained
    REFERENCE: {"sparsity": 0.8},
    "blocks of 16, S=0.8": {"sparsity": 0.8, "connection_block": 16},
    "U-Net of nnU-Net": None,
    "single kernels, S=0.9": {"sparsity": 0.9},
    "blocks of 16, S=0.9": {"sparsity": 0.9, "connection_block": 16},
    "dense": {"sparsity": None},
    "blocks of 4, S=0.8": {"sparsity": 0.8, "connection_block": 4},
    "blocks of 32, S=0.8": {"sparsity": 0.8, "connection_block": 32},
    "blocks of 4, S=0.9": {"sparsity": 0.9, "connection_block": 4},
    "blocks of 32, S=0.9": {"sparsity": 0.9, "connection_block": 32},
}
SHORT = f"""from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.layers.precision import train_in_bfloat16


class ShortTrainer(nnUNetTrainer):
    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = {EPOCHS}, {STEPS}, 5
        super().initialize()
        train_in_bfloat16(self.network)
"""


def plan(dataset, preprocessed, name, settings, seed):
    """Writes the plans of one training under `name`."""
    if settings is None:
        plans = read_json(preprocessed / "nnUNetPlans.json")
        plans["plans_name"] = name
        plans["configurations"][CONFIGURATION]["batch_size"] = COMMON["batch_size"]
        write_json(preprocessed / f"{name}.json", plans)
        return
    words = ("--from", "E2ENetPlans", "--name", name, "--configuration", CONFIGURATION, "--overwrite")
    command("nnunet_ext", "plan", dataset, *words, *settings_words({**COMMON, **settings, "seed": seed}))


def train(dataset, variant, fold, seed):
    """One training and its validation: Dice by case and label, seconds of the processor."""
    preprocessed = next(Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{dataset:03d}_*"))
    settings, name = VARIANTS[variant], f"BlocksAccuracy{os.getpid()}"
    plan(dataset, preprocessed, name, settings, seed)
    trainer = "E2ENetTrainer" if settings is not None else "ShortTrainer"
    with tempfile.TemporaryDirectory() as place:
        Path(place, "trainers").mkdir()
        Path(place, "trainers", "short_trainer.py").write_text(SHORT, encoding="utf-8")
        variables = {"nnUNet_results": place, "nnUNet_extTrainer": str(Path(place, "trainers")),
                     "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}  # fmt: skip
        before = os.times()
        command(
            "nnUNetv2_train", dataset, CONFIGURATION, fold, "-tr", trainer, "-p", name, "-device", "cpu", **variables
        )
        after = os.times()
        folder = next(Path(place).glob(f"*/{trainer}__{name}__{CONFIGURATION}/fold_{fold}/validation"))
        cases = read_json(folder / "summary.json")["metric_per_case"]
    (preprocessed / f"{name}.json").unlink()
    return {
        "variant": variant, "fold": fold, "seed": seed,
        "cpu_seconds": round(after.children_user - before.children_user),
        "dice": {
            Path(case["reference_file"]).name: {k: v["Dice"] for k, v in case["metrics"].items()} for case in cases
        },
    }  # fmt: skip


def keep(path, row):
    """Adds a row to the file, which other processes add to as well; returns all rows."""
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    rows = [*read_rows(path), row]
    write_json(path, {"settings": COMMON, "summary": summary(rows), "rows": rows})
    os.close(folder)  # which gives the lock back
    return rows


def read_rows(path):
    """The trainings that are done."""
    return read_json(path)["rows"] if path.is_file() else []


def summary(rows):
    """Mean Dice of each variant; against the reference, paired by fold, seed and case."""

    def by_case(variant):
        return {
            (row["fold"], row["seed"], case): float(np.nanmean(list(labels.values())))
            for row in rows
            if row["variant"] == variant
            for case, labels in row["dice"].items()
        }

    reference, found = by_case(REFERENCE), {}
    for variant in VARIANTS:
        mine = by_case(variant)
        if not mine:
            continue
        found[variant] = {"trainings": sum(row["variant"] == variant for row in rows),
                          "mean_dice": float(np.mean(list(mine.values())))}  # fmt: skip
        shared = [key for key in mine if key in reference]
        if variant == REFERENCE or not shared:
            continue
        cases = sorted({(fold, case) for fold, _, case in shared})  # seeds of one case are no independent cases
        differences = np.array(
            [np.mean([mine[k] - reference[k] for k in shared if (k[0], k[2]) == case]) for case in cases]
        )
        draws = np.random.default_rng(0).choice(differences, (10_000, len(differences))).mean(1)
        interval = [float(x) for x in np.quantile(draws, (0.025, 0.975))]
        found[variant][f"minus {REFERENCE}"] = {"mean": float(differences.mean()), "95 %": interval,
                                                "cases": len(cases)}  # fmt: skip
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help="which of how many processes this one is")
    parser.add_argument("--summary", action="store_true", help="print what there is, and train nothing")
    args = parser.parse_args()
    rows = read_rows(args.out)
    wanted = [(v, fold, seed) for seed in range(args.seeds) for fold in args.folds for v in args.variants]
    part, parts = args.share
    for variant, fold, seed in [] if args.summary else wanted[part::parts]:
        if any((row["variant"], row["fold"], row["seed"]) == (variant, fold, seed) for row in rows):
            continue
        rows = keep(args.out, train(args.dataset, variant, fold, seed))
        mean = np.mean([np.nanmean(list(labels.values())) for labels in rows[-1]["dice"].values()])
        print(time.strftime("%H:%M"), variant, fold, seed, f"{mean:.4f}", rows[-1]["cpu_seconds"], flush=True)
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
