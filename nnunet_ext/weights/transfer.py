"""Takes over from one network what fits into another: weights, and with them the masks of sparse layers."""

import torch
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError


@torch.no_grad()
def transfer(source: nn.Module, target: nn.Module, skip: str = ".seg_layers.") -> tuple[list[str], dict[str, str]]:
    """Copies into `target` every parameter of the same name and shape; a sparse weight brings its mask along.

    Args:
        skip: parameters with this in their name keep `target`'s values, as in nnU-Net's own loading.

    Returns:
        The names taken over, and name -> reason for what keeps its initial values.

    Raises:
        ConfigurationError: a sparse layer has another number of active kernels (the sparsity differs), or one network
            is sparse where the other is dense.
    """
    taken, new = [], {}
    theirs = dict(source.named_modules())
    for name, module in target.named_modules():
        other = theirs.get(name)
        for part, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{part}"
            found = getattr(other, part, None)
            if skip in full:
                new[full] = "a segmentation layer"
            elif not isinstance(found, Tensor):
                new[full] = "not in the source"
            elif found.shape != parameter.shape:
                new[full] = f"shape {list(found.shape)} in the source, {list(parameter.shape)} here"
            else:
                if part == "weight":
                    _take_mask(name, other, module)
                parameter.copy_(found)
                taken.append(full)
    return taken, new


def _take_mask(name: str, source: nn.Module | None, target: nn.Module) -> None:
    theirs, ours = getattr(source, "kernel_mask", None), getattr(target, "kernel_mask", None)
    if theirs is None and ours is None:
        return
    if not isinstance(theirs, Tensor) or not isinstance(ours, Tensor):
        sparse = "source" if isinstance(theirs, Tensor) else "target"
        raise ConfigurationError(f"{name} is sparse only in the {sparse}. Give both the same sparsity.")
    if int(theirs.sum()) != int(ours.sum()):
        raise ConfigurationError(
            f"{name} has {int(theirs.sum())} active kernels in the source and {int(ours.sum())} in the target. "
            f"Give both the same sparsity."
        )
    ours.copy_(theirs)
