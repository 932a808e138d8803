"""`nnunet_ext doctor`: whether nnU-Net can find and run our trainers and planners here, in plain words."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nnunet_ext.discovery.compatibility import TESTED_NNUNET, check_nnunet_version
from nnunet_ext.discovery.registry import PLANNERS, TRAINERS
from nnunet_ext.errors import ConfigurationError

GIB = 2**30

# Run in a fresh process, as nnU-Net's commands are; the look-ups are nnU-Net's own.
_PROBE = """
import json, sys
found = {"hook": any(getattr(f, "__module__", "") == "nnunet_ext.discovery.startup" for f in sys.meta_path)}
names = json.loads(sys.argv[1])
def attempt(find):
    try:
        cls = find()
        return {"class": None if cls is None else f"{cls.__module__}.{cls.__qualname__}"}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"}
try:
    import contextlib, io
    with contextlib.redirect_stdout(io.StringIO()):
        import nnunetv2
        from os.path import join
        from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
        for name in names["trainers"]:
            found[name] = attempt(lambda: recursive_find_trainer_class_by_name(name))
        folder = join(nnunetv2.__path__[0], "experiment_planning")
        for name in names["planners"]:
            found[name] = attempt(lambda: recursive_find_python_class(folder, name, "nnunetv2.experiment_planning"))
        import torch
        found["gpus"] = [
            (torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)) for i in range(torch.cuda.device_count())
        ]
        found["mps"] = torch.backends.mps.is_available()
except BaseException as error:
    found["error"] = f"{type(error).__name__}: {error}"
print("\\nPROBE" + json.dumps(found))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    """Prints one line per check; 1 when something is broken, else 0."""
    print("Asking a fresh Python, which takes some seconds ...", flush=True)
    probe = _probe()
    broken = 0
    for ok, text in (*_versions(), *_discovery(probe), *_folders(), *_memory(probe)):
        broken += not ok
        print(f"{'ok     ' if ok else 'BROKEN '} {text}")
    print("\nAll is well." if not broken else f"\n{broken} check{'s' if broken > 1 else ''} failed.")
    return 1 if broken else 0


def _versions() -> Iterator[tuple[bool, str]]:
    yield sys.version_info >= (3, 10), f"Python {platform.python_version()} (needs 3.10 or newer)"
    try:
        yield True, f"nnunetv2 {check_nnunet_version()} (tested range {TESTED_NNUNET})"
    except ConfigurationError as error:
        yield False, str(error)
    for name in ("nnunet-ext", "torch", "batchgenerators", "SimpleITK", "numpy", "dynamic-network-architectures"):
        try:
            yield True, f"{name} {version(name)}"
        except PackageNotFoundError:
            yield False, f"{name} is not installed. Run: pip install {name}"


def _probe() -> dict:
    names = json.dumps({"trainers": list(TRAINERS), "planners": list(PLANNERS)})
    with tempfile.TemporaryDirectory() as empty:  # a folder named nnunet_ext here would shadow the installed package
        result = subprocess.run(
            [sys.executable, "-c", _PROBE, names], cwd=empty, capture_output=True, text=True, timeout=600
        )
    lines = [line for line in result.stdout.splitlines() if line.startswith("PROBE")]
    if not lines:
        return {"error": f"a fresh Python ended with {result.returncode}: {result.stderr.strip()[-500:]}"}
    return json.loads(lines[-1].removeprefix("PROBE"))


def _discovery(probe: dict) -> Iterator[tuple[bool, str]]:
    if "error" in probe:
        yield False, f"nnU-Net could not be asked in a fresh Python: {probe['error']}"
    yield (
        bool(probe.get("hook")),
        "the start-up file nnunet_ext.pth is active"
        if probe.get("hook")
        else "the start-up file nnunet_ext.pth is not active, so nnU-Net cannot see our classes. Reinstall with pip "
        "into this environment, or put 'python -m nnunet_ext' before each nnU-Net command",
    )
    for name, module in {**TRAINERS, **PLANNERS}.items():
        answer = probe.get(name, {})
        if answer.get("class") == f"{module}.{name}":
            yield True, f"{name} is found by nnU-Net as {answer['class']}"
        else:
            reason = answer.get("error") or f"nnU-Net's search returned {answer.get('class')}"
            yield False, f"{name} is not found by nnU-Net: {reason}"


def _folders() -> Iterator[tuple[bool, str]]:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(name)
        if not value:
            yield False, f"{name} is not set. Run: export {name}=/path/to/{name} (a folder that you choose)"
        elif not Path(value).is_dir():
            yield False, f"{name} is {value}, which is not a folder. Create it: mkdir -p {value}"
        elif not os.access(value, os.W_OK if name != "nnUNet_raw" else os.R_OK):
            yield False, f"{name} is {value}, which you may not {'write' if name != 'nnUNet_raw' else 'read'}"
        else:
            yield True, f"{name} is {value} ({shutil.disk_usage(value).free / GIB:.0f} GiB free)"


def _memory(probe: dict) -> Iterator[tuple[bool, str]]:
    free = _free_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield True, f"{cores} CPU cores" + ("" if free is None else f", {free / GIB:.1f} GiB of memory free")
    for name, available, total in probe.get("gpus", []):
        yield True, f"GPU {name}: {available / GIB:.1f} of {total / GIB:.1f} GiB free"
    if not probe.get("gpus"):
        yield True, "Apple GPU: use -device mps" if probe.get("mps") else "no GPU: use -device cpu"


def _free_memory() -> int | None:
    """Bytes that can be allocated, where the system tells."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
