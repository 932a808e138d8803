"""One step of the architecture in a search: Adam on the supernet's logits (DiNTS, section 3.5 and equation 11)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from nnunet_ext.dints.discretize import Decoded, decode, decode_in_budget
from nnunet_ext.dints.memory_budget import edge_memory
from nnunet_ext.dints.network import DiNTSSearchNet
from nnunet_ext.dints.options import DiNTSSearchOptions
from nnunet_ext.dints.relaxation import Regularisers, Relaxed, regularisers, relax


class ArchitectureOptimizer:
    """Moves the logits of a supernet; first order, the weights are taken as they are.

    The logits are parameters without gradient outside of `step`, so that neither an optimizer of the weights nor DDP
    sees them.

    Args:
        supernet: on the device of the training.
        patch_size: of the search in voxels, for which the memory budget is counted.
    """

    def __init__(self, supernet: DiNTSSearchNet, patch_size: Sequence[int], options: DiNTSSearchOptions) -> None:
        self.supernet, self.options = supernet, options
        self.logits = [supernet.log_alpha_a, supernet.log_alpha_c]
        device = self.logits[0].device
        self.adam = torch.optim.Adam(self.logits, options.architecture_lr)
        self.scaler = torch.amp.GradScaler("cuda") if device.type == "cuda" else None
        self.memory_table = torch.tensor(edge_memory(supernet.structure, patch_size), device=device)

    def step(self, data: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor], ramp: float) -> None:
        """One step of Adam by equation 11; see `gradients`."""
        for logits, gradient in zip(self.logits, self.gradients(data, target, loss, ramp), strict=True):
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
            logits.grad = gradient
        if self.scaler is None:
            self.adam.step()
        else:
            self.scaler.step(self.adam)
            self.scaler.update()
        self.adam.zero_grad(set_to_none=True)

    def gradients(
        self, data: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor], ramp: float
    ) -> tuple[Tensor, ...]:
        """Of equation 11 by the logits, in the scaler's units; nothing is changed.

        Args:
            data, target: a batch of the half of the cases that trains the architecture, on the device.
            loss: (logits, target) -> the segmentation loss.
            ramp: t / t_all.
        """
        for logits in self.logits:
            logits.requires_grad_(True)
        try:
            relaxed = relax(*self.logits)
            # Not through DDP, which would wait for gradients of the weights; the logits' are averaged in `step`.
            with torch.autocast("cuda", enabled=data.device.type == "cuda"):
                segmentation = loss(self.supernet(data, relaxed), target)
            total = segmentation + self.regularisers(relaxed).total(ramp, self.options.topology_weight)
            return torch.autograd.grad(total if self.scaler is None else self.scaler.scale(total), self.logits)
        finally:
            for logits in self.logits:
                logits.requires_grad_(False)

    def regularisers(self, relaxed: Relaxed) -> Regularisers:
        """The terms of equation 11 besides the segmentation loss, with the options' budget."""
        return regularisers(relaxed, self.memory_table, self.options.sigma, self.options.loss_floor)

    def decode(self, in_budget: bool = True) -> Decoded:
        """The most probable feasible code of the logits as they are now, in the budget if the options want it."""
        edges, operations = (logits.detach().cpu().double().numpy() for logits in self.logits)
        if not (in_budget and self.options.decode_within_budget):
            return decode(edges, operations)
        return decode_in_budget(edges, operations, self.memory_table.cpu().numpy(), self.options.sigma)

    def state_dict(self) -> dict[str, Any]:
        """Of Adam and of the scaler; the logits are in the supernet's state dict."""
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return {"architecture_optimizer": self.adam.state_dict(), "architecture_scaler": scaler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict()`; on another kind of device the scaler starts anew."""
        self.adam.load_state_dict(state["architecture_optimizer"])
        if self.scaler is not None and state["architecture_scaler"] is not None:
            self.scaler.load_state_dict(state["architecture_scaler"])
