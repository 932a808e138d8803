"""DiNTSPlanner, DiNTSSearchPlanner: nnU-Net's sizing with the feature maps of the published network, of a supernet."""

from typing import Any

from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet, arch_kwargs_at, search_arch_kwargs_at
from nnunet_ext.dints.options import DiNTSOptions, DiNTSSearchOptions
from nnunet_ext.plans.base import ExtPlanner

_ARCHITECTURE_STEP = 1.1  # what a step of the architecture keeps, of what a step of the weights does


class DiNTSPlanner(ExtPlanner):
    """Writes `DiNTSPlans`, for training a code: the published one until another is put in."""

    network_class = DiNTSNet
    options_class = DiNTSOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)


class DiNTSSearchPlanner(ExtPlanner):
    """Writes `DiNTSSearchPlans`, for a search with the paper's supernet."""

    network_class = DiNTSSearchNet
    options_class = DiNTSSearchOptions
    arch_kwargs_at = staticmethod(search_arch_kwargs_at)

    @classmethod
    def static_estimate_VRAM_usage(cls, *args: Any, **kwargs: Any) -> float:
        """ExtPlanner's, of the step that keeps more."""
        return _ARCHITECTURE_STEP * super().static_estimate_VRAM_usage(*args, **kwargs)
