"""What computes a network on the CPU: torch, a sparse engine that a network brings along, or OpenVINO."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nnunet_ext.errors import ConfigurationError

BACKENDS = ("auto", "torch", "sparse", "openvino")
SWITCH = "nnUNet_ext_packed"  # 0: networks with a sparse engine leave it alone


def check_backend(backend: str, device: str) -> None:
    """Refuses what cannot be before a model is loaded.

    Raises:
        ConfigurationError: the backend is for CPUs, or not installed.
    """
    if backend in ("sparse", "openvino") and device != "cpu":
        raise ConfigurationError(f"--backend {backend} is for CPUs. Add -device cpu, or leave it out.")
    if backend == "openvino":
        from nnunet_ext.prediction.openvino import import_openvino

        import_openvino()


def with_backend(networks: Sequence[nn.Module], backend: str, example: torch.Tensor) -> list[Any]:
    """The networks of a model as `backend` computes them; `example [1, C, *patch]` is what they are tried with.

    "auto" lets a network use a sparse engine that it brings along; torch computes the others.

    Raises:
        ConfigurationError: the backend cannot compute one of them; the text says why.
    """
    if backend == "torch":
        os.environ[SWITCH] = "0"
    if backend == "sparse":
        for network in networks:
            ask = getattr(network, "reason_against_sparse_engine", None)
            reason = "it has no sparse engine" if ask is None else ask()
            if reason is not None:
                raise ConfigurationError(
                    f"--backend sparse cannot compute {type(network).__name__}: {reason}. Use --backend torch."
                )
    if backend == "openvino":
        from nnunet_ext.prediction.openvino import cache_folder, to_openvino

        return [to_openvino(network, example, cache_folder()) for network in networks]
    return list(networks)
