"""`resample_separable`: nnU-Net's resampling function, several times faster and equal to it.

Plans name it (`resampling_fn_data`, `resampling_fn_seg`, `resampling_fn_probabilities`); nnU-Net's commands find it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.ndimage import find_objects
from torch import Tensor

from nnunet_ext.resampling.grids import Grids
from nnunet_ext.resampling.matrices import apply_matrices, reach

TIE = 1e-9  # differences of two indicators that rounding alone could have made


def resample_separable(
    data: np.ndarray | Tensor,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    is_seg: bool = False,
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float | None = None,
) -> np.ndarray:
    """`data [C, D, H, W]` on the grid `new_shape [D', H', W']`, as nnU-Net's `resample_data_or_seg_to_shape` makes it.

    Images in float32 are computed in float32, with a largest difference to nnU-Net's float64 of 1e-6 of their range;
    all else in float64, so that the results differ in the last bit at most. A volume with NaN or infinite values is
    left to nnU-Net's function. Of a label map the label with the largest interpolated indicator wins; where two are
    equal (to 1e-9) the nearest voxel's label if it is one of them, else the smallest.

    Args:
        data: image, label map or probabilities; an array, or a tensor on the CPU.
        new_shape: voxels, in the array's order, as are both spacings in mm.
        current_spacing: decides with `new_spacing` whether an axis of thick slices is taken by itself.
        new_spacing: of the result.
        is_seg: whether the values are labels.
        order: of the spline, 0 to 5.
        order_z: of the spline along an axis that is taken by itself.
        force_separate_z: True, False, or None for nnU-Net's rule.
        separate_z_anisotropy_threshold: of nnU-Net's rule; None is nnU-Net's default.
    """
    array = data.numpy() if isinstance(data, Tensor) else data
    if array.ndim != 4 or len(new_shape) != 3:
        raise ValueError(f"Expected data [C, D, H, W] and three sizes, found {array.shape} and {list(new_shape)}.")
    where = (current_spacing, new_spacing, force_separate_z, separate_z_anisotropy_threshold)
    grids = Grids.of(array.shape[1:], new_shape, *where)
    if grids.equal:
        return array
    result = np.empty((len(array), *grids.new_shape), array.dtype)
    for volume, out in zip(array, result, strict=True):
        out[...] = _labels(volume, grids, order, order_z) if is_seg else _image(volume, grids, order, order_z)
    return result


def _image(volume: np.ndarray, grids: Grids, order: int, order_z: int) -> np.ndarray:
    """One channel, clipped to its range, or each slice to its own where slices are resized by themselves."""
    apart = tuple(axis for axis in range(3) if axis != grids.thick)
    low, high = volume.min(apart, keepdims=True), volume.max(apart, keepdims=True)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return _stock(volume, grids, order, order_z)
    dtype = torch.float32 if volume.dtype == np.float32 else torch.float64
    x = apply_matrices(volume, grids.in_plane(order), dtype)
    np.clip(x.numpy(), low, high, out=x.numpy())
    return (x if grids.thick is None else _through_plane(x, grids, order_z)).numpy()


def _stock(volume: np.ndarray, grids: Grids, order: int, order_z: int) -> np.ndarray:
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg

    separate = grids.thick is not None
    return resample_data_or_seg(
        volume[None].astype(np.float64), grids.new_shape, False, grids.thick, order, separate, order_z=order_z
    )[0]


def _through_plane(x: Tensor, grids: Grids, order_z: int) -> Tensor:
    assert grids.thick is not None
    if grids.shape[grids.thick] == grids.new_shape[grids.thick]:
        return x
    matrices = [np.eye(n) for n in x.shape]
    matrices[grids.thick] = grids.through_plane(order_z)
    return apply_matrices(x, matrices, x.dtype)


def _labels(volume: np.ndarray, grids: Grids, order: int, order_z: int) -> np.ndarray:
    labels = resize_labels(volume, grids.in_plane(order), grids.in_plane(0), order)
    if grids.thick is None or grids.shape[grids.thick] == grids.new_shape[grids.thick]:
        return labels
    matrix = grids.through_plane(order_z)
    if order_z == 0:
        return labels.take(matrix.argmax(1), grids.thick)
    matrices = [np.eye(n) for n in labels.shape]
    matrices[grids.thick] = matrix
    result = np.zeros(grids.new_shape, volume.dtype)
    for label, region, score in scores(labels, matrices):  # nnU-Net's rule here: what is above one half, the last one
        result[region][np.round(score) > 0.5] = label
    return result


def resize_labels(
    volume: np.ndarray, matrices: Sequence[np.ndarray], nearest: Sequence[np.ndarray], order: int
) -> np.ndarray:
    """The label with the largest interpolated indicator; each is interpolated where it can reach only.

    `nearest`: the matrices of order 0, which settle what is equal.
    """
    closest = volume[np.ix_(*(matrix.argmax(1) for matrix in nearest))]
    if order == 0:
        return closest
    result = closest.copy()
    best = np.zeros(closest.shape)
    is_closest = np.zeros(closest.shape, bool)  # whether the nearest voxel's label is among the best so far
    for label, region, score in scores(volume, matrices):
        if order > 1:
            np.clip(score, 0, 1, out=score)
        top, here = best[region], closest[region] == label
        more, level = score > top + TIE, np.abs(score - top) <= TIE
        level &= score > TIE
        result[region][more] = label
        is_closest[region] = np.where(more, here, is_closest[region] | (level & here))
        np.maximum(top, score, out=top)
    np.copyto(result, closest, where=is_closest)
    return result


def scores(
    volume: np.ndarray, matrices: Sequence[np.ndarray]
) -> Iterator[tuple[int | float, tuple[slice, ...], np.ndarray]]:
    """Each label in ascending order with the region of the result that it reaches, and its indicator there, float64."""
    values = _values(volume)
    if len(values) == 1:
        yield values[0], tuple(slice(0, len(m)) for m in matrices), np.ones([len(m) for m in matrices])
        return
    numbered = np.searchsorted(values, volume).astype(np.int32) + 1
    for number, box in enumerate(find_objects(numbered)):
        inside = numbered[box] == number + 1
        region, parts = [], []
        for matrix, side in zip(matrices, box, strict=True):
            first, last = reach(matrix[:, side].T, 0, side.stop - side.start)
            region.append(slice(first, last))
            parts.append(np.ascontiguousarray(matrix[first:last, side]))
        yield values[number], tuple(region), apply_matrices(inside, parts).numpy()


def _values(volume: np.ndarray) -> np.ndarray:
    """The different values, ascending; of whole numbers without sorting the volume."""
    if volume.dtype.kind not in "iu":
        return np.unique(volume)
    low, high = int(volume.min()), int(volume.max())
    if high - low > 2**16:
        return np.unique(volume)
    there = np.zeros(high - low + 1, bool)
    there[volume.ravel().astype(np.int64) - low] = True
    return (np.flatnonzero(there) + low).astype(volume.dtype)
