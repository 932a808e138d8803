"""Arithmetic that keeps its precision under autocast."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, nothing is cast down on `device`; on devices that have no autocast it does nothing."""
    if device.type == "meta":  # counted on behalf of any other
        return torch.autocast("cpu", enabled=False)
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


def autocast_of(device: torch.device) -> AbstractContextManager:
    """The half precision in which nnU-Net trains: float16 on CUDA, none elsewhere."""
    return torch.autocast("cuda") if device.type == "cuda" else nullcontext()
