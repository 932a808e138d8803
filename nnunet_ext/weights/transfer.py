"""Takes over from one network what fits into another: weights, and with them indices and running statistics."""

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError


@torch.no_grad()
def transfer(source: nn.Module, target: nn.Module, skip: str = ".seg_layers.") -> tuple[list[str], dict[str, str]]:
    """Copies into `target` every parameter and stored buffer of the same name and shape.

    The buffers of a module (running statistics, which kernels are active) come only together with all of its own
    parameters.

    Args:
        skip: tensors with this in their name keep `target`'s values, as in nnU-Net's own loading.

    Returns:
        The names taken over, and name -> reason for what keeps its initial values.

    Raises:
        ConfigurationError: a sparse layer has another number of active kernels (the sparsity differs) or connections of
            another form, one network is sparse where the other is dense, or a frozen parameter would keep random
            values for ever.
    """
    taken: list[str] = []
    new: dict[str, str] = {}
    theirs = dict(source.named_modules())
    for name, module in target.named_modules():
        other = theirs.get(name)
        _check_sparsity(name, other, module, skip)
        before = len(new)
        for kind in ("_parameters", "_buffers"):
            for part, tensor in vars(module)[kind].items():
                if tensor is None or part in module._non_persistent_buffers_set:
                    continue
                full = f"{name}.{part}" if name else part
                reason = _reason_against(full, part, module, other, skip)
                if reason is None and kind == "_buffers" and len(new) > before:
                    reason = "belongs to a tensor that is new"
                if reason is not None:
                    new[full] = reason
                    continue
                tensor.copy_(getattr(other, part))
                taken.append(full)
    frozen = [name for name, p in target.named_parameters() if name in new and skip not in name and not p.requires_grad]
    if frozen:
        raise ConfigurationError(
            f"{frozen[0]} is frozen in the target, so that it would keep random values for ever, and cannot be taken "
            f"over ({new[frozen[0]]}). Start the new training from pretrained weights, as the other one did."
        )
    return taken, new


def _reason_against(full: str, part: str, module: nn.Module, other: nn.Module | None, skip: str) -> str | None:
    if skip in full:
        return "a segmentation layer"
    if not isinstance(getattr(other, part, None), Tensor):
        return "not in the source"
    theirs, ours = _shape(other, part), _shape(module, part)
    if theirs != ours:
        return f"shape {list(theirs)} in the source, {list(ours)} here"
    return None


def _shape(module: Any, part: str) -> tuple[int, ...]:
    """Of a tensor; of the active kernels of a sparse layer, and of which they are, the shape of its whole weight."""
    if hasattr(module, "dense_shape") and part in ("values", "index", "inputs"):
        return module.dense_shape
    return tuple(getattr(module, part).shape)


def _check_sparsity(name: str, source: Any, target: Any, skip: str) -> None:
    """Refuses another sparsity in a layer of the same shape."""
    if skip in f"{name}." or source is None or _weight_shape(source) != _weight_shape(target):
        return
    theirs, ours = (module.count_active() if hasattr(module, "count_active") else None for module in (source, target))
    if (theirs is None) != (ours is None):
        sparse = "source" if ours is None else "target"
        raise ConfigurationError(f"{name} is sparse only in the {sparse}. Give both the same sparsity.")
    blocks = [getattr(module, "connection_block", None) for module in (source, target)]
    if theirs is not None and blocks[0] != blocks[1]:
        raise ConfigurationError(
            f"{name} has {_form(blocks[0])} in the source and {_form(blocks[1])} in the target, and one says nothing "
            f"about the other. Give both the same connection_block."
        )
    if theirs != ours:
        raise ConfigurationError(
            f"{name} has {theirs} active kernels in the source and {ours} in the target. Give both the same sparsity."
        )


def _form(block: int | None) -> str:
    return f"connections in blocks of {block} outputs" if block is not None and block > 1 else "single connections"


def _weight_shape(module: Any) -> tuple[int, ...] | None:
    if hasattr(module, "dense_shape"):
        return module.dense_shape
    return tuple(module.weight.shape) if isinstance(getattr(module, "weight", None), Tensor) else None
