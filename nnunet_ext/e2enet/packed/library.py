"""The engine as a shared library: compiled once for this user, source, compiler and processor, then loaded."""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from nnunet_ext.files import is_private, make_private, user_cache

SOURCE = Path(__file__).with_name("engine.cpp")
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-ffp-contract=fast"]
FLAGS += ["-falign-loops=32", "-fno-schedule-insns2"]  # measured with GCC 12: 2 to 5 % of the time
# torch's name of what the processor can do -> floats in a vector, and the compiler's flags for it
INSTRUCTION_SETS = {
    "AVX512": (16, ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"]),
    "AVX2": (8, ["-mavx2", "-mfma", "-mf16c"]),
    "portable": (4, []),
}
PROCESSORS = ("x86_64", "amd64", "aarch64", "arm64")
SECONDS_TO_COMPILE = 300


class PackedUnavailable(Exception):
    """The engine cannot run here; the text says why."""


class Channel(ctypes.Structure):
    """One input channel of a layer; see engine.cpp."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("data", "scale", "offset", "mask", "before", "after")]


class Layer(ctypes.Structure):
    """One layer; see engine.cpp."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in (
                *("kind", "in_channels", "in_h", "in_w", "in_lanes"),
                *(
                    "out_channels",
                    "out_h",
                    "out_w",
                    "out_lanes",
                    "in_row",
                    "out_row",
                    "out_plane",
                    "stride_d",
                    "stride_h",
                    "stride_w",
                ),
                *("copies", "depth", "segments", "in_depth", "rows", "tile", "pairs"),
                *("row_blocks", "column_blocks", "lane_blocks", "output_blocks", "group", "logits"),
            )
        ),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("channels", "starts", "inputs", "weights", "out"),
                *("gamma", "beta", "scale", "offset", "sums"),
            )
        ),
        ("epsilon", ctypes.c_float),
        ("slope", ctypes.c_float),
    ]


_engines: dict[int, "ctypes.CDLL | str"] = {}  # by stored bytes; a text says why there is none
_loading = threading.Lock()


def engine(stored_bytes: int = 4) -> ctypes.CDLL:
    """The engine for this processor, compiled where it is not in the cache; volumes of 4 bytes or, less exact, 2.

    It is tried once in a process: what failed fails again at once.

    Raises:
        PackedUnavailable: no compiler, a compiler that fails, or a processor that the engine does not know.
    """
    if stored_bytes not in _engines:
        with _loading:
            if stored_bytes not in _engines:
                try:
                    _engines[stored_bytes] = _made_engine(stored_bytes)
                except PackedUnavailable as error:
                    _engines[stored_bytes] = str(error)
    found = _engines[stored_bytes]
    if isinstance(found, str):
        raise PackedUnavailable(found)
    return found


def _after_fork() -> None:
    global _loading
    _loading = threading.Lock()  # another thread of the parent may have held the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _made_engine(stored_bytes: int) -> ctypes.CDLL:
    lanes, flags = instruction_set()
    command = [*compiler(), *FLAGS, *flags, f"-DLANES={lanes}"]
    if stored_bytes == 2:
        command += ["-DHALF", *(["-mavx512bf16"] if has_bfloat16_products() else [])]
    path = cached_library(command)
    if path is not None:
        try:
            return _load(path, lanes, stored_bytes)
        except PackedUnavailable:  # damaged, or a folder from which nothing may run
            with contextlib.suppress(OSError):
                path.unlink()  # the next process compiles again
    try:
        with tempfile.TemporaryDirectory(prefix="nnunet_ext-") as own:
            path = Path(own) / "engine.so"
            _compile(command, path)
            return _load(path, lanes, stored_bytes)
    except OSError as error:
        raise PackedUnavailable(f"no temporary folder can be used ({error})") from error


def _load(path: Path, lanes: int, stored_bytes: int) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        layer = ctypes.POINTER(Layer)
        library.packed_scratch.argtypes = [layer]
        library.packed_scratch.restype = ctypes.c_int64
        library.packed_run.argtypes = [layer, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64]
        library.packed_run.restype = None
        found = library.packed_lanes(), library.packed_stored_size(), library.packed_layer_size()
    except (OSError, AttributeError) as error:
        raise PackedUnavailable(f"the compiled library does not load ({error})") from error
    if found != (lanes, stored_bytes, ctypes.sizeof(Layer)):
        raise PackedUnavailable("the compiled library lays its data out in another way than this Python")
    return library


