"""Networks converted to OpenVINO, which predicts on CPUs: `to_openvino(network, example)`.

torch.export takes the network's operations out of its Python code, which fails where they depend on the values of the
image; OpenVINO converts and compiles them for one size of input. What comes out is compared with torch before it is
used, and kept in the user's cache folder under a digest of all that it was made of.
"""

import hashlib
import importlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import is_private, make_private, user_cache, write_atomically
from nnunet_ext.prediction.graph import apart, first_line, fixed_graph, quiet, refuse_by_name

# Largest difference from torch's logits, as a share of their range. In float32 both round, which networks of many
# layers amplify: tiny DiNTS networks differ by 1e-4, as much as torch itself does from float64. bfloat16 has 8 bits.
BOUNDS = {"f32": 1e-3, "bf16": 0.1}
KEPT = 2  # compiled networks in memory: the usual batch, and the smaller one at the end of an image
ADVICE = "Predict with --backend torch."
_FILE = b"nnunet_ext openvino 1\n"  # how the files of the cache begin, before digest and content
_said: set[str] = set()


def to_openvino(
    network: nn.Module, example: Tensor, cache: Path | None = None, precision: str = "f32"
) -> "OpenVINONetwork":
    """`network`, in evaluation with its weights loaded, for OpenVINO on the CPU.

    Args:
        network: takes `[B, C, *patch]` and returns logits `[B, K, *patch]`.
        example: `[1, C, *patch]`, on which the result is compared with torch.
        cache: folder for converted networks, such as `cache_folder()`; None keeps none.
        precision: "f32", or "bf16" for processors that compute in bfloat16.

    Raises:
        ConfigurationError: OpenVINO is not installed, cannot convert the network, or computes other logits.
    """
    converted = OpenVINONetwork(network, cache, precision)
    converted.prepare(example)
    return converted


def cache_folder() -> Path | None:
    """`nnunet_ext/openvino` in the user's cache folder; None without a home, which one printed line says."""
    folder = user_cache("openvino")
    if folder is None:
        _say("converted networks are not kept: there is no home for a cache. Set XDG_CACHE_HOME.")
    return folder


