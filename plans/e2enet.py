"""E2ENetPlanner: nnU-Net's sizing with what a training step of E2ENet keeps, 1.15 times a U-Net's feature maps."""

from nnunet_ext.e2enet.network import E2ENet, arch_kwargs_at
from nnunet_ext.e2enet.options import E2ENetOptions
from nnunet_ext.plans.base import ExtPlanner


class E2ENetPlanner(ExtPlanner):
    """Writes `E2ENetPlans`."""

    network_class = E2ENet
    options_class = E2ENetOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)
