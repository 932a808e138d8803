"""Preprocessed cases with what is true of them: whole, in the tiles of prediction, and slice by slice."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.utilities.label_handling.label_handling import LabelManager, convert_labelmap_to_one_hot
from torch import Tensor

from nnunet_ext.prediction.sliding_window import BATCH

STEP = 0.5  # between tiles, as in nnU-Net's prediction
Tile = tuple[Tensor, Tensor, Tensor]
Box = Sequence[tuple[int, int]]


def case_of(
    dataset: Any, name: str, labels: LabelManager, cascaded: bool = False, box: Box | None = None
) -> tuple[Tensor, Tensor]:
    """Image `[C, D, H, W]` and target `[T, D, H, W]` of a case in nnU-Net's preprocessed data set.

    The target is as in training: the labels, or the masks of the regions and then that of ignored pixels.

    Args:
        box: half-open bounds in voxels along D, H, W; what lies beyond the image is zero. None for all of it. Only
            what is in the box is read where nnU-Net's format allows.
    """
    image, segmentation, previous, _ = dataset.load_case(name)
    image, segmentation = _image_of(image, previous, labels, cascaded, box), _cut(segmentation, box)[:1]
    segmentation = np.where(segmentation < 0, 0, segmentation)  # outside of the nonzero mask
    if labels.has_regions:
        wanted = [*labels.foreground_regions, *([labels.ignore_label] if labels.has_ignore_label else [])]
        segmentation = np.concatenate([np.isin(segmentation, np.atleast_1d(values)) for values in wanted])
    return torch.from_numpy(image), torch.from_numpy(segmentation.astype(np.int16))


def _image_of(image: Any, previous: Any, labels: LabelManager, cascaded: bool, box: Box | None) -> np.ndarray:
    image = _cut(image, box)
    if not cascaded:
        return image
    return np.vstack((image, convert_labelmap_to_one_hot(_cut(previous, box), labels.foreground_labels, image.dtype)))


def _cut(stored: Any, box: Box | None) -> np.ndarray:
    return np.asarray(stored[:] if box is None else crop_and_pad_nd(stored, [list(bounds) for bounds in box]))


def tiles_of(image: Tensor, target: Tensor, patch_size: Sequence[int]) -> Iterator[Tile]:
    """The tiles that cover an image, as batches that a network takes.

    Args:
        image: `[C, D, H, W]`; `target`: `[T, D, H, W]`.
        patch_size: of a 3D network, one tile at a time; or of a 2D one, up to 16 slices at the same place.

    Yields:
        `[1, C, *patch]` (2D: `[B, C, *patch]`), its target, and which of its slices `[D]` (2D: `[B]`) lie in the image:
        it is padded with zeros where it is smaller than a tile, as nnU-Net does.
    """
    planar = len(patch_size) == 2
    depth = image.shape[1]
    sides = (1, *patch_size) if planar else tuple(patch_size)
    (image, before), (target, _) = _padded(image, sides), _padded(target, sides)
    steps = compute_steps_for_sliding_window(image.shape[2:], sides[1:], STEP)
    deep = range(0, depth, BATCH)
    if not planar:
        deep = compute_steps_for_sliding_window(image.shape[1:2], sides[:1], STEP)[0]
    for z in deep:
        rows = slice(z, min(z + BATCH, depth) if planar else z + sides[0])
        inside = torch.tensor([before <= k < before + depth for k in range(rows.start, rows.stop)])
        for y in steps[0]:
            for x in steps[1]:
                here = (slice(None), rows, slice(y, y + sides[1]), slice(x, x + sides[2]))
                pair = image[here], target[here]
                tile, true = (part.transpose(0, 1) if planar else part[None] for part in pair)
                yield tile.float(), true, inside


def _padded(volume: Tensor, sides: Sequence[int]) -> tuple[Tensor, int]:
    """The volume with zeros around it up to a tile's size, as nnU-Net pads, and how many slices came before it."""
    padded, inner = pad_nd_image(volume, sides, "constant", {"value": 0}, True, None)
    return padded, inner[1].start


def corners(shape: Sequence[int], size: Sequence[int]) -> list[list[int]]:
    """For each axis, where windows of `size` begin that cover `shape`: as few as can be, at equal distances.

    A window that is larger than the image lies around its middle, and begins before it.
    """
    pairs = list(zip(shape, size, strict=True))
    steps = compute_steps_for_sliding_window(tuple(map(max, pairs)), tuple(size), 1.0)
    return [
        [int(step) + min(0, whole - part) // 2 for step in axis]
        for axis, (whole, part) in zip(steps, pairs, strict=True)
    ]


class StoredSlices:
    """Slices of preprocessed cases, in windows that cover each slice.

    Args:
        dataset: nnU-Net's.
        size: H and W of a window; parts of it that lie outside of the image are zero.
        labels, cascaded: see `case_of`.
    """

    def __init__(self, dataset: Any, size: Sequence[int], labels: LabelManager, cascaded: bool = False) -> None:
        self.dataset, self.size, self.labels, self.cascaded = dataset, size, labels, cascaded
        self.names = sorted(dataset.identifiers)

    def _box(self, z: tuple[int, int], y: int, x: int) -> Box:
        return z, (y, y + self.size[0]), (x, x + self.size[1])

    def of_case(self, number: int) -> Iterator[Tile]:
        """All slices of a case, those with the same window together.

        Yields:
            Their places `[D, 4]` (number of the case, and where they begin along D, H, W), themselves `[D, C, H, W]`,
            and their target `[D, T, H, W]`.
        """
        depth, *plane = self.dataset.load_case(self.names[number])[0].shape[1:]
        rows, columns = corners(plane, self.size)
        for y in rows:
            for x in columns:
                places = torch.tensor([[number, z, y, x] for z in range(depth)])
                box = self._box((0, depth), y, x)
                image, target = case_of(self.dataset, self.names[number], self.labels, self.cascaded, box)
                yield places, image.float().transpose(0, 1), target.transpose(0, 1)

    def at(self, places: Tensor) -> Tensor:
        """The slices `[N, C, H, W]` at `places` `[N, 4]`."""
        slices = []
        for number, z, y, x in places.tolist():
            image, _, previous, _ = self.dataset.load_case(self.names[number])
            image = _image_of(image, previous, self.labels, self.cascaded, self._box((z, z + 1), y, x))
            slices.append(torch.from_numpy(image).float()[:, 0])
        return torch.stack(slices)
