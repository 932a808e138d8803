"""DiNTSPlanner: nnU-Net's sizing with the feature maps of the paper's published network."""

from collections.abc import Sequence
from typing import Any

from nnunet_ext.dints.network import DiNTSNet, arch_kwargs_from_strides
from nnunet_ext.dints.options import DiNTSOptions
from nnunet_ext.plans.base import ExtPlanner


class DiNTSPlanner(ExtPlanner):
    """Writes `DiNTSPlans`, for the search and for training the published code."""

    network_class = DiNTSNet
    options_class = DiNTSOptions

    @classmethod
    def arch_kwargs(cls, strides: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The published code over these strides."""
        return arch_kwargs_from_strides(strides)
