"""MedDANetPlanner: nnU-Net's sizing with the feature maps of the candidate that keeps most."""

from collections.abc import Sequence
from typing import Any

from nnunet_ext.med_danet.network import MedDANet, arch_kwargs_at
from nnunet_ext.med_danet.options import MedDANetOptions
from nnunet_ext.plans.base import ExtPlanner

_BATCH = 2  # nnU-Net's reference batch of 3D patches


class MedDANetPlanner(ExtPlanner):
    """Writes `MedDANetPlans`."""

    network_class = MedDANet
    options_class = MedDANetOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)

    @classmethod
    def static_estimate_VRAM_usage(cls, patch_size: Sequence[int], *args: Any, **kwargs: Any) -> float:
        """ExtPlanner's, of the slices that a training step takes of a deep patch."""
        patch = list(patch_size)
        if len(patch) == 3:
            patch[0] = min(patch[0], cls.options_class().slices_per_step // _BATCH)
        return super().static_estimate_VRAM_usage(patch, *args, **kwargs)
