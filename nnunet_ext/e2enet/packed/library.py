"""The engine as a shared library: compiled once for this user, source, compiler and processor, then loaded."""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("engine.cpp")
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-ffp-contract=fast"]
FLAGS += ["-falign-loops=32", "-fno-schedule-insns2"]  # measured with GCC 12: 2 to 5 % of the time
# torch's name of what the processor can do -> floats in a vector, and the compiler's flags for it
INSTRUCTION_SETS = {
    "AVX512": (16, ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"]),
    "AVX2": (8, ["-mavx2", "-mfma"]),
    "portable": (4, []),
}
PROCESSORS = ("x86_64", "amd64", "aarch64", "arm64")
SECONDS_TO_COMPILE = 300


class PackedUnavailable(Exception):
    """The engine cannot run here; the text says why."""


class Channel(ctypes.Structure):
    """One input channel of a layer; see engine.cpp."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("data", "scale", "offset", "mask")]


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
                *("copies", "depth", "rows", "tile"),
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


@functools.cache
def engine(stored_bytes: int = 4) -> ctypes.CDLL:
    """The engine for this processor, compiled where it is not in the cache; volumes in float32 or, 2 bytes, bfloat16.

    Raises:
        PackedUnavailable: no compiler, a compiler that fails, or a processor that the engine does not know.
    """
    lanes, flags = instruction_set()
    command = [compiler(), *FLAGS, *flags, f"-DLANES={lanes}", *(["-DBFLOAT16"] if stored_bytes == 2 else [])]
    with compiled(command) as path:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            path.unlink(missing_ok=True)  # the next process compiles again
            raise PackedUnavailable(f"the compiled library does not load ({error})") from error
    library.packed_scratch.argtypes = [ctypes.POINTER(Layer)]
    library.packed_scratch.restype = ctypes.c_int64
    library.packed_run.argtypes = [
        ctypes.POINTER(Layer),
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
    ]
    library.packed_run.restype = None
    found = library.packed_lanes(), library.packed_stored_size(), library.packed_layer_size()
    if found != (lanes, stored_bytes, ctypes.sizeof(Layer)):
        raise PackedUnavailable("the compiled library lays its data out in another way than this Python")
    return library


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


def compiler() -> str:
    """The system's C++ compiler: $CXX, or the first of c++, g++, clang++ in the PATH.

    Raises:
        PackedUnavailable: there is none.
    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise PackedUnavailable("no C++ compiler was found (looked for $CXX, c++, g++, clang++)")


def cache_folder() -> Path:
    """`nnunet_ext/packed` in the user's cache folder ($XDG_CACHE_HOME, by default ~/.cache)."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "nnunet_ext" / "packed"


@contextlib.contextmanager
def compiled(command: list[str]) -> Iterator[Path]:
    """The library that `command` makes of the source: from the cache, or from a folder that goes away afterwards."""
    key = hashlib.sha256(SOURCE.read_bytes())
    for word in (*command, _version_of(command[0])):
        key.update(b"\0" + word.encode())
    folder = cache_folder()
    path = folder / f"engine-{key.hexdigest()[:20]}.so"
    if path.is_file():
        yield path
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_suffix(".lock")):
            if not path.is_file():  # another process was faster
                _compile(command, path)
    except OSError:  # no home, read-only, full: this process compiles for itself
        with tempfile.TemporaryDirectory(prefix="nnunet_ext-") as own:
            path = Path(own) / "engine.so"
            _compile(command, path)
            yield path
        return
    yield path


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl  # not on Windows

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: list[str], path: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, str(SOURCE), "-o", temporary],
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_COMPILE,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no message"]
            raise PackedUnavailable(f"the compiler {command[0]} failed: {lines[0].strip()}")
        os.replace(temporary, path)
    except subprocess.TimeoutExpired as error:
        raise PackedUnavailable(f"the compiler {command[0]} took over {SECONDS_TO_COMPILE} s") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _version_of(path: str) -> str:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackedUnavailable(f"the compiler {path} does not run ({error})") from error
    return done.stdout
