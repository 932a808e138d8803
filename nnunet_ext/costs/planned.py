"""What a method's network of a plan holds and costs, before it is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnunet_ext.costs.complexity import complexity_report
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import Method
from nnunet_ext.planning.options import architecture_options


def planned_report(
    method: Method, input_channels: int, num_classes: int, patch_size: Sequence[int], arch_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The `complexity_report` of the method's network, and its parameters by part where the method says them.

    The network is built on torch's meta device, for `patch_size` (voxels) where it knows its patch.

    Raises:
        ConfigurationError: arch_kwargs that the network refuses.
    """
    network_class = method.network_class()
    known = architecture_options(network_class)
    sized = {"patch_size": [int(side) for side in patch_size]} if "patch_size" in known else {}
    try:
        with torch.device("meta"):
            network = network_class(input_channels, num_classes, **{**arch_kwargs, **sized})
    except TypeError as error:
        raise ConfigurationError(f"arch_kwargs of {network_class.__name__}: {error}") from error
    report = complexity_report(network, input_channels, patch_size)
    parts = method.parts()
    if parts is not None:
        report["parts"] = parts(network)
    return report
