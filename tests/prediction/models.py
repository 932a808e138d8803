"""Model folders with random weights, and nnU-Net's own predictions with them, in this process."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import torch
from end_to_end.stock import handmade_plans, stock_architecture, write_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
LABELS = {"background": 0, "outer": 1, "inner": 2, "rim": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3, "ignore": 4}


def dataset_json(labels=LABELS, channels=1, **more):
    made = {"channel_names": {str(c): "MR" for c in range(channels)}, "labels": labels, "numTraining": 3,
            "file_ending": ".nii.gz", **more}  # fmt: skip
    if labels is REGIONS:
        made["regions_class_order"] = [1, 2, 3]
    return made


def plans_of(architecture=None, *, transpose=(0, 1, 2), spacing=(2.0, 1.0, 1.0), **changes):
    """Plans of a tiny 3d network, whose axes are those of the image in the order `transpose`."""
    plans = handmade_plans(architecture or stock_architecture(STRIDES), strides=STRIDES)
    plans["transpose_forward"] = list(transpose)
    plans["transpose_backward"] = [transpose.index(axis) for axis in range(3)]
    plans["configurations"]["3d_fullres"].update(spacing=list(spacing), **changes)
    plans["configurations"]["2d"].update(spacing=list(spacing[1:]), **changes)
    properties = {"mean": 0.0, "std": 1.0, "percentile_00_5": -1.0, "percentile_99_5": 3.0}
    plans["foreground_intensity_properties_per_channel"] = {"0": properties, "1": properties}
    for configuration in plans["configurations"].values():
        configuration.pop("nnunet_ext")
    return plans


def write_model(
    folder, plans, dataset, *, trainer="nnUNetTrainer", configuration="3d_fullres", folds=(0,), mirroring=(1, 2)
):
    """A trained model's folder, whose weights are random and whose logits differ clearly."""
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    manager = PlansManager(plans)
    configured = manager.get_configuration(configuration)
    build = recursive_find_trainer_class_by_name(trainer).build_network_architecture
    channels = determine_num_input_channels(manager, configured, dataset)
    for fold in folds:
        torch.manual_seed(100 + fold if isinstance(fold, int) else 99)
        heads = manager.get_label_manager(dataset).num_segmentation_heads
        network = build(manager, configured, channels, heads, enable_deep_supervision=False)
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": trainer,
            "init_args": {"configuration": configuration},
            "inference_allowed_mirroring_axes": mirroring,
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def write_images(folder, sizes=((14, 30, 26), (11, 21, 34)), *, channels=1, spacing=(0.8, 0.9, 2.5), border=0, seed=0):
    """Noise with a gradient; `border` voxels of zeros around it, as an image that nnU-Net crops."""
    rng = np.random.default_rng(seed)
    for number, size in enumerate(sizes):
        for channel in range(channels):
            image = rng.normal(size=size).astype(np.float32) + np.linspace(0, 2, size[2], dtype=np.float32)
            if border:
                image = np.pad(image[tuple(slice(border, -border) for _ in size)], border)
            write_image(folder / f"case_{number}_{channel:04d}.nii.gz", image, spacing)
    return folder


def predict_as_nnunet(model, images, output, *, folds=(0,), previous=None, probabilities=False, mirror=True, step=0.5):
    """nnU-Net's own predictor, without its worker processes."""
    output.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(
            tile_step_size=step, use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(model), folds)
        predictor.predict_from_files_sequential(
            str(images), str(output), probabilities, True, None if previous is None else str(previous)
        )
    return Path(output)
