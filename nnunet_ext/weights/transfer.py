"""Takes over from one network what fits into another: weights, and with them masks and running statistics."""

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError


@torch.no_grad()
def transfer(source: nn.Module, target: nn.Module, skip: str = ".seg_layers.") -> tuple[list[str], dict[str, str]]:
    """Copies into `target` every parameter and stored buffer of the same name and shape.

    The buffers of a module (running statistics, masks) come only together with all of its own parameters.

    Args:
        skip: tensors with this in their name keep `target`'s values, as in nnU-Net's own loading.

    Returns:
        The names taken over, and name -> reason for what keeps its initial values.

    Raises:
        ConfigurationError: a sparse layer has another number of active kernels (the sparsity differs), one network is
            sparse where the other is dense, or a frozen parameter would keep random values for ever.
    """
    taken: list[str] = []
    new: dict[str, str] = {}
    theirs = dict(source.named_modules())
    for name, module in target.named_modules():
        other = theirs.get(name)
        before = len(new)
        for kind in ("_parameters", "_buffers"):
            for part, tensor in vars(module)[kind].items():
                if tensor is None or part in module._non_persistent_buffers_set:
                    continue
                full = f"{name}.{part}" if name else part
                reason = _reason_against(full, part, tensor, other, skip)
                if reason is None and kind == "_buffers" and len(new) > before:
                    reason = "belongs to a tensor that is new"
                if reason is not None:
                    new[full] = reason
                    continue
                if part == "weight":
                    _check_sparsity(name, other, module)
                tensor.copy_(getattr(other, part))
                taken.append(full)
    frozen = [name for name, p in target.named_parameters() if name in new and skip not in name and not p.requires_grad]
    if frozen:
        raise ConfigurationError(
            f"{frozen[0]} is frozen in the target, so that it would keep random values for ever, and cannot be taken "
            f"over ({new[frozen[0]]}). Start the new training from pretrained weights, as the other one did."
        )
    return taken, new


def _reason_against(full: str, part: str, tensor: Tensor, other: nn.Module | None, skip: str) -> str | None:
    found = getattr(other, part, None)
    if skip in full:
        return "a segmentation layer"
    if not isinstance(found, Tensor):
        return "not in the source"
    if found.shape != tensor.shape:
        return f"shape {list(found.shape)} in the source, {list(tensor.shape)} here"
    return None


def _check_sparsity(name: str, source: Any, target: Any) -> None:
    theirs, ours = (module.count_active() if hasattr(module, "count_active") else None for module in (source, target))
    if (theirs is None) != (ours is None):
        sparse = "source" if ours is None else "target"
        raise ConfigurationError(f"{name} is sparse only in the {sparse}. Give both the same sparsity.")
    if theirs != ours:
        raise ConfigurationError(
            f"{name} has {theirs} active kernels in the source and {ours} in the target. Give both the same sparsity."
        )
