"""nnU-Net's preprocessing of one case for prediction, with its slow steps replaced by equal ones.

The preprocessor is the plans' own. What it calls is replaced: resampling of images (`resample_separable`), cropping
(one pass over the mask), and the resampling of the mask of nonzero voxels, which prediction throws away.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor

from nnunet_ext.prediction.images import check_whole
from nnunet_ext.prediction.model import Model
from nnunet_ext.prediction.timing import Timing
from nnunet_ext.resampling.separable import resample_separable


def preprocess(model: Model, images: Sequence[str], previous: str | None, timing: Timing) -> tuple[Tensor, dict]:
    """Reads and preprocesses a case: `[C, D, H, W]` float32 on the CPU, and nnU-Net's properties of it.

    Args:
        model: whose plans say how.
        images: the file of each channel.
        previous: the label map of the cascade's stage before; its one-hot form is added to the channels.
        timing: gets the seconds of reading, cropping, normalisation and resampling.

    Raises:
        ConfigurationError: a file is cut off.
        Exception: whatever the reader raises for a file that it cannot read.
    """
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

    preprocessor = model.configuration.preprocessor_class(verbose=False)
    reader = model.plans.image_reader_writer_class()
    with timing.stage("read"):
        for path in (*images, *([] if previous is None else [previous])):
            check_whole(Path(path))
        data, properties = reader.read_images(list(images))
        segmentation = None if previous is None else reader.read_seg(previous)[0]
    configuration = model.configuration
    if type(preprocessor) is DefaultPreprocessor:
        configuration = _faster(configuration, timing, previous is None)
        with _faster_parts(timing):
            data, segmentation, properties = preprocessor.run_case_npy(
                data, segmentation, properties, model.plans, configuration, model.dataset
            )
    else:
        with timing.stage("resample"):
            data, segmentation, properties = preprocessor.run_case_npy(
                data, segmentation, properties, model.plans, configuration, model.dataset
            )
    if previous is not None:
        one_hot = convert_labelmap_to_one_hot(segmentation[0], model.labels.foreground_labels, data.dtype)
        data = np.vstack((data, one_hot))
    return torch.from_numpy(data).to(dtype=torch.float32, memory_format=torch.contiguous_format), properties


def crop_to_nonzero(
    data: np.ndarray, seg: np.ndarray | None = None, nonzero_label: int = -1
) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """What nnU-Net's function of this name returns, `data [C, *size]`; holes are filled inside the bounding box only.

    Filling holes never moves the bounding box, and what is outside of it belongs to the outside.
    """
    from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask

    mask = data[0] != 0
    for channel in data[1:]:
        mask |= channel != 0
    box = get_bbox_from_mask(mask)
    where = bounding_box_to_slice(box)
    mask = without_holes(mask[where])[None]
    where = (slice(None), *where)
    data = data[where]
    if seg is None:
        return data, np.where(mask, np.int8(0), np.int8(nonzero_label)), box
    seg = seg[where]
    seg[(seg == 0) & ~mask] = nonzero_label
    return data, seg, box


FEW = 0.05  # share of voxels outside of a mask up to which they are followed one by one from the border


def without_holes(mask: np.ndarray) -> np.ndarray:
    """`scipy.ndimage.binary_fill_holes`: what is not connected to the border by the faces of voxels is filled.

    Background around the body is labelled as a whole; voxels of zero HU that are scattered in a CT are followed from
    the border, which few of them reach.
    """
    if np.count_nonzero(mask) >= (1 - FEW) * mask.size:
        result = np.ones_like(mask)
        result[tuple(_outside(mask).T)] = False
        return result
    numbered, count = label(~mask)
    outside = np.zeros(count + 1, bool)
    for axis in range(mask.ndim):
        for side in (0, -1):
            outside[numbered.take(side, axis)] = True
    outside[0] = False
    return ~outside[numbered]


def _outside(mask: np.ndarray) -> np.ndarray:
    """The voxels `[n, axes]` outside of the mask that are connected to the border."""
    found = [np.zeros((0, mask.ndim), int)]
    for axis in range(mask.ndim):
        for side in (0, mask.shape[axis] - 1):
            face = np.argwhere(~mask.take(side, axis))
            found.append(np.insert(face, axis, side, axis=1))
    reached = np.unique(np.concatenate(found), axis=0)
    outside = known = reached
    steps = np.concatenate([np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)])
    while len(reached):
        near = np.unique((reached[:, None] + steps).reshape(-1, mask.ndim), axis=0)
        near = near[((near >= 0) & (near < mask.shape)).all(1)]
        near = near[~mask[tuple(near.T)]]
        number = [np.ravel_multi_index(tuple(voxels.T), mask.shape) for voxels in (near, known)]
        known, reached = reached, near[~np.isin(*number)]
        known = np.concatenate([known, reached])  # a neighbour is of this step or of the one before
        outside = np.concatenate([outside, reached])
    return outside


def _faster(configuration: Any, timing: Timing, without_labels: bool) -> Any:
    """nnU-Net's configuration with our resampling in the place of its own; other functions stay."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    def ours(function: functools.partial) -> Callable[..., Any]:
        if function.func is resample_data_or_seg_to_shape:
            function = functools.partial(resample_separable, **function.keywords)

        def timed(*args: Any) -> Any:
            with timing.stage("resample"):
                return function(*args)

        return timed

    class Configuration(ConfigurationManager):
        resampling_fn_data = property(lambda self: ours(configuration.resampling_fn_data))
        resampling_fn_seg = property(lambda self: _nothing if without_labels else ours(configuration.resampling_fn_seg))

    return Configuration(configuration.configuration)


def _nothing(segmentation: np.ndarray, *_: Any) -> np.ndarray:
    return segmentation[:, :1, :1, :1]


_lock = threading.Lock()


@contextmanager
def _faster_parts(timing: Timing) -> Iterator[None]:
    """Within it, nnU-Net's preprocessor crops by our function; its normalisation is timed."""
    from nnunetv2.preprocessing.preprocessors import default_preprocessor as module

    crop, normalize = module.crop_to_nonzero, module.DefaultPreprocessor._normalize

    def timed_crop(*args: Any, **kwargs: Any) -> Any:
        with timing.stage("crop"):
            return crop_to_nonzero(*args, **kwargs)

    def timed_normalize(*args: Any, **kwargs: Any) -> Any:
        with timing.stage("normalise"):
            return normalize(*args, **kwargs)

    with _lock:
        module.crop_to_nonzero, module.DefaultPreprocessor._normalize = timed_crop, timed_normalize
        try:
            yield
        finally:
            module.crop_to_nonzero, module.DefaultPreprocessor._normalize = crop, normalize
