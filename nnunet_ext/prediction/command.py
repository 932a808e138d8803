"""The body of `nnunet_ext predict`: what is asked for is checked, then predicted."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.dicom.extra import check_installed
from nnunet_ext.dicom.series import Found
from nnunet_ext.dicom.slices import holds_dicom
from nnunet_ext.discovery.devices import cpu_threads
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_json


def predict(args: argparse.Namespace) -> int:
    """Predicts the images of a folder; `args` are those of `nnunet_ext.cli.predict`.

    Returns:
        The exit code: 0 where every case has its files, else 1.

    Raises:
        ConfigurationError: images or model are not there, or torch does not find the device; nothing was written.
    """
    folds = tuple(fold if fold == "all" else _number(fold) for fold in args.f)
    check(args, folds)
    import torch

    from nnunet_ext.prediction.dicom import describe, dicom_segments, write_table
    from nnunet_ext.prediction.memory import keep_freed_memory
    from nnunet_ext.prediction.model import check_model, load_model
    from nnunet_ext.prediction.pipeline import How, Predictor, predict_cases
    from nnunet_ext.prediction.records import Records, describe_source
    from nnunet_ext.prediction.timing import Timing

    folder = _model_folder(args)
    checkpoints = check_model(folder, folds, args.chk)
    torch.set_num_threads(1 if args.device == "cuda" else cpu_threads())  # on a GPU more do not help
    torch.backends.cudnn.benchmark = args.device == "cuda"
    if args.device == "cpu":
        keep_freed_memory()
    model = load_model(folder, folds, args.chk)
    how = How(
        device=torch.device(args.device),
        step_size=args.step_size,
        mirroring=not args.disable_tta,
        on_device=not args.not_on_device,
        probabilities=args.save_probabilities,
        exact=args.precision == "exact",
        progress=not args.disable_progress_bar,
        backend=args.backend,
        segments=dicom_segments(model) if args.dicom_seg else None,
    )
    found = _find_series(model, args)
    cases, faults = (find_cases(model, args), {}) if found is None else cases_of_series(found, model, args)
    predictor = Predictor(model, how)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    if found is not None:
        write_table(found, output)
        print(describe(found, model))
    settings = {"step_size": how.step_size, "mirroring": how.mirroring, "precision": args.precision,
                "probabilities": how.probabilities, "device": args.device, "backend": args.backend}  # fmt: skip
    sources = [folder / "plans.json", *checkpoints]
    if args.dicom_seg:
        sources.append(folder / "dataset.json")  # names the segments
    records = Records(output, describe_source(sources, settings))
    records.clear()
    # as nnU-Net does: its ensembling and postprocessing read them
    write_json(output / "dataset.json", model.dataset)
    write_json(output / "plans.json", model.plans.plans)
    given = {name: value if isinstance(value, (int, float, list)) else str(value) for name, value in vars(args).items()}
    write_json(output / "predict_from_raw_data_args.json", {k: v for k, v in given.items() if k != "run"})
    for name, fault in faults.items():
        print(f"nnunet_ext: {name} failed: {fault}")
    left = cases
    if args.continue_prediction:
        left = [case for case in cases if not records.is_done(case.name, case.files)]
        print(f"{len(cases) - len(left)} of {len(cases)} cases are done already.")
    with Timing() as timing:
        failed = predict_cases(predictor, left, records, timing)
    if left:
        print(timing.table())
    if args.timing is not None:
        write_json(args.timing, timing.report())
    failed = {**faults, **failed}
    if failed:
        print(f"{len(failed)} of {len(left) + len(faults)} cases failed: {', '.join(failed)}.")
    return 1 if failed else 0


def check(args: argparse.Namespace, folds: Sequence[Any]) -> None:
    """Refuses what would be found out late.

    Raises:
        ConfigurationError: in a sentence what is wrong.
    """
    from nnunet_ext.prediction.backends import check_backend
    from nnunet_ext.prediction.model import check_model

    if not 0 <= args.part_id < args.num_parts:
        raise ConfigurationError(f"-part_id must be from 0 to -num_parts - 1, found {args.part_id}.")
    if not 0 < args.step_size <= 1:
        raise ConfigurationError(f"-step_size must be above 0 and at most 1, found {args.step_size}.")
    if not Path(args.i).is_dir():
        raise ConfigurationError(f"There is no folder {args.i} with images.")
    if args.prev_stage_predictions is not None and not Path(args.prev_stage_predictions).is_dir():
        raise ConfigurationError(f"There is no folder {args.prev_stage_predictions} with predictions.")
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise ConfigurationError(f"{args.output} is not a folder. Choose another one with -o.")
    existing = next(place for place in (output, *output.absolute().parents) if place.exists())
    if not os.access(existing, os.W_OK):
        raise ConfigurationError(f"You may not write into {existing}. Choose another folder with -o.")
    if args.timing is not None and not args.timing.absolute().parent.is_dir():
        raise ConfigurationError(f"There is no folder for {args.timing}.")
    if args.dicom_seg:
        check_installed("--dicom-seg")
        if not holds_dicom(Path(args.i)):
            raise ConfigurationError(
                f"--dicom-seg is for DICOM series, and {args.i} holds no DICOM file. Leave it out."
            )
    check_model(_model_folder(args), folds, args.chk)
    _check_device(args.device)
    check_backend(args.backend, args.device)


def find_cases(model: Any, args: argparse.Namespace) -> list[Any]:
    """The cases of this part, as nnU-Net finds them in the folder.

    Raises:
        ConfigurationError: there is none, a channel or a prediction of the stage before is missing.
    """
    from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder

    from nnunet_ext.prediction.pipeline import Case

    ending, channels = model.ending, len(model.channel_names)
    names = _images_of(model, args)
    identifiers = get_identifiers_from_splitted_dataset_folder(str(args.i), ending)
    found = [create_paths_fn(str(args.i), names, ending, identifier) for identifier in identifiers]
    if not found:
        raise ConfigurationError(
            f"{args.i} holds no image that ends in _0000{ending}, as this model's images do, and no DICOM file."
        )
    cases = []
    for files in found[args.part_id :: args.num_parts]:
        name = os.path.basename(files[0])[: -(len(ending) + 5)]
        if len(files) != channels:
            raise ConfigurationError(
                f"{args.i} has {len(files)} of {channels} channels of the case {name}: expected {name}_0000{ending} to "
                f"{name}_{channels - 1:04d}{ending}."
            )
        cases.append(Case(name, tuple(map(Path, files)), _stage_before(model, args, name)))
    return cases


def cases_of_series(found: Found, model: Any, args: argparse.Namespace) -> tuple[list[Any], dict[str, str]]:
    """The cases of this part, one a DICOM series; and what is wrong with others of this part, by name.

    Raises:
        ConfigurationError: a prediction of the stage before is missing.
    """
    from nnunet_ext.prediction.pipeline import Case

    names = sorted([*found.series, *found.faults])[args.part_id :: args.num_parts]
    cases = [
        Case(name, found.series[name].files, _stage_before(model, args, name), found.series[name])
        for name in names
        if name in found.series
    ]
    return cases, {name: found.faults[name] for name in names if name in found.faults}


def _find_series(model: Any, args: argparse.Namespace) -> Found | None:
    """The DICOM series of the input; None where it holds images of the model's format, or no DICOM file."""
    from nnunet_ext.prediction.dicom import find_dicom

    if not holds_dicom(Path(args.i)):
        return None
    if not _images_of(model, args):
        return find_dicom(model, Path(args.i), args.dicom_seg)
    if args.dicom_seg:
        raise ConfigurationError(
            f"{args.i} holds images that end in {model.ending} and DICOM files: --dicom-seg is for the latter alone."
        )
    print(f"{args.i} holds images that end in {model.ending}, which are predicted; DICOM files there are not.")
    return None


