"""What one slice costs in a bank and its decision network, counted on them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnunet_ext.costs.complexity import complexity_report, count_flops
from nnunet_ext.med_danet.accounting import SliceCosts
from nnunet_ext.med_danet.network import MedDANet
from nnunet_ext.med_danet.options import MedDANetOptions
from nnunet_ext.planning.options import PLANS_KEY


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
