"""The exported model against its source: each fold's logits on a random patch, label maps of real cases."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.layers.unwrap import unwrap
from nnunet_ext.prediction.graph import apart


def loaded(folder: Path, folds: Sequence[str], checkpoint: str) -> Any:
    """nnU-Net's predictor on the CPU with these folds. The checkpoints must have been read by `read_checkpoint` before:

    nnU-Net unpickles what they hold.

    Raises:
        ConfigurationError: nnU-Net cannot load them; what it says.
    """
    from nnunet_ext.discovery.startup import install

    install()
    with _without_chatter():
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        device = torch.device("cpu")
        predictor = nnUNetPredictor(perform_everything_on_device=False, device=device, allow_tqdm=False)
        try:
            predictor.initialize_from_trained_model_folder(
                str(folder), tuple(fold if fold == "all" else int(fold) for fold in folds), checkpoint
            )
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"nnU-Net cannot load the model in {folder}: {error}") from error
    return predictor


def network_and_patch(predictor: Any) -> tuple[nn.Module, Tensor]:
    """The first fold's network in evaluation, and a random image `[1, C, *patch]`, always the same."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    configuration = predictor.configuration_manager
    channels = determine_num_input_channels(predictor.plans_manager, configuration, predictor.dataset_json)
    x = torch.randn(1, channels, *configuration.patch_size, generator=torch.Generator().manual_seed(0))
    return unwrap(predictor.network).eval(), x


def compare_patches(before: Path, after: Path, folds: Sequence[str], checkpoint: str, exact: bool) -> list[dict]:
    """Of each fold: how far the logits of the two folders' networks are apart (`prediction.graph.agreement`).

    Raises:
        ConfigurationError: they are not the same bit for bit where `exact`, or not finite.
    """
    found = []
    for fold in folds:
        logits = []
        for folder in (before, after):
            network, x = network_and_patch(loaded(folder, [fold], checkpoint))
            with torch.no_grad(), _without_chatter():
                logits.append(network(x).clone())
        if exact and not torch.equal(*logits):
            raise ConfigurationError(
                f"The exported network of fold {fold} gives other logits than its source on a random patch: they "
                f"differ by up to {apart(*logits)['largest logit difference']:.3g}. Nothing was written."
            )
        if not logits[1].isfinite().all():
            raise ConfigurationError(
                f"The logits of fold {fold} are not finite on a random patch; such a model predicts nothing."
            )
        found.append(apart(*logits))
    return found


def find_cases(folder: Path, dataset_json: dict[str, Any]) -> list[list[str]]:
    """The files of each case in a folder of images, as nnU-Net's commands find them.

    Raises:
        ConfigurationError: there is no such folder, no case, or a case without a channel.
    """
    from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

    ending = dataset_json["file_ending"]
    if not folder.is_dir():
        raise ConfigurationError(f"There is no folder {folder} with images.")
    cases = create_lists_from_splitted_dataset_folder(str(folder), ending, num_processes=1)
    if not cases:
        raise ConfigurationError(f"{folder} holds no images as the model reads them, CASE_0000{ending}.")
    channels = len(dataset_json["channel_names"])
    for case in cases:
        if len(case) != channels:
            raise ConfigurationError(
                f"The model has {channels} channels, {Path(case[0]).name} is one of {len(case)} files of its case."
            )
    return cases


def compare_label_maps(
    before: Path, after: Path, folds: Sequence[str], checkpoint: str, cases: list[list[str]], exact: bool
) -> list[dict[str, float]]:
    """Of each case: how far the label maps `[D, H, W]` are apart that nnU-Net's predictor makes with both folders.

    "share of equal voxels", and "share of the foreground that differs" of the voxels that are foreground in one.

    Raises:
        ConfigurationError: they differ where `exact`, or a case cannot be predicted.
    """
    maps = []
    for folder in (before, after):
        predictor = loaded(folder, folds, checkpoint)
        with _without_chatter():
            try:
                maps.append(predictor.predict_from_files_sequential(cases, None))
            except Exception as error:  # whatever nnU-Net or a reader of images says
                raise ConfigurationError(f"The images of --check cannot be predicted: {error}") from error
    found = []
    for number, (one, two) in enumerate(zip(*maps, strict=True)):
        differs, foreground = np.count_nonzero(one != two), np.count_nonzero((one != 0) | (two != 0))
        if exact and differs:
            raise ConfigurationError(
                f"The exported model labels {differs} of {one.size} voxels of {Path(cases[number][0]).name} otherwise "
                f"than its source. Nothing was written."
            )
        found.append(
            {
                "share of equal voxels": 1 - differs / one.size,
                "share of the foreground that differs": differs / foreground if foreground else 0.0,
            }
        )
    return found


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Without what nnU-Net prints; errors and warnings stay."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
