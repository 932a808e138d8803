"""Parameters and cost of a network, measured on the network itself, on torch's meta device: nothing is computed.

Two conventions, always named. "true": what torch's `FlopCounterMode` counts (two FLOPs per multiply-add in convolutions
and matrix products, a transposed convolution with kernel = stride having one tap per output voxel), of convolutions
with masks the share of their active kernels. "paper": what the method's tables count; a network says it in
`paper_flops`, or in `paper_flops_per_mac` where its paper only calls a multiply-add one FLOP. Normalisation,
activation, pooling and additions are not counted in either.
"""

import copy
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

GIGA = 1e9
_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Total, trainable and active parameters; the total has the inactive kernels of masked convolutions, as the papers
    count them, of which the network holds nothing.
    """
    active = sum(p.numel() for p in network.parameters())
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    inactive = 0
    for module in network.modules():
        if hasattr(module, "count_active"):
            inactive += (_kernels(module) - module.count_active()) * math.prod(module.dense_shape[2:])  # type: ignore
    return {"total": active + inactive, "trainable": trainable, "active": active}


def active_share(network: nn.Module) -> float | None:
    """Active kernels of the sparse convolutions as a share of all that they could have; None where none is sparse.

    After rounding, so that it may differ from what was asked for.
    """
    sparse: list[Any] = [module for module in network.modules() if hasattr(module, "count_active")]
    return sum(map(_active, sparse)) / sum(map(_kernels, sparse)) if sparse else None


def count_flops(
    network: nn.Module,
    input_channels: int,
    patch_size: Sequence[int],
    *,
    convention: str = "true",
    deep_supervision: bool | None = None,
) -> float:
    """FLOPs (2 per multiply-add) of one forward pass of `[1, input_channels, *patch_size]`.

    `deep_supervision` counts the auxiliary heads too; by default the true convention leaves them out, as prediction
    does, and the paper's counts them. The paper's counts convolutions, transposed convolutions and linear layers that
    are modules of the network.

    Raises:
        ValueError: unknown convention, or a network without `paper_flops` asked for "paper".
    """
    if convention not in ("true", "paper"):
        raise ValueError(f"convention must be 'true' or 'paper', found {convention!r}")
    if convention == "paper" and not hasattr(network, "paper_flops"):
        raise ValueError(f"{type(network).__name__} says nothing of how its paper counts FLOPs")
    shadow: Any = on_meta(network).eval()
    if hasattr(shadow, "deep_supervision"):
        shadow.deep_supervision = convention == "paper" if deep_supervision is None else deep_supervision
    x = torch.empty(1, input_channels, *patch_size, device="meta")
    return _paper_flops(network, shadow, x) if convention == "paper" else _true_flops(network, shadow, x)


def _true_flops(network: nn.Module, shadow: nn.Module, x: Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode  # loads triton, which a network does without

    with FlopCounterMode(display=False) as counter, _ShapesOnly(), torch.no_grad():
        shadow(x)
    by_module = counter.get_flop_counts()
    flops = float(counter.get_total_flops())
    for name, module in network.named_modules():
        if getattr(module, "computes_zeros", False):  # counted with kernels that are not active
            dense = sum(by_module.get(f"{type(shadow).__name__}.{name}" if name else "Global", {}).values())
            flops -= dense - dense * module.count_active() // _kernels(module)
    return flops


class _ShapesOnly(TorchFunctionMode):
    """Gives the shapes alone of what is not counted but takes long on the meta device: norms and interpolation."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.instance_norm, F.batch_norm):
            return torch.empty_like(args[0])
        if func is F.interpolate and (size := kwargs.get("size")) is not None:
            return args[0].new_empty(*args[0].shape[:2], *size)
        return func(*args, **kwargs)


def _paper_flops(network: nn.Module, shadow: Any, x: Tensor) -> float:
    flops = 0.0
    active = {name: _active(module) for name, module in network.named_modules() if isinstance(module, _COUNTED)}

    def hook(name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal flops
            flops += shadow.paper_flops(name, module, active[name], math.prod(output.shape[2:]))

        return count

    for name, module in shadow.named_modules():
        if name in active:
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        shadow(x)
    return flops


def _kernels(module: Any) -> int:
    return math.prod(module.dense_shape[:2] if hasattr(module, "dense_shape") else module.weight.shape[:2])


def _active(module: Any) -> int:
    return module.count_active() if hasattr(module, "count_active") else _kernels(module)


def on_meta(network: nn.Module) -> nn.Module:
    """A copy of a network on the meta device, which holds no values; its own hooks are copied too."""
    return copy.deepcopy(network).to("meta")


def complexity_report(network: nn.Module, input_channels: int, patch_size: Sequence[int]) -> dict[str, Any]:
    """Parameters, and GMACs (1e9 multiply-adds) and GFLOPs (1e9 FLOPs) at the patch, as JSON values."""
    true = count_flops(network, input_channels, patch_size)
    report: dict[str, Any] = {
        "network": f"{type(network).__module__}.{type(network).__name__}",
        "input_channels": int(input_channels),
        "patch_size": [int(p) for p in patch_size],
        "parameters": count_parameters(network),
        **({} if (density := active_share(network)) is None else {"density": density}),
        "true": {"gmacs": true / 2 / GIGA, "gflops": true / GIGA},
    }
    if hasattr(network, "paper_flops"):
        paper = count_flops(network, input_channels, patch_size, convention="paper")
        report["paper"] = {"gmacs": paper / 2 / GIGA, "gflops": paper / GIGA}
    elif (per_mac := getattr(network, "paper_flops_per_mac", None)) is not None:
        report["paper"] = {"gmacs": true / 2 / GIGA, "gflops": true / 2 * per_mac / GIGA}
    return report


def complexity_text(report: dict[str, Any]) -> str:
    """The complexity report in lines, for the training log."""
    parameters = report["parameters"]
    density = f"Active kernels of the sparse convolutions: {report['density']:.2%}\n" if "density" in report else ""
    costs = [
        f"{report[convention]['gmacs']:.2f} GMACs ({report[convention]['gflops']:.2f} GFLOPs, {convention} convention)"
        for convention in ("true", "paper")
        if convention in report
    ]
    return (
        f"Parameters: {parameters['total']:,} in all, {parameters['active']:,} active, "
        f"{parameters['trainable']:,} trainable\n"
        f"{density}"
        f"One patch {'x'.join(map(str, report['patch_size']))} costs {' or '.join(costs)}\n"
    )


def kept_elements(network: nn.Module, x: Tensor) -> int:
    """Elements (of four bytes) that autograd keeps of a training step's forward pass, parameters and buffers aside.

    `x` is on the meta device; the network is taken there.
    """
    shadow = on_meta(network).train()
    own = {tensor.untyped_storage()._cdata for tensor in chain(shadow.parameters(), shadow.buffers())}
    saved = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shadow(x)
    return sum(storage.nbytes() for storage in saved.values()) // 4
