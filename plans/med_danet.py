"""MedDANetPlanner: nnU-Net's sizing with the feature maps of the candidate that keeps most."""

from collections.abc import Sequence
from typing import Any

from nnunet_ext.med_danet.network import MedDANet, arch_kwargs_from_strides
from nnunet_ext.med_danet.options import MedDANetOptions
from nnunet_ext.plans.base import ExtPlanner

_BATCH = 2  # nnU-Net's reference batch of 3D patches


class MedDANetPlanner(ExtPlanner):
    """Writes `MedDANetPlans`."""

    network_class = MedDANet
    options_class = MedDANetOptions

    @classmethod
    def arch_kwargs(cls, strides: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The paper's bank over these strides."""
        return arch_kwargs_from_strides(strides)

    @classmethod
    def static_estimate_VRAM_usage(cls, patch_size: Sequence[int], *args: Any, **kwargs: Any) -> float:
        """ExtPlanner's, of the slices that a training step takes of a deep patch."""
        patch = list(patch_size)
        if len(patch) == 3:
            patch[0] = min(patch[0], cls.options_class().slices_per_step // _BATCH)
        return super().static_estimate_VRAM_usage(patch, *args, **kwargs)

    def get_plans_for_configuration(self, *args: Any, **kwargs: Any) -> dict:
        """ExtPlanner's, with position embeddings for slices of the planned patch."""
        plan = super().get_plans_for_configuration(*args, **kwargs)
        plan["architecture"]["arch_kwargs"]["position_size"] = [int(side) for side in plan["patch_size"][-2:]]
        return plan
