"""DiNTSPlanner: nnU-Net's sizing with the feature maps of the paper's published network."""

from nnunet_ext.dints.network import DiNTSNet, arch_kwargs_at
from nnunet_ext.dints.options import DiNTSOptions
from nnunet_ext.plans.base import ExtPlanner


class DiNTSPlanner(ExtPlanner):
    """Writes `DiNTSPlans`, for the search and for training the published code."""

    network_class = DiNTSNet
    options_class = DiNTSOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)
