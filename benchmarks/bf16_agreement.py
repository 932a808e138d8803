"""What 16 bits change in the label maps of trained models: E2ENet's engine, and torch under bfloat16 autocast.

    python benchmarks/bf16_agreement.py NAME=MODEL_FOLDER ... --images DATASET/imagesTs --out FILE.json

The first ten images are preprocessed once and predicted by nnU-Net's predictor on the CPU, without mirroring, in
float32 and in 16 bits (`nnUNet_ext_packed=bf16` for E2ENet, and autocast for any network). Reported are the shares of
voxels with equal labels, of all and of those that one of both calls foreground, and the norm of the logits' difference
over the norm of the logits. The fold's final checkpoint is taken, or the best, or the latest. Rows are appended.
"""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

import torch
from nnunetv2.inference.data_iterators import preprocessing_iterator_fromfiles
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_ext.demo.raw_dataset import channel_files
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.packed.dispatch import SWITCH, release
from nnunet_ext.files import read_json, write_json

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")


def predictor_of(folder, fold):
    name = next(name for name in CHECKPOINTS if (folder / f"fold_{fold}" / name).is_file())
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), (fold,), name)
    return predictor, name


def logits(predictor, image, packed, autocast):
    os.environ[SWITCH] = packed
    network = predictor.network
    half = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with half:
        result = torch.as_tensor(predictor.predict_sliding_window_return_logits(image)).float()
    if isinstance(network, E2ENet):
        release(network)
    return result


def compare(found, exact):
    a, b = found.argmax(0), exact.argmax(0)
    foreground = (a > 0) | (b > 0)
    return int((a == b).sum()), a.numel(), int((a == b)[foreground].sum()), int(foreground.sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL_FOLDER")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = read_json(args.out) if args.out and args.out.is_file() else []
    for model in args.models:
        name, _, folder = model.partition("=")
        predictor, checkpoint = predictor_of(Path(folder), args.fold)
        ours = isinstance(predictor.network, E2ENet)
        files = list(channel_files(args.images, predictor.dataset_json["file_ending"]).values())[: args.count]
        cases = [[str(file) for file in channels] for channels in files]
        images = preprocessing_iterator_fromfiles(
            cases, None, None, predictor.plans_manager, predictor.dataset_json, predictor.configuration_manager, 1
        )
        modes = {"autocast": ("0", True)} | (
            {"packed float32": ("1", False), "packed bf16": ("bf16", False)} if ours else {}
        )
        counted = {mode: [0] * 4 for mode in modes}
        squares = {mode: [0.0, 0.0] for mode in modes}
        for case in images:
            exact = logits(predictor, case["data"], "0", False)
            for mode, how in modes.items():
                found = logits(predictor, case["data"], *how)
                counted[mode] = [a + b for a, b in zip(counted[mode], compare(found, exact), strict=True)]
                squares[mode][0] += float((found - exact).square().sum())
                squares[mode][1] += float(exact.square().sum())
        for mode, (equal, voxels, equal_foreground, foreground) in counted.items():
            rows.append(
                {
                    "model": name, "checkpoint": checkpoint, "mode": mode, "cases": len(cases),
                    "equal labels": equal / voxels, "equal in foreground": equal_foreground / max(1, foreground),
                    "norm of the difference": (squares[mode][0] / squares[mode][1]) ** 0.5,
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
        if args.out:
            write_json(args.out, rows)


if __name__ == "__main__":
    main()
