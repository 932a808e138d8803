"""E2ENetPlanner: nnU-Net's sizing with E2ENet's own feature maps, which are about four times a U-Net's."""

from nnunet_ext.e2enet.network import E2ENet, arch_kwargs_at
from nnunet_ext.e2enet.options import E2ENetOptions
from nnunet_ext.plans.base import ExtPlanner


class E2ENetPlanner(ExtPlanner):
    """Writes `E2ENetPlans`."""

    network_class = E2ENet
    options_class = E2ENetOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)
