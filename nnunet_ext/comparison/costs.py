"""What each model costs: parameters, FLOPs of a patch, stored size, and seconds a case where they were measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.comparison.models import Model
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json


@dataclass(frozen=True)
class Costs:
    """Of one model; NaN and empty where nobody knows.

    Attributes:
        parameters: active ones.
        gflops: 1e9 FLOPs of one pass over `patch_size`, two per multiply-add, as computed (the convention "true").
        patch_size: voxels.
        checkpoint_mb: 1e6 bytes of a fold's final checkpoint, the largest, as nnU-Net stores it.
        seconds: wall clock of prediction over cases.
        remark: why something is not known.
    """

    parameters: float = math.nan
    gflops: float = math.nan
    patch_size: tuple[int, ...] = ()
    checkpoint_mb: float = math.nan
    seconds: float = math.nan
    remark: str = ""

    @property
    def gflops_per_million_voxels(self) -> float:
        """GFLOPs of a pass, by the voxels that it sees: models have patches of their own."""
        return 1e6 * self.gflops / math.prod(self.patch_size) if self.patch_size else math.nan


def costs_of(model: Model, timings: list[Path] | None = None) -> Costs:
    """As the training recorded them; counted on the network of the plans where it did not, as nnU-Net's trainers.

    Args:
        model: whose.
        timings: files of `nnunet_ext predict --timing`, of the parts of one prediction.

    Raises:
        ConfigurationError: a file of these is none.
    """
    from nnunet_ext.costs.describe import stored_size

    seconds = _seconds(timings) if timings else math.nan
    report, remark = _report(model)
    stored = stored_size(report or {}, [fold.folder for fold in model.folder.folds])
    checkpoint = stored.get("checkpoint_mb") or math.nan
    if report is None:
        return Costs(checkpoint_mb=checkpoint, seconds=seconds, remark=remark)
    return Costs(
        parameters=report["parameters"]["active"],
        gflops=report["true"]["gflops"],
        patch_size=tuple(report["patch_size"]),
        checkpoint_mb=checkpoint,
        seconds=seconds,
    )


def _report(model: Model) -> tuple[Mapping[str, Any] | None, str]:
    from nnunet_ext.costs.describe import describe

    folder = model.folder
    recorded = next((fold.complexity for fold in folder.folds if fold.complexity and "true" in fold.complexity), None)
    if recorded is not None:
        return recorded, ""
    try:
        described = describe(
            folder.plans, folder.dataset_json, folder.configuration, measure=True, trainer=folder.trainer
        )
    except Exception as error:  # whatever a network of unknown plans raises when it is built costs these numbers alone
        return None, f"the network of its plans cannot be built here ({type(error).__name__}: {error})"
    return (described, "") if "true" in described else (None, "its trainer recorded no cost")


def _seconds(paths: list[Path]) -> float:
    seconds, cases = 0.0, 0
    for path in paths:
        try:
            content = read_json(path)
            seconds += float(content["seconds"])
            cases += len(content["cases"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} is no file of 'nnunet_ext predict --timing' ({type(error).__name__}: {error})."
            ) from error
    return seconds / cases if cases else math.nan