def _images_of(model: Any, args: argparse.Namespace) -> list[str]:
    return sorted(path.name for path in Path(args.i).iterdir() if path.name.endswith(model.ending))


def _stage_before(model: Any, args: argparse.Namespace, name: str) -> Path | None:
    """The label map from which a cascade goes on with a case; None for other models."""
    before = model.configuration.previous_stage_name
    if before is None:
        return None
    if args.prev_stage_predictions is None:
        raise ConfigurationError(
            f"This model continues from predictions of {before}. Give their folder with -prev_stage_predictions."
        )
    previous = Path(args.prev_stage_predictions) / f"{name}{model.ending}"
    if not previous.is_file():
        raise ConfigurationError(f"There is no {previous}, the prediction of {before} for the case {name}.")
    return previous


def _number(fold: str) -> int:
    try:
        return int(fold)
    except ValueError:
        raise ConfigurationError(f"-f takes numbers of folds, or all; found {fold}.") from None


def _model_folder(args: argparse.Namespace) -> Path:
    if args.m is not None:
        if args.d is not None or args.c is not None:
            raise ConfigurationError("Give the model either as a folder with -m, or with -d, -c, -tr and -p.")
        return Path(args.m)
    if args.d is None or args.c is None:
        raise ConfigurationError("Give the model as a folder with -m, or with -d and -c (and -tr, -p).")
    if not os.environ.get("nnUNet_results"):
        raise ConfigurationError(
            "The environment variable nnUNet_results is not set; it says where trained models are."
        )
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    try:
        return Path(get_output_folder(args.d, args.tr, args.p, args.c))
    except RuntimeError as error:
        raise ConfigurationError(f"There is no data set {args.d}: {error}") from error


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("torch finds no CUDA GPU, on which nnU-Net predicts by default. Use -device cpu.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError("torch finds no Apple GPU (mps). Use -device cpu.")
