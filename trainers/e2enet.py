"""E2ENetTrainer: nnU-Net's recipe with dynamic sparse feature fusion (arXiv 2312.04727, section 3.1)."""

from typing import Any

from nnunet_ext.e2enet.network import E2ENet, arch_kwargs_at
from nnunet_ext.e2enet.older_forms import moments_to_slots
from nnunet_ext.e2enet.options import E2ENetOptions
from nnunet_ext.e2enet.topology import DynamicTopology, direction_shares
from nnunet_ext.trainers.base import ExtTrainer


class E2ENetTrainer(ExtTrainer):
    """Trains E2ENet: SGD 0.01, poly decay, 1000 epochs, loss weights 8:4:2:1 over the heads, moving masks."""

    method = "e2enet"
    network_class = E2ENet
    options_class = E2ENetOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)
    options: E2ENetOptions

    def on_initialized(self) -> None:
        """Attaches the moving topology to the optimizer."""
        self.topology = DynamicTopology(
            self.net,
            self.optimizer,
            total_steps=self.num_epochs * self.num_iterations_per_epoch,
            update_every=self.options.update_every,
            drop_rate=self.options.drop_rate,
            final_drop_rate=self.options.final_drop_rate,
            dynamic=not self.options.freeze_topology,
            seed=self.seed,
        )
        steps, every = self.topology.total_steps, self.options.update_every
        if every > steps and not self.options.freeze_topology:
            self.print_to_log_file(
                f"The masks never move: update_every is {every}, and the training has {steps} steps."
            )

    def rates_at(self, epoch: int, num_epochs: int) -> dict[str, float]:
        """The learning rate, and the share of active kernels that an update drops."""
        drop_rate = self.topology.rate(
            epoch * self.num_iterations_per_epoch, num_epochs * self.num_iterations_per_epoch
        )
        return {**super().rates_at(epoch, num_epochs), "drop rate": drop_rate}

    def method_state(self) -> dict[str, Any]:
        """The topology's clock; which kernels are active is in the network's state dict."""
        return self.topology.state()

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Sets the topology's clock, and turns moments of a former version's dense weights into those of the slots."""
        self.topology.load_state(state)
        moments_to_slots(self.topology.layers.values(), self.optimizer)

    def history_row(self) -> dict[str, Any]:
        """Topology clock, active kernels, and each fusion node's share of connections by direction."""
        return {**self.topology.summary(), "directions": direction_shares(self.net)}
