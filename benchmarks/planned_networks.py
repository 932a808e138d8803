"""What the README's table says of each planner: patch and batch at 8 GB, parameters, and the bytes of stored weights.

    python benchmarks/planned_networks.py --out benchmarks/results/planned_networks.json

One data set, described by a fingerprint alone: abdominal CT of 148x512x512 voxels of 3x0.76x0.76 mm, one channel, 15
organs. Nothing is trained: planners are nnU-Net's and ours, networks have random weights, and what is stored is what a
slim model holds of one fold (`nnunet_ext export-model`, without ZIP).
"""

import argparse
import io
import json
import os
import tempfile
from importlib import import_module
from pathlib import Path

TEMPORARY = tempfile.TemporaryDirectory(prefix="planned_networks_")  # removed when Python ends
ROOT = Path(TEMPORARY.name)
os.environ.update({f"nnUNet_{name}": str(ROOT / name) for name in ("raw", "preprocessed", "results")})

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import torch  # noqa: E402
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (  # noqa: E402
    ExperimentPlanner,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # noqa: E402

from nnunet_ext.discovery.registry import PLANNERS  # noqa: E402
from nnunet_ext.files import write_json  # noqa: E402
from nnunet_ext.med_tuning.frozen import round_to_half, with_halves  # noqa: E402
from nnunet_ext.methods import METHODS  # noqa: E402

SHAPE, SPACING, CLASSES = (148, 512, 512), (3.0, 0.76, 0.76), 16
GIGABYTES = 8


def make_dataset():
    """A raw data set of one tiny image, with a fingerprint that tells of the large ones."""
    folder, planned = (ROOT / name / "Dataset001_CT" for name in ("raw", "preprocessed"))
    planned.mkdir(parents=True)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for path in (folder / "imagesTr" / "a_0000.nii.gz", folder / "labelsTr" / "a.nii.gz"):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 8, 8), np.uint8)), str(path))
    labels = {"background": 0, **{f"organ {k}": k for k in range(1, CLASSES)}}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    fingerprint = {
        "spacings": [SPACING],
        "shapes_after_crop": [SHAPE],
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "median_relative_size_after_cropping": 1.0,
    }
    (planned / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def row(planner, title):
    """One planner's 3d_fullres."""
    plan = planner(1, gpu_memory_target_in_gb=GIGABYTES).plan_experiment()["configurations"]["3d_fullres"]
    architecture = plan["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        CLASSES,
        allow_init=False,
        deep_supervision=True,
    )
    weights = network.state_dict()
    if hasattr(network, "frozen_names"):
        round_to_half(network, network.frozen_names())
        weights = with_halves(network.state_dict(), network.frozen_names())
    stored = io.BytesIO()
    torch.save(weights, stored)
    return {
        "network": title,
        "patch_size": [int(side) for side in plan["patch_size"]],
        "batch_size": plan["batch_size"],
        "parameters": sum(p.numel() for p in network.parameters()),
        "trained_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "stored_mb": round(stored.getbuffer().nbytes / 1e6, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    make_dataset()
    planners = {"nnU-Net's U-Net": ExperimentPlanner}
    for method in METHODS.values():
        planners[method.title] = getattr(import_module(PLANNERS[method.planner]), method.planner)
    rows = [row(planner, title) for title, planner in planners.items()]
    for values in rows:
        print(values)
    if args.out is not None:
        facts = {"voxels": SHAPE, "spacing_mm": SPACING, "classes": CLASSES, "gpu_memory_target_gb": GIGABYTES}
        write_json(args.out, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
