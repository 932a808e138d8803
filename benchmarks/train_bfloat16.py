"""How much shorter a training step is with `train_bfloat16`, by our trainers and nnU-Net's, on a CPU that has bfloat16.

    OMP_NUM_THREADS=1 python benchmarks/train_bfloat16.py 4 --out benchmarks/results/train_bfloat16.json

DATASET must be planned by nnU-Net and by the planners of the methods, and preprocessed for 3d_fullres. Both forms of a
trainer take steps in turn, on one batch of random numbers of the planned patch; process time, freed memory kept. For
nnU-Net's trainer the same is done to its network, and its loss gets float32 too.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from importlib import import_module
from pathlib import Path

import torch

from nnunet_ext.discovery.registry import TRAINERS
from nnunet_ext.files import read_json, write_json
from nnunet_ext.layers.precision import has_bfloat16, train_in_bfloat16
from nnunet_ext.prediction.memory import keep_freed_memory

CONFIGURATION = "3d_fullres"
PLANS = {  # by trainer, with options
    "nnUNetTrainer": ("nnUNetPlans", {}),
    "E2ENetTrainer": ("E2ENetPlans", {}),
    "DiNTSTrainer": ("DiNTSPlans", {}),
    "MedDANetTrainer": ("MedDANetPlans", {}),
    "MedTuningTrainer": ("MedTuningPlans", {"pretrained": False}),
}


def trainer_of(name, plans, dataset, bfloat16):
    """Ready for steps, as the commands make it."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    stock = name == "nnUNetTrainer"
    if not stock:
        plans["configurations"][CONFIGURATION]["nnunet_ext"] |= {"train_bfloat16": bfloat16, **PLANS[name][1]}
    plans["configurations"][CONFIGURATION]["batch_size"] = 2
    plans["continue_training"] = False  # which the command adds
    trainer_class = nnUNetTrainer if stock else getattr(import_module(TRAINERS[name]), name)
    trainer = trainer_class(plans, CONFIGURATION, 0, dataset, torch.device("cpu"))
    trainer.initialize()
    if stock and bfloat16:
        train_in_bfloat16(trainer.network)
    trainer.network.train()
    return trainer


def batch_of(trainer):
    """Random image and labels, with those of the smaller outputs."""
    patch = trainer.configuration_manager.patch_size
    data = torch.randn(2, trainer.num_input_channels, *patch)
    target = torch.randint(0, trainer.label_manager.num_segmentation_heads, (2, 1, *patch)).float()
    scales = trainer._get_deep_supervision_scales()
    if scales is None:
        return {"data": data, "target": target}
    sizes = [[round(p * s) for p, s in zip(patch, scale, strict=True)] for scale in scales]
    return {"data": data, "target": [torch.nn.functional.interpolate(target, size=size) for size in sizes]}


def measured(name, folder, rounds):
    """Seconds of a step in both forms, and the median of the ratios of neighbouring steps."""
    dataset, plans = read_json(folder / "dataset.json"), PLANS[name][0]
    forms = [trainer_of(name, read_json(folder / f"{plans}.json"), dataset, half) for half in (False, True)]
    batch, seconds = batch_of(forms[0]), ([], [])
    for number in range(rounds + 1):
        for trainer, times in zip(forms, seconds, strict=True):
            before = time.process_time()
            trainer.train_step(batch)
            if number:  # the first warms up
                times.append(time.process_time() - before)
    ratios = [whole / half for whole, half in zip(*seconds, strict=True)]
    float32, bfloat16 = (round(statistics.median(times), 3) for times in seconds)
    return {"float32_s": float32, "bfloat16_s": bfloat16, "ratio": round(statistics.median(ratios), 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=int)
    parser.add_argument("--trainers", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not has_bfloat16():
        raise SystemExit("This CPU has no bfloat16 instructions.")
    keep_freed_memory()
    folder = next(Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{args.dataset:03d}_*"))
    with tempfile.TemporaryDirectory() as place:
        os.environ["nnUNet_results"] = place  # read when nnU-Net is imported
        rows = {name: measured(name, folder, args.rounds) for name in args.trainers}
    facts = {"dataset": folder.name, "threads": torch.get_num_threads(), "torch": torch.__version__}
    write_json(args.out, {**facts, "steps": rows})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
