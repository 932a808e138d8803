"""The patch of a plan for another network of the same method: as large as what was planned has memory for."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nnunet_ext.methods import Method
from nnunet_ext.planning.derive import planned_network
from nnunet_ext.planning.patches import total_strides


def fit_patches(
    plans: dict[str, Any],
    source: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    method: Method,
    *,
    keep_patch: bool,
) -> list[str]:
    """Gives the configurations of `plans` that `source` planned for the method the patch that suits their network.

    Args:
        plans: changed in place.
        source: from which they were derived; its networks at its patches say how much memory there is.
        keep_patch: the patches were set by the user; memory is only told.

    Returns:
        A line for each configuration: what a training step keeps of it, and what was planned.
    """
    lines = []
    for name, values in plans["configurations"].items():
        before = source["configurations"][name]
        if values == before or values.get("architecture", {}).get("network_class_name") != method.network_path:
            continue
        network = planned_network(plans, dataset_json, method, name)
        kept = _memoised(network.compute_conv_feature_map_size)
        planned, patch = list(before["patch_size"]), list(values["patch_size"])
        if before["architecture"]["network_class_name"] != method.network_path:
            lines.append(f"{name}: a training step keeps {_mb(kept(patch))} a patch; its patch was not planned for it.")
            continue
        available = planned_network(source, dataset_json, method, name).compute_conv_feature_map_size(planned)
        if not keep_patch:
            median, steps = values.get("median_image_size_in_voxels", patch), total_strides(network.strides)[-1]
            values["patch_size"] = patch = fitted_patch(kept, planned, median, steps, available)
        lines.append(
            f"{name}: a training step keeps {_mb(kept(patch))} a patch of {_size(patch)}; planned were "
            f"{_mb(available)} for {_size(planned)}."
        )
    return lines


def fitted_patch(
    kept: Callable[[list[int]], int],
    planned: Sequence[int],
    median: Sequence[float],
    steps: Sequence[int],
    available: int,
) -> list[int]:
    """The patch in voxels of which `kept` says at most `available`.

    As in nnU-Net's planning, an axis is shortened that covers most of the median image, and lengthened that covers
    least of it, in steps of the network's total stride and never beyond the median image.
    """
    patch = list(planned)

    def covered(axis: int) -> float:
        return patch[axis] / median[axis]

    while kept(patch) > available:
        axes = [axis for axis in range(len(patch)) if patch[axis] > 2 * steps[axis]]
        if not axes:
            return patch
        axis = max(axes, key=covered)
        patch[axis] = (math.ceil(patch[axis] / steps[axis]) - 1) * steps[axis]
    open_axes = set(range(len(patch)))
    while open_axes:
        axis = min(open_axes, key=covered)
        longer = patch.copy()
        longer[axis] = (patch[axis] // steps[axis] + 1) * steps[axis]
        if longer[axis] <= math.ceil(median[axis] / steps[axis]) * steps[axis] and kept(longer) <= available:
            patch = longer
        else:
            open_axes.remove(axis)
    return patch


def _memoised(kept: Callable[[Sequence[int]], int]) -> Callable[[list[int]], int]:
    known: dict[tuple[int, ...], int] = {}

    def of(patch: list[int]) -> int:
        key = tuple(patch)
        if key not in known:
            known[key] = kept(patch)
        return known[key]

    return of


def _mb(elements: int) -> str:
    return f"{4 * elements / 1e6:,.0f} MB of feature maps (fp32)"


def _size(patch: Sequence[int]) -> str:
    return "x".join(map(str, patch))
