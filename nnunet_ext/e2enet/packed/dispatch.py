"""Whether the engine serves a forward pass, and each network's packed weights and program.

`packed_logits` is what `E2ENet.forward` asks first; see `engine.cpp` for the method.
"""

import os
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.e2enet.packed.library import PackedUnavailable, engine
from nnunet_ext.e2enet.packed.program import Program, Weights

SWITCH = "nnUNet_ext_packed"


class _Pack:
    """One network's weights and its program for the last input size."""

    def __init__(self, state: tuple) -> None:
        self.state = state
        self.weights = Weights()
        self.size: tuple | None = None
        self.program: Program | None = None


_packs: "weakref.WeakKeyDictionary[Any, _Pack]" = weakref.WeakKeyDictionary()
_said: set[str] = set()
_lock = threading.Lock()  # a program has one set of buffers


def packed_logits(network: Any, x: Tensor) -> Tensor | None:
    """The logits of `network` (in eval, without deep supervision) for `x [B, C, *size]`, a float32 tensor on the CPU.

    `size` must be a multiple of the total strides. None where the engine does not serve: in training, with gradients,
    under torch.compile or autocast, on other devices, and, said once in one line, where it cannot or must not run.
    """
    if torch.compiler.is_compiling() or not _asked_to_predict(network, x):
        return None
    reason = _reason_against(network)
    if reason is None:
        try:
            engine(_stored_bytes())
        except PackedUnavailable as error:
            reason = str(error)
    if reason is not None:
        _say(f"E2ENet predicts with torch's dense convolutions: {reason}.")
        return None
    stored = ", volumes in bfloat16" if _stored_bytes() == 2 else ""
    _say(f"E2ENet predicts with packed sparse convolutions{stored} ({SWITCH}=0 switches them off).")
    with _lock:
        return _program(network, x)(x)


def release(network: Any) -> None:
    """Frees the packed weights and buffers of `network`."""
    _packs.pop(network, None)


def _asked_to_predict(network: Any, x: Tensor) -> bool:
    return (
        not network.training
        and not network.deep_supervision
        and not torch.is_grad_enabled()
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and len(x) > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in network.parameters())
    )


def _reason_against(network: Any) -> str | None:
    switch = os.environ.get(SWITCH, "1")
    if switch == "0":
        return f"{SWITCH}=0"
    if switch not in ("1", "bf16"):
        return f"{SWITCH}={switch} is none of 0, 1 and bf16"
    kernels = {tuple(block.conv.kernel_size) for block in network.modules() if hasattr(block, "shifts")}
    if len(kernels) > 1 or (3, 3, 3) in kernels:
        return "kernels of 3x3x3 are not packed"
    if any(t.is_inference() for t in network.parameters()):
        return "weights made in inference mode do not tell when they change"
    return None


def _stored_bytes() -> int:
    return 2 if os.environ.get(SWITCH) == "bf16" else 4


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        print(f"nnunet_ext: {line}")


def _program(network: Any, x: Tensor) -> Program:
    # Every write through torch raises a tensor's version, and a tensor put in its place has another address.
    state = tuple((t.data_ptr(), t._version) for t in (*network.parameters(), *network.buffers()))
    pack = _packs.get(network)
    if pack is None or pack.state != state:
        release(network)
        pack = _packs[network] = _Pack(state)
    size = (*x.shape, torch.get_num_threads(), _stored_bytes())
    if pack.size != size:
        pack.program = None  # its memory first
        pack.program = Program(network, pack.weights, len(x), x.shape[2:], torch.get_num_threads(), _stored_bytes())
        pack.size = size
    assert pack.program is not None
    return pack.program
