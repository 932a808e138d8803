"""Reading nnU-Net checkpoints without unpickling code: tensors, plain containers and numpy scalars only."""

import os
import pickle
from typing import Any

import numpy as np
import torch

from nnunet_ext.errors import ConfigurationError

# nnU-Net's checkpoints hold their log as numpy scalars; these types carry numbers, no code.
_NUMPY = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *{type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")},
]


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """The dict of a `checkpoint_*.pth`, with all tensors on the CPU.

    Raises:
        ConfigurationError: the file is missing, damaged, or holds more than data.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"The checkpoint {path} holds more than weights and numbers, or is damaged; it was not opened. "
            f"({str(error).splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigurationError(f"The checkpoint {path} cannot be read ({error}). Use another one.") from error
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise ConfigurationError(f"{path} is not an nnU-Net checkpoint: it has no 'network_weights'.")
    return checkpoint
