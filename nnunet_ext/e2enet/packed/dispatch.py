"""Whether the engine serves a forward pass, and each network's packed weights and program.

`packed_logits` is what `E2ENet.forward` asks first; see `engine.cpp` for the method.
"""

import ctypes
import os
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.e2enet.packed.library import PackedUnavailable, engine, stored_type
from nnunet_ext.e2enet.packed.program import Program, Weights
from nnunet_ext.e2enet.packed.suitable import reason_against

SWITCH = "nnUNet_ext_packed"


class _Pack:
    """One network's weights and its program for the last input size."""

    def __init__(self, made_of: list[Tensor]) -> None:
        self.made_of = [tensor.detach().clone() for tensor in made_of]
        self.weights = Weights()
        self.size: tuple | None = None
        self.program: Program | None = None
        self.lock = threading.Lock()  # a program has one set of buffers

    def is_of(self, tensors: list[Tensor]) -> bool:
        return len(tensors) == len(self.made_of) and all(map(_same, tensors, self.made_of))


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors on the CPU hold the same bytes, for which equal NaNs are equal."""
    if _memcmp is None or a.shape != b.shape or a.dtype != b.dtype or not (a.is_contiguous() and b.is_contiguous()):
        return torch.equal(a, b)
    return _memcmp(a.data_ptr(), b.data_ptr(), a.numel() * a.element_size()) == 0


_memcmp = ctypes.CDLL(None).memcmp if os.name == "posix" else None
if _memcmp is not None:
    _memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

_packs: "weakref.WeakKeyDictionary[Any, _Pack]" = weakref.WeakKeyDictionary()
_packs_lock = threading.Lock()
_said: set[str] = set()


def _after_fork() -> None:
    """Other threads of the parent may have been in the middle of a run or of the table."""
    global _packs_lock
    _packs_lock = threading.Lock()
    _packs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def packed_logits(network: Any, x: Tensor) -> Tensor | None:
    """The logits of `network` (in eval, without deep supervision) for `x [B, C, *size]`, a float32 tensor on the CPU.

    `size` must be a multiple of the total strides. None where torch computes: in training, under torch.compile or a
    tracer, on other devices, for other shapes, and, said once in one line, where the engine cannot or must not run.
    """
    if torch.compiler.is_compiling() or not _asked_to_predict(network, x):
        return None
    reason = _reason_against(network, x)
    if reason is None:
        try:
            engine(_stored_bytes())
        except PackedUnavailable as error:
            reason = str(error)
    if reason is not None:
        kind = "" if network.connection_block > 1 else "dense "  # those of blocks compute what is active
        _say(f"E2ENet predicts with torch's {kind}convolutions: {reason}.")
        return None
    _say(f"E2ENet predicts with packed sparse convolutions{_precision()} ({SWITCH}=0 switches them off).")
    with torch.device("cpu"):  # a default device of the caller is not meant for addresses
        pack = _pack(network)
        with pack.lock:
            return _program(pack, network, x)(x)


def reason_against_engine(network: Any) -> str | None:
    """Why the engine cannot compute `network` on this machine; None where it can."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"{SWITCH}=0"
    reason = reason_against(network)
    if reason is None:
        try:
            engine(_stored_bytes())
        except PackedUnavailable as error:
            reason = str(error)
    return reason


def release(network: Any) -> None:
    """Frees the packed weights and buffers of `network`."""
    with _packs_lock:
        _packs.pop(network, None)


def _asked_to_predict(network: Any, x: Tensor) -> bool:
    return (
        not network.training
        and not network.deep_supervision
        and x.device.type == "cpu"
        and x.ndim == 5
        and len(x) > 0
        and x.shape[1] == network.input_channels  # else torch says what is wrong
        and all(p.device.type == "cpu" for p in network.parameters())
        and not torch.jit.is_tracing()
    )


def _reason_against(network: Any, x: Tensor) -> str | None:
    switch = os.environ.get(SWITCH, "1")
    if switch == "0":
        return f"{SWITCH}=0"
    if switch not in ("1", "bf16"):
        return f"{SWITCH}={switch} is none of 0, 1 and bf16"
    if torch.is_grad_enabled():
        return "gradients are recorded (torch.no_grad() or torch.inference_mode() switches them off)"
    if type(x) is not Tensor:
        return f"the image is a {type(x).__name__} and no plain tensor"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if any(t.dtype != torch.float32 for t in (x, *network.parameters())):
        return "image or weights are not in float32"
    return reason_against(network)


def _stored_bytes() -> int:
    return 2 if os.environ.get(SWITCH) == "bf16" else 4


def _precision() -> str:
    """What is not in float32."""
    if _stored_bytes() == 4:
        return ""
    products = " in bfloat16" if engine(2).packed_dots() else ""
    return f"{products}, volumes in {str(stored_type(2)).removeprefix('torch.')}"


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        print(f"nnunet_ext: {line}")


def _pack(network: Any) -> _Pack:
    """The pack of the network as it is: made anew where one of its values is another than the pack was made of."""
    tensors = [*network.parameters(), *network.buffers()]
    with _packs_lock:
        pack = _packs.get(network)
        if pack is None or not pack.is_of(tensors):
            pack = _packs[network] = _Pack(tensors)
        return pack


def _program(pack: _Pack, network: Any, x: Tensor) -> Program:
    size = (*x.shape, torch.get_num_threads(), _stored_bytes())
    if pack.size != size:
        pack.program = None  # its memory first
        pack.program = Program(network, pack.weights, len(x), x.shape[2:], torch.get_num_threads(), _stored_bytes())
        pack.size = size
    assert pack.program is not None
    return pack.program
