"""`nnunet_ext predict`: what `nnUNetv2_predict` does with any nnU-Net model, sooner and in less memory."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """nnU-Net's arguments, and ours."""
    parser.add_argument(
        "-i", required=True, metavar="FOLDER", help="images, named as for nnU-Net (CASE_0000.nii.gz), or DICOM series"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="label maps go here; it is made if need be"
    )
    model = parser.add_argument_group("the model, as for nnUNetv2_predict or as a folder")
    model.add_argument("-d", metavar="DATASET", help="id, name or DatasetXXX_Name")
    model.add_argument("-c", metavar="CONFIGURATION", help="such as 3d_fullres")
    model.add_argument("-tr", metavar="TRAINER", default="nnUNetTrainer", help="(default: %(default)s)")
    model.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="(default: %(default)s)")
    model.add_argument("-m", metavar="MODEL_FOLDER", help="a trained model's folder, instead of -d, -c, -tr and -p")
    model.add_argument("-f", metavar="FOLD", nargs="+", default=list("01234"), help="folds (default: 0 1 2 3 4)")
    model.add_argument("-chk", metavar="FILE", default="checkpoint_final.pth", help="(default: %(default)s)")
    how = parser.add_argument_group("how to predict, as for nnUNetv2_predict")
    how.add_argument("-step_size", type=float, default=0.5, metavar="SHARE",
                     help="of the patch, from tile to tile (default: %(default)s)")  # fmt: skip
    how.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, less accurate")
    how.add_argument("--save_probabilities", "--npz", action="store_true", help="also write CASE.npz, for ensembles")
    how.add_argument("--continue_prediction", action="store_true",
                     help="leave out cases that are complete for the same images, model and settings")  # fmt: skip
    how.add_argument("-prev_stage_predictions", metavar="FOLDER", help="of a cascade's stage before")
    how.add_argument("-num_parts", type=int, default=1, metavar="N", help="commands that share the cases")
    how.add_argument("-part_id", type=int, default=0, metavar="K", help="this one, from 0")
    how.add_argument("-device", "--device", default="cuda", choices=("cpu", "cuda", "mps"), help="(default: cuda)")
    how.add_argument("--not_on_device", action="store_true", help="add logits up on the CPU, for large images")
    how.add_argument("--disable_progress_bar", action="store_true", help="for logs")
    how.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)
    for name in ("-npp", "-nps"):
        how.add_argument(name, type=int, metavar="N", help="is accepted and not needed: stages overlap in one process")
    ours = parser.add_argument_group("ours")
    ours.add_argument(
        "--precision",
        choices=("exact", "fast"),
        default="exact",
        help="exact: nnU-Net's labels; fast: without its rounding to float16 (default: %(default)s)",
    )
    ours.add_argument(
        "--backend",
        choices=("auto", "torch", "sparse", "openvino"),
        default="auto",
        help="what computes the network on a CPU; auto: E2ENet's sparse engine where it can, else torch",
    )
    ours.add_argument("--dicom-seg", action="store_true", help="of DICOM series: also write CASE.dcm, a DICOM SEG")
    ours.add_argument("--timing", type=Path, metavar="FILE", help="write seconds and memory of each stage as JSON")


def run(args: argparse.Namespace) -> int:
    """Predicts, and prints how long each stage took."""
    from nnunet_ext.prediction.command import predict

    return predict(args)
