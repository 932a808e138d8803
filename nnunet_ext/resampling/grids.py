"""Which matrix takes each axis from one grid to another, by nnU-Net's rules for thick slices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_ext.resampling.matrices import resize_matrix, sample_matrix


@dataclass(frozen=True)
class Grids:
    """A volume's way from `shape` to `new_shape` (voxels, both in the array's order).

    `thick` is the axis that is resampled by itself, after the others, as nnU-Net does where one spacing is more than
    three times another; None where all axes are taken together.
    """

    shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    thick: int | None

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        new_shape: Sequence[int],
        current_spacing: Sequence[float],
        new_spacing: Sequence[float],
        force_separate_z: bool | None = False,
        separate_z_anisotropy_threshold: float | None = None,
    ) -> "Grids":
        """nnU-Net decides from the spacings (mm) which axis is taken by itself; None: its own threshold."""
        from nnunetv2.configuration import ANISO_THRESHOLD
        from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

        threshold = ANISO_THRESHOLD if separate_z_anisotropy_threshold is None else separate_z_anisotropy_threshold
        separate, axis = determine_do_sep_z_and_axis(force_separate_z, current_spacing, new_spacing, threshold)
        return cls(tuple(map(int, shape)), tuple(map(int, new_shape)), int(axis) if separate else None)

    @property
    def equal(self) -> bool:
        """Whether there is nothing to do."""
        return self.shape == self.new_shape

    def in_plane(self, order: int) -> list[np.ndarray]:
        """The matrix of each axis, of which the thick one stays as it is."""
        sizes = enumerate(zip(self.shape, self.new_shape, strict=True))
        return [resize_matrix(n, n if axis == self.thick else m, order) for axis, (n, m) in sizes]

    def through_plane(self, order_z: int) -> np.ndarray:
        """The matrix of the thick axis."""
        assert self.thick is not None
        return sample_matrix(self.shape[self.thick], self.new_shape[self.thick], order_z)