def found_here() -> tuple[bool, str]:
    """Whether the engine runs on this machine, and why not; for `doctor`. Compiles it where it is not in the cache."""
    try:
        engine()
        return True, f"E2ENet: the CPU engine was compiled by {' '.join(compiler())} and loads"
    except PackedUnavailable as error:
        return False, f"E2ENet: predicts on CPUs with torch's dense convolutions, which takes longer: {error}"


def stored_type(stored_bytes: int) -> torch.dtype:
    """Of the volumes; of 2 bytes it is float16 where the processor converts it to float32, else bfloat16."""
    if stored_bytes == 4:
        return torch.float32
    return torch.float16 if engine(stored_bytes).packed_float16() else torch.bfloat16


def has_bfloat16_products() -> bool:
    """Whether the processor multiplies pairs of bfloat16 in vectors of 16 floats (AVX512_BF16)."""
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return instruction_set()[0] == 16 and asked is not None and bool(asked())


def instruction_set() -> tuple[int, list[str]]:
    """Floats in a vector and the compiler's flags for this processor.

    Raises:
        PackedUnavailable: neither x86-64 nor 64-bit ARM, or Windows.
    """
    if sys.platform not in ("linux", "darwin"):
        raise PackedUnavailable(f"the engine is built on Linux and macOS only, this is {sys.platform}")
    if platform.machine().lower() not in PROCESSORS:
        raise PackedUnavailable(f"the processor {platform.machine()} is unknown to the engine")
    capability = torch.backends.cpu.get_cpu_capability()
    return INSTRUCTION_SETS.get(capability, INSTRUCTION_SETS["portable"])


def compiler() -> list[str]:
    """The system's C++ compiler: $CXX with its arguments, or the first of c++, g++, clang++ in the PATH.

    Raises:
        PackedUnavailable: there is none.
    """
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise PackedUnavailable(f"CXX={os.environ['CXX']} cannot be read ({error})") from error
    for name in chosen[:1] or ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path:
            return [path, *chosen[1:]]
    if chosen:
        raise PackedUnavailable(f"the C++ compiler {chosen[0]}, which CXX names, was not found")
    raise PackedUnavailable("no C++ compiler was found (looked for $CXX, c++, g++, clang++)")


def cache_folder() -> Path | None:
    """`nnunet_ext/packed` in the user's cache folder ($XDG_CACHE_HOME, by default ~/.cache); None without a home."""
    return user_cache("packed")


def cached_library(command: list[str]) -> Path | None:
    """The library that `command` makes of the source, in the cache; None where no cache can be used.

    Only a folder and a file that belong to this user, and that nobody else may write, are used: what lies there runs.

    Raises:
        PackedUnavailable: the compiler fails.
    """
    key = hashlib.sha256(SOURCE.read_bytes())
    for word in (*command, _version_of(command[0])):
        key.update(b"\0" + os.fsencode(word))
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / f"engine-{key.hexdigest()[:20]}.so"
    try:
        if not make_private(folder):
            return None
        if not is_private(path):
            with _lock(path.with_suffix(".lock")):
                if not is_private(path):  # else another process was faster
                    _compile(command, path)
        return path
    except OSError:  # no place, read-only, full
        return None


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl  # not on Windows

    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: list[str], path: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, str(SOURCE), "-o", temporary],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS_TO_COMPILE,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no message"]
            raise PackedUnavailable(f"the compiler {command[0]} failed: {lines[0].strip()}")
        os.chmod(temporary, 0o700)
        os.replace(temporary, path)
    except subprocess.TimeoutExpired as error:
        raise PackedUnavailable(f"the compiler {command[0]} took over {SECONDS_TO_COMPILE} s") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _version_of(path: str) -> str:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackedUnavailable(f"the compiler {path} does not run ({error})") from error
    return done.stdout.decode(errors="replace")
