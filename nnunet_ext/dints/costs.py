"""What the supernet of a search holds and costs: `nnunet_ext info` says it beside the network that is planned."""

from collections.abc import Mapping
from typing import Any

import torch

from nnunet_ext.costs.complexity import complexity_report
from nnunet_ext.dints.network import DiNTSSearchNet, search_arch_kwargs
from nnunet_ext.dints.options import DiNTSOptions, search_patch
from nnunet_ext.planning.options import PLANS_KEY


def further_cost_reports(
    input_channels: int, num_classes: int, configuration: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The supernet that the configuration's options describe, at its own patch; see `costs.complexity`."""
    options = DiNTSOptions.from_plans(configuration.get(PLANS_KEY))
    arch_kwargs = configuration["architecture"]["arch_kwargs"]
    planned = search_arch_kwargs(options, arch_kwargs["strides"], arch_kwargs.get("use_downsample", True))
    patch = search_patch(options, configuration["patch_size"], arch_kwargs["strides"])
    with torch.device("meta"):
        network = DiNTSSearchNet(input_channels, num_classes, **planned)
    return {"search's supernet": complexity_report(network, input_channels, patch)}
