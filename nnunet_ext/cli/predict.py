"""`nnunet_ext predict`: `nnUNetv2_predict` with batches of slices in 2d configurations."""

import argparse
import os
from pathlib import Path
from typing import Any

from nnunet_ext.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnUNetv2_predict`, with its defaults."""
    parser.add_argument("-i", required=True, metavar="FOLDER", help="images, with nnU-Net's channel numbers (_0000)")
    parser.add_argument("-o", required=True, metavar="FOLDER", help="where the segmentations go")
    parser.add_argument("-d", required=True, metavar="DATASET", help="name or number of the data set")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
    parser.add_argument("-tr", default="nnUNetTrainer", metavar="TRAINER", help="default: %(default)s")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="for example 2d or 3d_fullres")
    parser.add_argument("-f", nargs="+", default=(0, 1, 2, 3, 4), metavar="FOLD", help="default: 0 1 2 3 4")
    parser.add_argument("-step_size", type=float, default=0.5, help="of tiles, as a share (default: %(default)s)")
    parser.add_argument("--disable_tta", action="store_true", help="no mirrored passes")
    parser.add_argument("--verbose", action="store_true", help="say more")
    parser.add_argument("--save_probabilities", action="store_true", help="write probabilities too, for ensembles")
    parser.add_argument("--continue_prediction", action="store_true", help="keep the segmentations that are there")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: %(default)s")
    parser.add_argument("-npp", type=int, default=_number("nnUNet_npp"), help="processes that preprocess (%(default)s)")
    parser.add_argument("-nps", type=int, default=_number("nnUNet_nps"), help="processes that export (%(default)s)")
    parser.add_argument("-prev_stage_predictions", metavar="FOLDER", help="of the previous stage, for a cascade")
    parser.add_argument("-num_parts", type=int, default=1, help="calls that share the work (default: %(default)s)")
    parser.add_argument("-part_id", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: %(default)s")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress bar")
    parser.add_argument("--not_on_device", action="store_true", help="keep results in the computer's memory")


def run(args: argparse.Namespace) -> int:
    """Predicts all images of a folder."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    from nnunet_ext.prediction.batching import BatchedTiles

    class Predictor(BatchedTiles, nnUNetPredictor):
        pass

    if not 0 <= args.part_id < args.num_parts:
        raise ConfigurationError(f"-part_id must be from 0 to -num_parts - 1, found {args.part_id}.")
    if not Path(args.i).is_dir():
        raise ConfigurationError(f"There is no folder {args.i} with images.")
    if not os.environ.get("nnUNet_results"):
        raise ConfigurationError(
            "The environment variable nnUNet_results is not set; it says where trained models are."
        )
    model = Path(get_output_folder(args.d, args.tr, args.p, args.c))
    folds = [int(fold) if str(fold).isdigit() else fold for fold in args.f]
    for fold in folds:
        if not (model / f"fold_{fold}" / args.chk).is_file():
            raise ConfigurationError(
                f"{model} has no fold_{fold}/{args.chk}. Choose with -d, -tr, -p, -c, -f and -chk."
            )
    threads = (os.cpu_count() or 1) if args.device == "cpu" else 1  # as nnUNetv2_predict
    if args.device != "mps":
        torch.set_num_threads(threads)
    Path(args.o).mkdir(parents=True, exist_ok=True)
    predictor = Predictor(
        tile_step_size=args.step_size,
        use_mirroring=not args.disable_tta,
        perform_everything_on_device=not args.not_on_device,
        device=torch.device(args.device),
        verbose=args.verbose,
        verbose_preprocessing=args.verbose,
        allow_tqdm=not args.disable_progress_bar,
    )
    predictor.initialize_from_trained_model_folder(str(model), folds, checkpoint_name=args.chk)
    common: dict[str, Any] = {
        "save_probabilities": args.save_probabilities,
        "overwrite": not args.continue_prediction,
        "folder_with_segs_from_prev_stage": args.prev_stage_predictions,
    }
    if args.npp == 0 and args.nps == 0:
        predictor.predict_from_files_sequential(args.i, args.o, **common)
    else:
        predictor.predict_from_files(
            args.i,
            args.o,
            **common,
            num_processes_preprocessing=args.npp,
            num_processes_segmentation_export=args.nps,
            num_parts=args.num_parts,
            part_id=args.part_id,
        )
    return 0


def _number(variable: str) -> int:
    return int(os.environ.get(variable, 3))
