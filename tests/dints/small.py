"""Codes and networks of few layers."""

import json

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_ext.dints.discretize import decode
from nnunet_ext.dints.search_space import OPERATIONS, edges

CUBES = [[1, 1, 1]] + [[2, 2, 2]] * 4


def random_code(depth=4, layers=12, dimensions=3, seed=0):
    """A feasible code: the decode of random logits."""
    rng = np.random.default_rng(seed)
    count = len(edges(depth))
    logits = rng.normal(0, 2, (layers, count)), rng.normal(0, 1, (layers, count, len(OPERATIONS[dimensions])))
    return decode(*logits).code


def depth_for(strides):
    """As many scales as the strides have room for."""
    return min(5, len(strides) - 1)


def preprocess_cases(workspace, count, shape=(10, 20, 20)):
    """Cases as nnU-Net's preprocessing leaves them, for loaders that are started without any command."""
    folder = workspace.preprocessed / workspace.dataset
    data = folder / "nnUNetPlans_3d_fullres"
    for old in data.glob("*.b2nd"):
        old.unlink()
    names = [f"case_{number:03d}" for number in range(count)]
    rng = np.random.default_rng(0)
    for name in names:
        labels = np.zeros((1, *shape), np.int8)
        labels[:, 2:6, 4:14, 5:15], labels[:, 3:5, 6:10, 7:11] = 1, 2
        image = (labels + rng.normal(size=labels.shape)).astype(np.float32)
        locations = {k: np.argwhere(labels == k) for k in (1, 2)}
        nnUNetDatasetBlosc2.save_case(image, labels, {"class_locations": locations}, str(data / name))
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}))
    (folder / "dataset_fingerprint.json").write_text("{}")
    splits = [{"train": names[: count - 2], "val": names[count - 2 :]}] * 5
    (folder / "splits_final.json").write_text(json.dumps(splits))
    return names
