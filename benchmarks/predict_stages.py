"""Time of nnU-Net's prediction by stage: preprocessing, the network, the rest of the sliding window, export.

    python benchmarks/predict_stages.py 901 IMAGES --rounds 2 --out benchmarks/results/predict_stages.json

E2ENetTrainer, packed and in torch, and nnU-Net's own trainer predict the same images with the same plans, in turns, in
nnU-Net's predictor with its defaults (mirroring on, step 0.5). Weights are as initialised: the time does not depend on
them. The data set must be planned and preprocessed, and nnU-Net's folders set; models go to a temporary folder.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_ext.e2enet.packed.dispatch import SWITCH


def untrained_model(dataset, configuration, trainer_name, plans):
    trainer = get_trainer_from_args(dataset, configuration, "all", trainer_name, plans, device=torch.device("cpu"))
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = tuple(range(len(trainer.configuration_manager.patch_size)))
    base = Path(trainer.output_folder_base)
    assert base.is_relative_to(os.environ["nnUNet_results"])
    (base / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (base / "dataset.json").write_text(json.dumps(trainer.dataset_json))
    trainer.save_checkpoint(str(base / "fold_all" / "checkpoint_final.pth"))
    return base


class Stages:
    """Seconds by stage of one prediction."""

    def __init__(self, predictor):
        self.predictor, self.seconds = predictor, {}
        self._starts = []

    def timed(self, stage, function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - start

        return call

    def run(self, images, output):
        predictor, module = self.predictor, predict_from_raw_data
        preprocessor = predictor.configuration_manager.preprocessor_class
        saved = preprocessor.run_case, predictor.predict_logits_from_preprocessed_data, predictor.network.forward
        export = module.export_prediction_from_logits
        preprocessor.run_case = self.timed("preprocessing", saved[0])
        predictor.predict_logits_from_preprocessed_data = self.timed("sliding window with network", saved[1])
        predictor.network.forward = self.timed("network", saved[2])
        module.export_prediction_from_logits = self.timed("resampling and export", export)
        try:
            self.timed("total", predictor.predict_from_files_sequential)(str(images), str(output))
        finally:
            preprocessor.run_case = saved[0]
            predictor.predict_logits_from_preprocessed_data = saved[1]
            predictor.network.forward = saved[2]
            module.export_prediction_from_logits = export
        return self.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("images", type=Path)
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--plans", default="nnUNetPlans")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    folder = Path(tempfile.mkdtemp())
    os.environ["nnUNet_results"] = str(folder / "results")  # nobody's models are touched
    opponents = {"E2ENet, packed": "1", "nnU-Net": None, "E2ENet, torch": "0"}
    models = {
        name: untrained_model(args.dataset, args.configuration, name, args.plans)
        for name in ("E2ENetTrainer", "nnUNetTrainer")
    }
    torch.set_num_threads(args.threads)
    seconds = {name: [] for name in opponents}
    segmentations = {}
    for _ in range(args.rounds):
        for name, switch in opponents.items():
            os.environ[SWITCH] = switch or "1"
            predictor = predict_from_raw_data.nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
            model = models["nnUNetTrainer" if switch is None else "E2ENetTrainer"]
            predictor.initialize_from_trained_model_folder(str(model), ("all",), "checkpoint_final.pth")
            (folder / name).mkdir(exist_ok=True)
            seconds[name].append(Stages(predictor).run(args.images, folder / name))
            print(name, {k: round(v, 1) for k, v in seconds[name][-1].items()}, flush=True)
            files = sorted((folder / name).glob("*.nii.gz"))
            segmentations[name] = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files]
    pairs = zip(segmentations["E2ENet, packed"], segmentations["E2ENet, torch"], strict=True)
    configuration = predictor.configuration_manager
    report = {
        "patch_size": list(configuration.patch_size),
        "threads": args.threads,
        "torch": torch.__version__,
        "cpu capability of torch": torch.backends.cpu.get_cpu_capability(),
        "share of voxels equal, packed and torch": [float(np.mean(a == b)) for a, b in pairs],
        "seconds (median)": {
            name: {stage: round(statistics.median(r[stage] for r in rounds), 2) for stage in rounds[0]}
            for name, rounds in seconds.items()
        },
        "time / packed time (median over rounds)": {
            name: {
                stage: round(
                    statistics.median(
                        o[stage] / p[stage] for o, p in zip(rounds, seconds["E2ENet, packed"], strict=True)
                    ),
                    3,
                )
                for stage in ("network", "total")
            }
            for name, rounds in seconds.items()
        },
    }
    shutil.rmtree(folder)
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
