"""What this machine computes with."""

import os
import platform
from pathlib import Path

from nnunet_ext.errors import ConfigurationError

THREADS = "nnUNet_ext_threads"


def chosen_device(asked: str) -> str:
    """The device: "auto" is CUDA where there is a GPU, else the CPU.

    Raises:
        ConfigurationError: the device that was asked for is not there.
    """
    import torch

    if asked == "cpu":
        return asked
    if asked == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigurationError("torch finds no Apple GPU (mps). Use --device cpu.")
        return asked
    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise ConfigurationError("torch finds no CUDA GPU. Use --device cpu.")
    return "cpu"


def best_device() -> str:
    """What this machine has: CUDA, else an Apple GPU, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_words(device: str | None = None) -> list[str]:
    """What nnU-Net's commands must be told to compute on `device` (default: `best_device`); nothing for CUDA."""
    device = device or best_device()
    return [] if device == "cuda" else ["-device", device]


def processor() -> str:
    """What the CPU calls itself, or at least its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    facts = ((name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
    names = [value for name, value in facts if name == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def cpus() -> int:
    """CPU cores that this process may use: not those of other jobs on a cluster, nor what a container is kept from."""
    from joblib import cpu_count

    return cpu_count()


def cpu_threads() -> int:
    """Threads to compute with on a CPU: one for each of `cpus`, or fewer where the variable nnUNet_ext_threads says so.

    nnU-Net's commands take one for each core of the machine, which wait for each other at every layer where the
    process may use fewer or shares them with another. OMP_NUM_THREADS does not count, as it does not for nnU-Net: it is
    often 1, for the processes that augment.

    Raises:
        ConfigurationError: the variable is not a number of threads.
    """
    asked = os.environ.get(THREADS) or str(cpus())
    if not asked.isdecimal() or int(asked) < 1:
        raise ConfigurationError(f"The variable {THREADS} must be a number of threads from 1, found '{asked}'.")
    return min(int(asked), cpus())
