"""A case's label map, and its probabilities where asked for, from rows of logits at the network's spacing.

What nnU-Net makes of all logits at once is made row by row where it interpolates linearly, as its plans do by default,
and by nnU-Net's own function where plans want something else.
"""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.prediction.model import Model
from nnunet_ext.resampling.grids import Grids
from nnunet_ext.resampling.label_rows import LabelRows, ProbabilityRows, axis_matrices
from nnunet_ext.resampling.separable import resample_separable


class CaseExport:
    """Takes the rows of a case's logits, then writes its files.

    Args:
        model: says spacing, labels and formats.
        shape: `[D, H, W]` of all the logits.
        properties: what nnU-Net's preprocessing returned with the case.
        scratch: an empty folder on the output's disk, for files that are not whole yet.
        probabilities: whether these are written too, as by nnU-Net's `--save_probabilities`.
        exact: False computes labels in float32, without nnU-Net's rounding of interpolated logits to float16.
    """

    def __init__(
        self,
        model: Model,
        shape: Sequence[int],
        properties: dict[str, Any],
        scratch: Path,
        probabilities: bool = False,
        exact: bool = True,
    ) -> None:
        self.model, self.properties, self.scratch = model, properties, scratch
        self.with_probabilities = probabilities
        self.labels: np.ndarray | None = None
        self.probabilities: np.ndarray | None = None
        self.kept: list[Tensor] = []  # all rows, where nnU-Net's own function is needed
        self.takers: list[LabelRows | ProbabilityRows] = []
        place = self._place(shape)
        if place is None:
            return
        box = tuple(slice(*side) for side in properties["bbox_used_for_cropping"])
        whole = tuple(properties["shape_before_cropping"])
        kind = np.uint8 if len(model.labels.foreground_labels) < 255 else np.uint16
        self.labels = np.zeros(whole, kind)
        regions = model.labels.regions_class_order if model.labels.has_regions else None
        self.takers.append(LabelRows(*place, self.labels[box], regions, exact))
        if probabilities:
            whole_box = (slice(None), *box)
            heads, turned = model.labels.num_segmentation_heads, model.plans.transpose_forward
            size = (heads, *(whole[axis] for axis in model.plans.transpose_backward))
            self.probabilities = np.lib.format.open_memmap(scratch / "probabilities.npy", "w+", np.float32, size)
            if not model.labels.has_regions:
                self.probabilities[0] = 1  # what was cropped off is background
            view = self.probabilities.transpose(0, *(axis + 1 for axis in turned))[whole_box]
            self.takers.append(ProbabilityRows(*place, view, model.labels.inference_nonlin))

    def _place(self, shape: Sequence[int]) -> tuple[Grids, int, int] | None:
        """Grids and orders of the interpolation; None where only nnU-Net's own function does what the plans want."""
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
        from nnunetv2.utilities.label_handling.label_handling import LabelManager

        model, function = self.model, self.model.configuration.resampling_fn_probabilities
        how = dict(function.keywords)
        order, order_z, is_seg = how.pop("order", 3), how.pop("order_z", 0), how.pop("is_seg", False)
        known = function.func in (resample_data_or_seg_to_shape, resample_separable)
        if not known or is_seg or type(model.labels) is not LabelManager:
            return None
        sizes = self.properties["shape_after_cropping_and_before_resampling"]
        spacing = [self.properties["spacing"][axis] for axis in model.plans.transpose_forward]
        current = list(model.configuration.spacing)
        if len(current) < len(sizes):
            current = [spacing[0], *current]
        grids = Grids.of(shape, sizes, current, spacing, **how)
        return None if axis_matrices(grids, order, order_z) is None else (grids, order, order_z)

    def add(self, logits: Tensor) -> None:
        """The next rows `[K, k, H, W]` along the first axis, float16, on the CPU."""
        if not self.takers:
            self.kept.append(logits)
        for taker in self.takers:
            taker.add(logits)

    def finish(self) -> None:
        """After the last rows: nothing is left to compute afterwards."""
        from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

        if self.takers:
            assert self.labels is not None and all(taker.complete for taker in self.takers)
            self.labels = self.labels.transpose(self.model.plans.transpose_backward)
            return
        logits, self.kept = torch.cat(self.kept, 1), []
        made = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits.numpy(), self.model.plans, self.model.configuration, self.model.labels, self.properties,
            self.with_probabilities, torch.get_num_threads(),
        )  # fmt: skip
        self.labels = made
        if self.with_probabilities:
            self.labels, probabilities = made
            np.save(self.scratch / "probabilities.npy", probabilities)

    def write(self, output: Path) -> list[Path]:
        """Writes the files of the case, whose name without ending is `output`, each whole or not at all.

        Returns:
            The files, of which the label map is the last.

        Raises:
            OSError: the disk is full, or the folder may not be written.
        """
        from batchgenerators.utilities.file_and_folder_operations import save_pickle

        assert self.labels is not None
        made = []
        if self.with_probabilities:
            archive = self.scratch / "probabilities.npz"
            if isinstance(self.probabilities, np.memmap):
                self.probabilities.flush()
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
                file.write(self.scratch / "probabilities.npy", "probabilities.npy")
            (self.scratch / "probabilities.npy").unlink()
            save_pickle(self.properties, str(self.scratch / "properties.pkl"))
            made += [(archive, ".npz"), (self.scratch / "properties.pkl", ".pkl")]
        whole = self.scratch / f"labels{self.model.ending}"
        self.model.plans.image_reader_writer_class().write_seg(self.labels, str(whole), self.properties)
        made.append((whole, self.model.ending))
        written = []
        for path, ending in made:
            _flush(path)
            written.append(output.with_name(output.name + ending))
            os.replace(path, written[-1])
        return written


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
