"""Pretrained weights of the backbone: found, read without running code, checked, and copied into a network once.

Files come from timm's hub (through the Hugging Face cache) or from the user: `.safetensors`, `.pth`, `.pt`, `.bin`,
`.ckpt`, `.tar` (torch, weights only; MoCo v3's too) and `.npz` (Google's ViT). `backbones` fits them to the network's
channels, grid and depths.
"""

import pickle
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import sha256_of
from nnunet_ext.med_tuning.backbones import vit_state_from_npz
from nnunet_ext.med_tuning.network import BACKBONE
from nnunet_ext.med_tuning.options import MedTuningOptions

# What repositories of timm's weights call their file; timm tries the same.
_HUB_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class WeightsRecord:
    """What a training started from: timm's name, where the file came from, its SHA256, tensors that were taken, and

    what stood before their names in the file.
    """

    backbone: str
    source: str
    sha256: str
    tensors: int
    prefix: str = ""

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values; an empty prefix is left out."""
        return {key: value for key, value in asdict(self).items() if key != "prefix" or value}


def wanted(tuning: str, options: MedTuningOptions) -> bool:
    """Whether a training starts from pretrained weights."""
    return options.pretrained and tuning != "scratch"


def find_weights(backbone: str, options: MedTuningOptions) -> tuple[Path, str]:
    """The file with the weights of a timm model, and where it is from; downloads it if it must.

    Raises:
        ConfigurationError: there is no such file, and no way to it.
    """
    if options.weights_file is not None:
        path = Path(options.weights_file).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"The weights_file {path.absolute()} does not exist.")
        return path, f"file {path.name}"
    repository, names = _hub_place(backbone)
    if repository is None:
        raise ConfigurationError(
            f"timm has no weights for {backbone}: give a file (nnunet_ext plan --set weights_file=FILE), or train "
            f"from random weights (--set pretrained=false)."
        )
    return _from_hub(backbone, repository, names), f"hub {repository}"


def is_at_hand(backbone: str, options: MedTuningOptions) -> bool:
    """Whether the weights are on this machine."""
    if options.weights_file is not None:
        return Path(options.weights_file).expanduser().is_file()
    repository, names = _hub_place(backbone)
    return repository is not None and _cached(repository, names) is not None


def _hub_place(backbone: str) -> tuple[str | None, tuple[str, ...]]:
    config = timm.get_pretrained_cfg(backbone)
    if config is None or not config.hf_hub_id:
        return None, ()
    return config.hf_hub_id, (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES


def _cached(repository: str, names: tuple[str, ...]) -> Path | None:
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _from_hub(backbone: str, repository: str, names: tuple[str, ...]) -> Path:
    cached = _cached(repository, names)  # asked first, so that no network is needed where the file is at hand
    if cached is not None:
        return cached
    reason = "none of its files is known"
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:
            reason = "this machine is offline"
            break
        except EntryNotFoundError:
            continue
        except Exception as error:  # whatever its client raises: the sentence below is what helps
            reason = _first_line(error)
            break
    raise ConfigurationError(
        f"The pretrained weights of {backbone} are not on this machine and cannot be downloaded ({reason}): either "
        f"download {names[0]} of {repository} from the Hugging Face hub elsewhere and name the file with 'nnunet_ext "
        f"plan --set weights_file=FILE', or train from random weights with '--set pretrained=false'."
    )


def read_weights(path: Path, backbone: str) -> dict[str, Any]:
    """The content of a weights file, on the CPU, without running code of it.

    Raises:
        ConfigurationError: the file is damaged, holds more than data, or is an .npz file of another model.
    """
    try:
        if path.suffix == ".npz":
            with torch.random.fork_rng(devices=[]):  # timm's model, into which the arrays are read, draws weights
                content: Any = vit_state_from_npz(backbone, str(path))
        elif path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (KeyError, IndexError, AttributeError) as error:
        raise ConfigurationError(f"The weights file {path} does not fit {backbone}: it lacks {error}.") from error
    except pickle.UnpicklingError as error:
        raise _more_than_tensors(path, error) from error
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise _more_than_tensors(path, error) from error
        raise _damaged(path, error) from error
    except RuntimeError as error:
        if path.suffix == ".npz":  # tensors of other shapes
            raise ConfigurationError(f"The weights file {path} does not fit {backbone}: {error}.") from error
        raise _damaged(path, error) from error
    except (SafetensorError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"The weights file {path} holds no state dict but a {type(content).__name__}.")
    return content


def _more_than_tensors(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"The weights file {path} holds more than tensors (opening it could run code) or is damaged; it was not opened."
        f" Use a .safetensors file, or save its state dict as one where you trust it. ({_first_line(error)})"
    )


def _damaged(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"The weights file {path} is damaged or incomplete; get it again. ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def fitting_weights(network: Any, options: MedTuningOptions) -> tuple[dict[str, Tensor], WeightsRecord]:
    """The pretrained part of the state dict of a `MedTuningNet` (which may be on the meta device), and its record.

    Raises:
        ConfigurationError: no file, a damaged or unsuitable one, or another SHA256 than the options say.
    """
    name = network.backbone_name
    path, source = find_weights(name, options)
    digest = sha256_of(path)
    if options.weights_sha256 not in (None, digest):
        raise ConfigurationError(
            f"The weights file {path} has SHA256 {digest}, but the plans say weights_sha256 {options.weights_sha256}."
        )
    content = read_weights(path, name)
    own = network.backbone.state_dict()
    try:
        fitted = network.backbone_state_from_timm(content)
        missing = fitted.missing
    except ConfigurationError as error:
        raise ConfigurationError(f"The weights file {path} does not fit {name}: {error}.") from error
    except (AttributeError, KeyError, IndexError, ValueError, RuntimeError, TypeError, AssertionError):
        # timm's converters stumble over tensors of another architecture
        missing = [key for key, value in own.items() if getattr(content.get(key), "shape", None) != value.shape]
    matched = len(own) - len(missing)
    if missing:
        raise ConfigurationError(
            f"The weights file {path} does not fit {name}: {matched} of {len(own)} tensors match by name and shape "
            f"({100 * matched / len(own):.0f} %), for example not {missing[0].removeprefix('backbone.')}. Choose the "
            f"backbone that the file is of, or another file."
        )
    if fitted.foreign:
        raise ConfigurationError(
            f"The weights file {path} does not fit {name}: its network computes with {len(fitted.foreign)} tensors "
            f"that this one does not have, for example {', '.join(fitted.foreign[:3])}, so that the features would be "
            f"others. Choose the backbone that the file is of, or another file."
        )
    if not all(bool(value.isfinite().all()) for value in fitted.state.values()):
        raise ConfigurationError(f"The weights file {path} holds values that are not finite. Get it again.")
    return fitted.state, WeightsRecord(name, source, digest, matched, fitted.prefix)


def load_into(network: Any, options: MedTuningOptions) -> WeightsRecord:
    """Copies the pretrained weights into the network, in place.

    Raises:
        ConfigurationError: as `fitting_weights`.
    """
    state, record = fitting_weights(network, options)
    network.load_state_dict(state, strict=False)  # all that belongs to the backbone is there: see above
    return record


def check_plan(network: Any, options: MedTuningOptions) -> None:
    """What `nnunet_ext plan` asks before it writes plans: are the weights there, and do they fit?

    Raises:
        ConfigurationError: as `fitting_weights`.
    """
    if wanted(network.tuning_name, options):
        fitting_weights(network, options)


def found_here() -> tuple[bool, str]:
    """Whether the weights of the default backbone are on this machine, and where they would go; for `doctor`."""
    place = f"the Hugging Face cache {HF_HUB_CACHE}"
    if is_at_hand(BACKBONE, MedTuningOptions()):
        return True, f"Med-Tuning: the weights of {BACKBONE} are in {place}"
    return False, (
        f"Med-Tuning: the weights of {BACKBONE} are not in {place}; its first training downloads them there, "
        f"or give a file (nnunet_ext plan --set weights_file=FILE)"
    )
