"""What pretrained weights are worth on a real data set: Med-Adapters on them, on random frozen ones, and full training.

    python benchmarks/med_tuning_hippocampus.py 4 --weights vit_s.safetensors --backbone vit_small_patch14_dinov2 \\
        --out benchmarks/results/med_tuning_hippocampus.json

DATASET is planned with MedTuningPlanner and preprocessed for 3d_fullres. Every row is trained on fold 0 by the stock
command with the same steps, patch, batch and seed, and validated as nnU-Net does, on whole cases with mirroring; each
tuning has the learning rate that is its default. Everything is short enough for a CPU, and far from a full training. A
run that was killed goes on: finished trainings are passed over, others continue.
"""

import argparse
import json
import os
from pathlib import Path

from stock_commands import command

from nnunet_ext.files import write_json
from nnunet_ext.planning.derive import settings_words

CONFIGURATION = "3d_fullres"
SHORT = {
    "patch_size": [16, 56, 40], "batch_size": 2, "num_epochs": 5, "num_iterations_per_epoch": 30,
    "num_val_iterations_per_epoch": 5, "save_every": 1, "cpu_bfloat16": True,
}  # fmt: skip
ROWS = {
    "Med-Adapters, pretrained": ("Adapters", {"tuning": "med_adapter"}, True),
    "Med-Adapters, random frozen": ("Random", {"tuning": "med_adapter"}, False),
    "everything, from random": ("Scratch", {"tuning": "scratch"}, False),
    "everything, pretrained": ("Full", {"tuning": "full"}, True),
    "Med-Adapters from block 7, positions frozen": (
        "Later", {"tuning": "med_adapter", "adapted_from": 6, "tune_positions": False}, True,
    ),
}  # fmt: skip


def row(folder):
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    history = json.loads((folder / "med_tuning_history.json").read_text())[1:]
    cases = {
        Path(case["reference_file"]).name: sum(label["Dice"] for label in case["metrics"].values())
        / len(case["metrics"])
        for case in summary["metric_per_case"]
    }
    return {
        "dice": summary["foreground_mean"]["Dice"],
        "dice_by_label": {label: values["Dice"] for label, values in summary["mean"].items()},
        "dice_by_case": cases,
        "pseudo_dice_by_epoch": [epoch["dice"] for epoch in history],
        "train_loss_by_epoch": [epoch["train_loss"] for epoch in history],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=int)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--only", nargs="+", choices=[name for name, _, _ in ROWS.values()], help="some of the rows")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    named = next(Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{args.dataset:03d}_*")).name
    results = Path(os.environ["nnUNet_results"]) / named
    settings = {**SHORT, "backbone": args.backbone}
    found = json.loads(args.out.read_text())["rows"] if args.out and args.out.is_file() else {}
    for title, (name, further, pretrained) in ROWS.items():
        if args.only and name not in args.only:
            continue
        plans = f"MedTuning{name}"
        weights = {"weights_file": str(args.weights)} if pretrained else {"pretrained": False}
        command(
            "nnunet_ext", "plan", args.dataset, "--method", "med_tuning", "--from", "MedTuningPlans", "--name", plans,
            "--configuration", CONFIGURATION, "--overwrite", *settings_words({**settings, **further, **weights}),
        )  # fmt: skip
        folder = results / f"MedTuningTrainer__{plans}__{CONFIGURATION}" / "fold_0"
        if not (folder / "validation" / "summary.json").is_file():
            words = [args.dataset, CONFIGURATION, 0, "-tr", "MedTuningTrainer", "-p", plans, "-device", "cpu"]
            go_on = ["--c"] if any(folder.glob("checkpoint_*.pth")) else []
            command("nnUNetv2_train", *words, *(["--val"] if (folder / "checkpoint_final.pth").is_file() else go_on))
        found[title] = row(folder)
        print(title, json.dumps({k: v for k, v in found[title].items() if k != "dice_by_case"}), flush=True)
        if args.out:
            about = {"data": named, "fold": 0, "backbone": args.backbone, "settings": SHORT}
            write_json(args.out, {**about, "rows": found})


if __name__ == "__main__":
    main()
