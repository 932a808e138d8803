"""Volumes turned as they are looked at: LPS, that is the patient's right at the picture's left, front on top."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def direction_of(properties: Mapping[str, Any]) -> np.ndarray | None:
    """Direction cosines `[3, 3]` of the axes x, y, z of a volume in LPS, one a column, as nnU-Net's readers tell them.

    None where the file has none, as natural images have, or where nnU-Net's properties do not say it.
    """
    if "sitk_stuff" in properties:
        direction = np.asarray(properties["sitk_stuff"]["direction"], float)
        return direction.reshape(3, 3) if direction.size == 9 else None
    stuff = properties.get("nibabel_stuff")
    if stuff is None:
        return None
    affine = np.asarray(stuff.get("reoriented_affine", stuff.get("original_affine")), float)[:3, :3]
    lengths = np.linalg.norm(affine, axis=0)
    return np.diag([-1, -1, 1]) @ (affine / lengths) if (lengths > 0).all() else None  # from RAS


def to_lps(volume: np.ndarray, spacing: Sequence[float], direction: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    """The volume `[D, H, W]` (axes z, y, x) with axes feet to head, front to back, right to left; and its spacing.

    Axes are exchanged and flipped, not resampled: an oblique volume keeps its nearest axes.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume))
    image.SetSpacing([float(step) for step in reversed(spacing)])
    image.SetDirection(direction.flatten().tolist())
    image = sitk.DICOMOrient(image, "LPS")
    return sitk.GetArrayFromImage(image), tuple(reversed(image.GetSpacing()))
