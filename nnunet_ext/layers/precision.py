"""Arithmetic that keeps its precision under autocast."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, nothing is cast down on `device`; on devices that have no autocast it does nothing."""
    if device.type == "meta":  # counted on behalf of any other
        return torch.autocast("cpu", enabled=False)
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


def has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 (avx512_bf16 or AMX); elsewhere torch converts back and forth."""
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(ask() for ask in asked if ask is not None)


def train_in_bfloat16(module: nn.Module) -> None:
    """From now on passes of the module in training mode on a CPU are in bfloat16 autocast; outputs are float32.

    The loss is thereby in float32, as softmax and sums are under CUDA's autocast. In eval mode nothing changes.
    """
    module.forward = MethodType(_forward_in_bfloat16, module)  # a method, so that a copy of the module calls itself


def _forward_in_bfloat16(module: nn.Module, x: Tensor, *more: Any, **named: Any) -> Any:
    forward = type(module).forward
    if not module.training or x.device.type != "cpu":
        return forward(module, x, *more, **named)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = forward(module, x, *more, **named)
    return outputs.float() if isinstance(outputs, Tensor) else [output.float() for output in outputs]


def autocast_of(device: torch.device) -> AbstractContextManager:
    """The half precision in which nnU-Net trains: float16 on CUDA, none elsewhere."""
    return torch.autocast("cuda") if device.type == "cuda" else nullcontext()


def same_autocast(device: torch.device) -> Callable[[], AbstractContextManager]:
    """Makes contexts in which `device` casts as it does now, for what a backward pass computes again."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    return lambda: torch.autocast(device.type, dtype, enabled, cache_enabled=False)
