"""The random numbers of a process, kept in a checkpoint as tensors and plain values."""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The states of the generators that training draws from in this process: torch's, numpy's, Python's."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Continues from `random_state()`."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def mixed_seed(*numbers: int) -> int:
    """One 32-bit seed from several small numbers, unrelated to that of their neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
