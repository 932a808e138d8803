"""ShallowPlanner: nnU-Net's sizing with the feature maps of two convolutions."""

from nnunet_ext.plans.base import ExtPlanner
from nnunet_ext.shallow.network import Shallow, arch_kwargs_at
from nnunet_ext.shallow.options import ShallowOptions


class ShallowPlanner(ExtPlanner):
    """Writes `ShallowPlans`."""

    network_class = Shallow
    options_class = ShallowOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)
