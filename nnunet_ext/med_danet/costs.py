"""What one slice costs in a bank and its decision network, and what routing spent; true multiply-adds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnunet_ext.costs.complexity import GIGA, complexity_report, count_flops
from nnunet_ext.med_danet.network import MedDANet
from nnunet_ext.med_danet.options import MedDANetOptions
from nnunet_ext.planning.options import PLANS_KEY


@dataclass(frozen=True)
class SliceCosts:
    """Multiply-adds of one slice of `size` (height and width in pixels), and the candidates' titles in the same order.

    `largest` is the index of the candidate that predicts while nothing is routed.
    """

    size: tuple[int, int]
    titles: tuple[str, ...]
    candidates: tuple[int, ...]
    decision: int
    largest: int

    def spent(self, counts: Sequence[int]) -> int:
        """Multiply-adds of routing, decisions included; `counts` of slices skipped, then sent to each candidate."""
        chosen = sum(count * macs for count, macs in zip(counts[1:], self.candidates, strict=True))
        return sum(counts) * self.decision + chosen

    def report(self, counts: Sequence[int]) -> dict[str, Any]:
        """The same as JSON values, beside the largest candidate on all slices; tiles and mirrored passes count each."""
        slices = sum(counts)
        return {
            "slices": slices,
            "slice_size": list(self.size),
            "choices": ["skip", *self.titles],
            "counts": list(counts),
            "ratios": [count / max(1, slices) for count in counts],
            "gmacs": self.spent(counts) / GIGA,
            "gmacs_decision": slices * self.decision / GIGA,
            "gmacs_unrouted": slices * self.candidates[self.largest] / GIGA,
            "convention": "true",
        }


def slice_costs(network: MedDANet, size: Sequence[int]) -> SliceCosts:
    """Counts the network's parts on torch's meta device."""

    def macs(part: torch.nn.Module) -> int:
        return round(count_flops(part, network.input_channels, size) / 2)

    return SliceCosts(
        size=(int(size[0]), int(size[1])),
        titles=tuple(candidate.title for candidate in network.bank),
        candidates=tuple(macs(candidate) for candidate in network.candidates),
        decision=macs(network.decision),
        largest=network.largest,
    )


def further_cost_reports(
    input_channels: int, num_classes: int, configuration: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What `nnunet_ext info` says besides: the decision network and each candidate, for one slice.

    Raises:
        ConfigurationError: options or arch_kwargs that training would refuse.
    """
    MedDANetOptions.from_plans(configuration.get(PLANS_KEY))
    arch_kwargs, size = configuration["architecture"]["arch_kwargs"], configuration["patch_size"][-2:]
    with torch.device("meta"):
        network = MedDANet(input_channels, num_classes, **arch_kwargs)
    named: dict[str, torch.nn.Module] = {"decision network, a slice": network.decision}
    for number, (described, candidate) in enumerate(zip(network.bank, network.candidates, strict=True), start=1):
        named[f"candidate {number} {described.title}, a slice"] = candidate
    path = f"{MedDANet.__module__}.{MedDANet.__name__}"
    return {name: {**complexity_report(part, input_channels, size), "network": path} for name, part in named.items()}
