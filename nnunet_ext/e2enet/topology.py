"""Dynamic sparse feature fusion: the masks move while the network trains (E2ENet, section 2.2 and algorithm 1).

Every `update_every` steps each masked convolution drops the share r(t) of its active kernels with the smallest L1
norm, and as many kernels that were inactive before take their slots and grow from zero, so that the number of active
kernels never changes. Where blocks of outputs share their inputs (`shared_inputs.py`), each block does so with its
inputs, by the L1 norm over all that the block reads of one; of a block's few inputs the share is rounded.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.e2enet.masked import SparseConnections, masked_modules


class DynamicTopology:
    """Drives the masks of `network` through `optimizer`'s steps; attach it once, before the first step.

    It works through a hook that torch runs after `optimizer.step()`. A step that an AMP GradScaler skips never reaches
    the optimizer, so nothing happens then.

    Updates are drawn from (seed, number of the update, position of the layer), on the CPU: they are the same on every
    rank of a distributed training and need no state but the step counter.

    Args:
        network: a network with masked convolutions; wrappers (DDP, compiled) taken off.
        optimizer: the optimizer of its parameters.
        total_steps: T of the cosine, the steps of the whole training.
        update_every: steps between two updates.
        drop_rate, final_drop_rate: r at the first and at the last step.
        dynamic: False keeps the masks as they are (static sparsity, frozen topology).
        seed: of the regrowth.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int,
        update_every: int = 1200,
        drop_rate: float = 0.5,
        final_drop_rate: float = 0.001,
        dynamic: bool = True,
        seed: int = 0,
    ) -> None:
        self.layers: dict[str, SparseConnections] = dict(masked_modules(network))
        self.optimizer = optimizer
        self.total_steps, self.update_every = total_steps, update_every
        self.first_rate, self.final_rate = drop_rate, final_drop_rate
        self.dynamic, self.seed = dynamic, seed
        self.steps = 0
        self.updates = 0
        self._ever_active: dict[str, Tensor] | None = None  # from the first step on: weights may be loaded until then
        optimizer.register_step_post_hook(lambda *_: self._after_step())

    def rate(self, step: int, total_steps: int | None = None) -> float:
        """Share of active kernels dropped at `step`: cosine decay from `drop_rate` to `final_drop_rate`."""
        total = total_steps or self.total_steps
        cosine = (1 + math.cos(math.pi * min(step, total) / total)) / 2
        return self.final_rate + (self.first_rate - self.final_rate) * cosine

    @property
    def ever_active(self) -> dict[str, Tensor]:
        """Kernels that were active at any step so far, by layer, on the CPU."""
        if self._ever_active is None:
            return {name: layer.kernel_mask.cpu().clone() for name, layer in self.layers.items()}
        return self._ever_active

    @torch.no_grad()
    def _after_step(self) -> None:
        self._ever_active = self.ever_active
        self.steps += 1
        if self.dynamic and self.steps % self.update_every == 0:
            self._update()

    def _update(self) -> None:
        rate = self.rate(self.steps)
        for position, (name, layer) in enumerate(self.layers.items()):
            generator = torch.Generator().manual_seed(_mixed(self.seed, self.updates, position))
            norms = layer.by_slot(layer.values).flatten(2).abs().sum(2).cpu()
            state = self.optimizer.state.get(layer.values, {}).values()
            moments = [m for m in state if isinstance(m, Tensor) and m.shape == layer.values.shape]
            for pool, index in enumerate(layer.pools.cpu()):
                slots, grown = exchange(index, norms[pool], layer.candidates, rate, generator, layer.whole)
                slots, grown = slots.to(layer.pools.device), grown.to(layer.pools.device)
                layer.overwrite(slots, grown, pool)
                for moment in moments:
                    layer.by_slot(moment)[pool, slots] = 0
            self.ever_active[name] |= layer.kernel_mask.cpu()
        self.updates += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides which kernels are active, which the network itself holds."""
        ever_active = {name: mask.clone() for name, mask in self.ever_active.items()}
        return {"steps": self.steps, "updates": self.updates, "ever_active": ever_active}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from `state()`."""
        self.steps, self.updates = state["steps"], state["updates"]
        self._ever_active = {name: mask.cpu().clone() for name, mask in state["ever_active"].items()}

    def summary(self) -> dict[str, float]:
        """Steps, updates, the current drop rate, active kernels, and the share of kernels that were ever active."""
        ever_active = self.ever_active
        kernels = sum(mask.numel() for mask in ever_active.values())
        return {
            "steps": self.steps,
            "updates": self.updates,
            "drop_rate": self.rate(self.steps) if self.dynamic else 0.0,
            "active_kernels": sum(layer.count_active() for layer in self.layers.values()),
            "ever_active": sum(int(mask.sum()) for mask in ever_active.values()) / max(1, kernels),
        }


def exchange(
    index: Tensor,
    norms: Tensor,
    candidates: int,
    rate: float,
    generator: torch.Generator,
    whole: Callable[[float], int] = math.ceil,
) -> tuple[Tensor, Tensor]:
    """Which slots of a pool are given up at an update, and what takes them: two int64 tensors `[n]`.

    Args:
        index: what each slot holds, int64 `[slots]`: a kernel of the layer, or an input of a block.
        norms: its L1 norm `[slots]`.
        candidates: how many there are, active or not.
        rate: share of the slots to give up, at most as many as are inactive.
        generator: draws what grows, uniformly among those inactive before the drop (algorithm 1).
        whole: makes rate * slots a whole number.

    Ties go to the lower index, so that exactly that many are dropped.
    """
    inactive = torch.ones(candidates, dtype=torch.bool).index_fill(0, index, False).nonzero().squeeze(1)
    count = min(whole(rate * len(index)), len(inactive))
    ascending = torch.argsort(index)
    weakest = ascending[torch.argsort(norms[ascending], stable=True)[:count]]
    return weakest, inactive[torch.randperm(len(inactive), generator=generator)[:count]]


def direction_shares(network: nn.Module) -> dict[str, dict[str, float]]:
    """Per fusion node "stage,level": the share of active connections by direction (the papers' fusion figure).

    Counted over the node's first convolution: kernels whose input channel comes from the forward, up or down flow.
    """
    shares = {}
    for stage, nodes in enumerate(network.fusion, start=1):  # type: ignore[arg-type]
        for level, node in enumerate(nodes):
            conv = node.convs[0].conv
            columns = (
                conv.kernel_mask.sum(0)
                if isinstance(conv, SparseConnections)
                else conv.weight.new_full((conv.in_channels,), conv.out_channels)
            )
            counts = [int(part.sum()) for part in columns.split(node.directions)]
            shares[f"{stage},{level}"] = {
                name: count / max(1, sum(counts)) for name, count in zip(("forward", "up", "down"), counts, strict=True)
            }
    return shares


def _mixed(*numbers: int) -> int:
    """One 63-bit seed from several small numbers, so that neighbouring updates are unrelated (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 1
