"""E2ENetPlanner: nnU-Net's sizing with E2ENet's own feature maps, which are about four times a U-Net's."""

from collections.abc import Sequence
from typing import Any

from nnunet_ext.e2enet.network import E2ENet, arch_kwargs_from_strides
from nnunet_ext.e2enet.options import E2ENetOptions
from nnunet_ext.plans.base import ExtPlanner


class E2ENetPlanner(ExtPlanner):
    """Writes `E2ENetPlans`."""

    network_class = E2ENet
    options_class = E2ENetOptions

    @classmethod
    def arch_kwargs(cls, strides: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The paper's network over these strides."""
        return arch_kwargs_from_strides(strides)