class OpenVINONetwork(nn.Module):
    """A torch network that OpenVINO computes, as nnU-Net's predictor uses one; see `to_openvino`.

    `load_state_dict` is the network's own, for the next fold: what is computed follows the weights.
    """

    def __init__(self, network: nn.Module, cache: Path | None = None, precision: str = "f32") -> None:
        super().__init__()
        if precision not in BOUNDS:
            raise ConfigurationError(f"The precision must be one of {', '.join(BOUNDS)}, found {precision!r}.")
        self.network, self.precision = network.eval(), precision
        self.name = type(network).__name__
        self._cache = cache
        self._openvino = import_openvino()
        self._core = self._openvino.Core()
        self._compiled: OrderedDict[tuple, Any] = OrderedDict()
        self._weights = _digest(network.state_dict())
        self._lock = threading.Lock()  # a compiled network has one set of buffers
        refuse_by_name(network, "OpenVINO", ADVICE)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """`x [B, C, *patch]` on the CPU -> logits `[B, K, *patch]`, a float32 tensor of the caller's own.

        Raises:
            ConfigurationError: `x` is on another device, or this size cannot be converted.
        """
        with self._lock:
            compiled = self._compiled_for(x)
            result = compiled([x.detach().float().contiguous().numpy()], share_inputs=True, share_outputs=True)[0]
            return torch.from_numpy(result).clone()  # the next call writes into OpenVINO's buffer again

    def prepare(self, x: Tensor) -> None:
        """Converts for the size of `x`, and compares with torch on it."""
        with self._lock:
            self._compiled_for(x)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The network's own; nnU-Net's predictor loads the same weights again for every image."""
        result = self.network.load_state_dict(state_dict, *args, **kwargs)
        self._weights = _digest(self.network.state_dict())
        return result

    def _compiled_for(self, x: Tensor) -> Any:
        if x.device.type != "cpu":
            raise ConfigurationError(f"OpenVINO predicts on the CPU, the image is on {x.device}. Use -device cpu.")
        if self.training:
            raise ConfigurationError("OpenVINO only predicts: call .eval() first, and train the torch network.")
        key = (self._weights, tuple(x.shape), torch.get_num_threads())
        if key not in self._compiled:
            while len(self._compiled) >= KEPT:  # their memory first
                self._compiled.popitem(last=False)
            self._compiled[key] = self._made(x)
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def _made(self, x: Tensor) -> Any:
        """OpenVINO's network for the size of `x`, from the cache or converted now."""
        x = x.detach().float().contiguous()
        with quiet():
            exported = fixed_graph(self.network, x, "OpenVINO", ADVICE)
            settings = {
                "INFERENCE_PRECISION_HINT": self.precision,  # else OpenVINO takes bfloat16 where there is hardware
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
            }
            path = None if self._cache is None else self._cache / f"{self._key(exported, x)}.blob"
            compiled = self._from_cache(path, settings, x)
            if compiled is None:
                compiled = self._core.compile_model(self._converted(exported, x), "CPU", settings)
                self._check(exported, compiled, x)
                if path is not None:
                    _store(path, compiled)
        return compiled

    def _converted(self, exported: Any, x: Tensor) -> Any:
        # Traced once more: of a trace OpenVINO knows norms and activations, of an exported program only their parts.
        try:
            with torch.no_grad():
                traced = torch.jit.trace(exported.module(), x, check_trace=False)
            return self._openvino.convert_model(traced, example_input=x, input=list(x.shape))
        except Exception as error:  # OpenVINO's are of many kinds
            raise ConfigurationError(
                f"{self.name} cannot be converted to OpenVINO: it does not know an operation, or not for "
                f"{list(x.shape)} ({first_line(error)}). {ADVICE}"
            ) from error

    def _check(self, exported: Any, compiled: Any, x: Tensor) -> None:
        # The exported operations in torch, not `self.network`: E2ENet would take its own engine.
        with torch.no_grad():
            expected = exported.module()(x)
        found = torch.from_numpy(compiled([x.numpy()])[0])
        if found.shape != expected.shape:
            raise ConfigurationError(
                f"{self.name} gives {list(expected.shape)} in torch and {list(found.shape)} in OpenVINO. {ADVICE}"
            )
        share, bound = apart(expected, found)["relative to range"], BOUNDS[self.precision]
        if not share <= bound:  # NaN too
            raise ConfigurationError(
                f"{self.name} computes other logits in OpenVINO than in torch: they differ by {share:.2g} of their "
                f"range, allowed is {bound:g} in {self.precision}. {ADVICE}"
            )

    # the cache

    def _key(self, exported: Any, x: Tensor) -> str:
        """A digest of the operations, the weights, and all that compiles them."""
        words = [
            self._openvino.get_version(),
            torch.__version__,
            self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            *self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
            self.precision,
            f"{type(self.network).__module__}.{type(self.network).__qualname__}",
            str(tuple(x.shape)),
            str(exported.graph),
            str(exported.graph_signature),
            _digest({**exported.state_dict, **{f"constant {k}": v for k, v in exported.constants.items()}}),
        ]
        return hashlib.sha256("\0".join(words).encode()).hexdigest()

    def _from_cache(self, path: Path | None, settings: dict[str, Any], x: Tensor) -> Any:
        """What was stored, or None: a file that is not as we wrote it is not shown to OpenVINO."""
        try:
            if path is None or not is_private(path.parent) or not is_private(path):
                return None
            content = path.read_bytes()
        except OSError:
            return None
        header, blob = content[: len(_FILE) + 32], content[len(_FILE) + 32 :]
        if header != _FILE + hashlib.sha256(blob).digest():
            return None
        try:
            return self._core.import_model(blob, "CPU", settings)
        except RuntimeError:  # OpenVINO knows it no longer
            return None


def _store(path: Path, compiled: Any) -> None:
    try:
        if not make_private(path.parent):
            raise PermissionError("it is not this user's alone")
        blob = compiled.export_model().getvalue()
        write_atomically(path, lambda file: file.write(_FILE + hashlib.sha256(blob).digest() + blob))
        path.chmod(0o600)
    except OSError as error:  # no place, read-only, full
        _say(f"converted networks are not kept: {path.parent} cannot be used ({error.strerror or error}).")


def _digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def import_openvino() -> Any:
    """The package, without its telemetry: it would report the import and every conversion.

    Raises:
        ConfigurationError: it is not installed, or does not load.
    """
    name = "openvino_telemetry"
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment] # looks as if it were not installed, which openvino allows
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise ConfigurationError(
            f'The backend openvino needs OpenVINO ({error}). Run: pip install "nnunet-ext[openvino]"'
        ) from error
    finally:
        if hidden:
            del sys.modules[name]


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        print(f"nnunet_ext: {line}")
