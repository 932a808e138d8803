"""A tiny data set, and the stock nnU-Net commands in subprocesses with their own three folders."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk

ENVIRONMENT = {
    "nnUNet_def_n_proc": "1",
    "nnUNet_n_proc_DA": "1",
    "nnUNet_compile": "f",
    "OMP_NUM_THREADS": "1",
}
DATASET_ID = 7


class Workspace:
    """The three nnU-Net folders below `root`, and `run` for the stock commands."""

    def __init__(self, root, results="results", number=DATASET_ID):
        self.root, self.number = Path(root), number
        self.raw, self.preprocessed, self.results = (self.root / name for name in ("raw", "preprocessed", results))
        for folder in (self.raw, self.preprocessed, self.results):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def environment(self):
        return {**os.environ, **ENVIRONMENT, **self.folders}

    @property
    def folders(self):
        """The three variables, for a process or for pytest's monkeypatch."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
        }

    def together(self, *calls):
        """Runs functions two at a time: most of a tiny training is start-up on one core."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda call: call(), calls))

    def command(self, *words):
        return [str(Path(sys.executable).parent / words[0]), *map(str, words[1:])]

    def run(self, *words, check=True, **environment):
        """Runs one command and returns the finished process with its output as text."""
        result = subprocess.run(
            self.command(*words),
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        if check and result.returncode != 0:
            line = " ".join(map(str, words))
            raise AssertionError(f"{line} ended with {result.returncode}:\n{result.stdout[-6000:]}")
        return result

    def train(self, configuration, fold, *words, check=True, **environment):
        return self.run(
            "nnUNetv2_train", self.number, configuration, fold, "-device", "cpu", *words,
            check=check, nnUNet_n_proc_DA="0", **environment,
        )  # fmt: skip

    def train_and_kill(self, epoch, configuration, fold, *words):
        """Starts a training and kills it shortly after `epoch` has begun."""
        log = self.root / "killed.txt"
        with log.open("w") as file:
            process = subprocess.Popen(
                self.command("nnUNetv2_train", self.number, configuration, fold, "-device", "cpu", *words),
                env={**self.environment, "nnUNet_n_proc_DA": "0", "PYTHONUNBUFFERED": "1"},
                stdout=file,
                stderr=file,
            )
            deadline = time.time() + 300
            while not re.search(rf"\bEpoch {epoch}\b", log.read_text()):
                assert process.poll() is None and time.time() < deadline, log.read_text()[-3000:]
                time.sleep(0.02)
            time.sleep(0.1)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    def predict(self, source, target, *words, **environment):
        self.run(
            "nnUNetv2_predict", "-i", source, "-o", target, "-d", self.number, "-device", "cpu", "-npp", 0, "-nps", 0,
            *words, **environment,
        )  # fmt: skip
        return segmentations(target)

    def plan(self, planner, *configurations, check=False):
        """Fingerprint, plans and preprocessing; `check` has nnU-Net verify the images before."""
        self.run(
            "nnUNetv2_plan_and_preprocess", "-d", self.number, "-pl", planner, "-c",
            *(configurations or ["3d_fullres"]), "-np", 1, "-npfp", 1, *["--verify_dataset_integrity"] * check,
        )  # fmt: skip

    @property
    def dataset(self):
        return f"Dataset{self.number:03d}_Tiny"

    def plans(self, name):
        return json.loads((self.preprocessed / self.dataset / f"{name}.json").read_text())

    def write_plans(self, plans, name):
        plans["plans_name"] = name
        (self.preprocessed / self.dataset / f"{name}.json").write_text(json.dumps(plans))

    def model_fold(self, trainer):
        """The folder into which a trainer object writes."""
        return Path(trainer.output_folder)

    def model(self, trainer, plans, configuration):
        return self.results / self.dataset / f"{trainer}__{plans}__{configuration}"


def segmentations(folder):
    return {p.name: sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in sorted(Path(folder).glob("*.nii.gz"))}


def write_image(path, array, spacing):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def make_dataset(
    workspace, *, cases=5, tests=2, channels=1, slabs=0, size=(20, 32, 32), ignore=False, regions=False, seed=0
):
    """Noise with two nested bright blocks at random places: background 0, outer 1, inner 2 (ignore label 3).

    With `slabs` the outer block is cut into that many labels instead.
    """
    rng = np.random.default_rng(seed)
    folder = workspace.raw / workspace.dataset
    for number in range(cases + tests):
        where = "Tr" if number < cases else "Ts"
        segmentation = np.zeros(size, np.uint8)
        corner = [rng.integers(2, s - s // 2 - 1) for s in size]
        outer = tuple(slice(c, c + s // 2) for c, s in zip(corner, size, strict=True))
        inner = tuple(slice(c + s // 8, c + s // 3) for c, s in zip(corner, size, strict=True))
        segmentation[outer] = 1
        segmentation[inner] = 2
        if slabs:
            segmentation[outer] = 1 + np.arange(size[2] // 2) * slabs // (size[2] // 2)
        for channel in range(channels):
            image = segmentation.astype(np.float32) * 100 * (1 + channel) + rng.normal(0, 20, size).astype(np.float32)
            write_image(folder / f"images{where}" / f"case_{number:03d}_{channel:04d}.nii.gz", image, (1.0, 1.0, 2.0))
        if ignore:
            segmentation[:3] = 3
        write_image(folder / f"labels{where}" / f"case_{number:03d}.nii.gz", segmentation, (1.0, 1.0, 2.0))
    labels = {"background": 0, "whole": [1, 2], "inner": 2} if regions else {"background": 0, "outer": 1, "inner": 2}
    if slabs:
        labels = {"background": 0, **{f"slab{k}": k for k in range(1, slabs + 1)}}
    if ignore:
        labels["ignore"] = 3
    description = {
        "channel_names": {str(c): "noise" for c in range(channels)},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    if regions:
        description["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(description))


def handmade_plans(architecture, *, patch_size=(8, 16, 16), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), **options):
    """A plans dict as nnU-Net's planner writes it, for trainers that are built without any command."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": list(patch_size),
        "spacing": [2.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": architecture,
        "batch_dice": False,
        "nnunet_ext": options,
    }
    planar = {**configuration, "data_identifier": "nnUNetPlans_2d", "patch_size": list(patch_size[1:])}
    planar["architecture"] = stock_architecture([stride[1:] for stride in strides])
    return {
        "dataset_name": f"Dataset{DATASET_ID:03d}_Tiny",
        "plans_name": "HandmadePlans",
        "original_median_spacing_after_transp": [2.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(patch_size),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": planar, "3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "continue_training": False,
    }


def stock_plans(name, strides):
    """The plans as nnU-Net's planner would have written them: without options of ours."""
    made = handmade_plans(stock_architecture(strides), strides=strides)
    made.pop("continue_training")
    for configuration in made["configurations"].values():
        configuration.pop("nnunet_ext")
    return {**made, "plans_name": name}


def stock_architecture(strides):
    """nnU-Net's PlainConvUNet as its planner writes it."""
    dimensions, levels = len(strides[0]), len(strides)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": levels,
            "features_per_stage": [4] * levels,
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * levels,
            "strides": [list(stride) for stride in strides],
            "n_conv_per_stage": [1] * levels,
            "n_conv_per_stage_decoder": [1] * (levels - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def shrink(plans, options, arch_kwargs, *, patch_size=(16, 32, 32)):
    """A copy of a plans file with short training, small patch and small network in every 3d configuration."""
    plans = json.loads(json.dumps(plans))
    for configuration in plans["configurations"].values():
        if len(configuration.get("patch_size", ())) == 3:
            configuration["patch_size"] = list(patch_size)
            configuration["batch_size"] = 2
            configuration["nnunet_ext"] = options
            configuration["architecture"]["arch_kwargs"].update(arch_kwargs)
    return plans
