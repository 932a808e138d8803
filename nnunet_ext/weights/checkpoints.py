"""Reading files of torch without unpickling code: tensors, plain containers, numpy arrays and scalars only."""

import _codecs
import os
import pathlib
import pickle
import re
from typing import Any

import numpy as np
import torch

from nnunet_ext.errors import ConfigurationError

# These types carry numbers, texts and paths, no code. numpy 2 renamed the module; files hold the name of the numpy that
# wrote them.
_NUMPY: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((np.zeros(1).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    _codecs.encode,
    *{type(np.dtype(name)) for name in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?USMm"},
    pathlib.PosixPath,
    pathlib.PurePosixPath,
]


def load_data(path: str | os.PathLike, lazily: bool = False) -> Any:
    """What `torch.save` wrote, with all tensors on the CPU; errors are torch's, `UnpicklingError` for anything else.

    `lazily`: tensors stay in the file until they are used, which is for looking at the rest.
    """
    with torch.serialization.safe_globals(_NUMPY):
        return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=lazily or None)


def refused(error: Exception) -> str:
    """Which type torch refused, without its advice to open the file all the same."""
    found = re.search(r"(?:GLOBAL|Unsupported (?:class|global):? (?:GLOBAL )?)\s*([\w.]+)", str(error))
    return f" It holds a {found[1]}." if found else ""


def read_checkpoint(path: str | os.PathLike, lazily: bool = False) -> dict[str, Any]:
    """The dict of a `checkpoint_*.pth`, with all tensors on the CPU; `lazily` as in `load_data`.

    Raises:
        ConfigurationError: the file is missing, damaged, or holds more than data.
    """
    try:
        checkpoint = load_data(path, lazily)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"The checkpoint {path} holds more than weights and numbers, or is damaged; it was not opened, because "
            f"opening it could run code.{refused(error)}"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigurationError(f"The checkpoint {path} cannot be read ({error}). Use another one.") from error
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise ConfigurationError(f"{path} is not an nnU-Net checkpoint: it has no 'network_weights'.")
    return checkpoint
