"""Parameters and cost of a network, measured on its own layers.

Two conventions, always named. "true": multiply-adds over active weights, a transposed convolution with kernel = stride
having one tap per output voxel. "paper": what the method's tables count; a network says it in `paper_flops`.
Normalisation, activation, pooling and additions are not counted in either.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

GIGA = 1e9
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Total, trainable and active parameters; active leaves out the weights of masked kernels."""
    total = sum(p.numel() for p in network.parameters())
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    masked = 0
    module: Any
    for module in network.modules():
        mask = getattr(module, "kernel_mask", None)
        if isinstance(mask, Tensor):
            masked += (mask.numel() - int(mask.sum())) * math.prod(module.weight.shape[2:])
    return {"total": total, "trainable": trainable, "active": total - masked}


def count_flops(
    network: nn.Module,
    input_channels: int,
    patch_size: Sequence[int],
    *,
    convention: str = "true",
    deep_supervision: bool | None = None,
) -> float:
    """FLOPs (2 per multiply-add) of one forward pass of `[1, input_channels, *patch_size]`.

    Convolutions, transposed convolutions and linear layers that are modules of the network are counted, as often as
    they are called, and modules that say their own cost by `count_macs(first input)`. The pass runs on torch's meta
    device: nothing is computed. `deep_supervision` counts the auxiliary heads too; by default the true convention
    leaves them out, as prediction does, and the paper's counts them.

    Raises:
        ValueError: unknown convention, or a network without `paper_flops` asked for "paper".
    """
    if convention not in ("true", "paper"):
        raise ValueError(f"convention must be 'true' or 'paper', found {convention!r}")
    if convention == "paper" and not hasattr(network, "paper_flops"):
        raise ValueError(f"{type(network).__name__} says nothing of how its paper counts FLOPs")
    active = {name: _active_kernels(module) for name, module in network.named_modules() if _counted(module)}
    shadow: Any = copy.deepcopy(network).to("meta").eval()
    if hasattr(shadow, "deep_supervision"):
        shadow.deep_supervision = convention == "paper" if deep_supervision is None else deep_supervision
    flops = 0.0

    def hook(name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal flops
            if convention == "paper":
                flops += shadow.paper_flops(name, module, active[name], math.prod(output.shape[2:]))
            else:
                flops += _true_flops(module, active[name], inputs[0], output)

        return count

    for name, module in shadow.named_modules():
        if _counted(module):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        shadow(torch.empty(1, input_channels, *patch_size, device="meta"))
    return flops


def _counted(module: nn.Module) -> bool:
    return isinstance(module, (*_CONVOLUTIONS, nn.Linear)) or hasattr(module, "count_macs")


def _active_kernels(module: Any) -> int:
    if not hasattr(module, "weight"):
        return 0
    mask = getattr(module, "kernel_mask", None)
    if isinstance(mask, Tensor):
        return int(mask.sum())
    return math.prod(module.weight.shape[:2])


def _true_flops(module: Any, kernels: int, x: Tensor, output: Tensor) -> float:
    if hasattr(module, "count_macs"):
        return 2.0 * module.count_macs(x)
    if isinstance(module, nn.Linear):
        return 2.0 * output.numel() * module.in_features
    # Every tap of a transposed convolution is used once per input voxel, of a convolution once per output voxel.
    voxels = math.prod((x if isinstance(module, _TRANSPOSED) else output).shape[2:])
    return 2.0 * kernels * math.prod(module.weight.shape[2:]) * voxels * output.shape[0]


def complexity_report(network: nn.Module, input_channels: int, patch_size: Sequence[int]) -> dict[str, Any]:
    """Parameters, and GMACs (1e9 multiply-adds) and GFLOPs (1e9 FLOPs) at the patch, as JSON values."""
    true = count_flops(network, input_channels, patch_size)
    report: dict[str, Any] = {
        "network": f"{type(network).__module__}.{type(network).__name__}",
        "input_channels": int(input_channels),
        "patch_size": [int(p) for p in patch_size],
        "parameters": count_parameters(network),
        "true": {"gmacs": true / 2 / GIGA, "gflops": true / GIGA},
    }
    if hasattr(network, "paper_flops"):
        paper = count_flops(network, input_channels, patch_size, convention="paper")
        per_mac = getattr(network, "paper_flops_per_mac", 2)  # some papers call a multiply-add one FLOP
        report["paper"] = {"gmacs": paper / per_mac / GIGA, "gflops": paper / GIGA}
    return report


def kept_elements(network: nn.Module, x: Tensor) -> int:
    """Elements (of four bytes) that autograd keeps of a forward pass, parameters aside; both on the meta device."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    saved = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x)
    return sum(storage.nbytes() for storage in saved.values()) // 4
