"""Whether nnU-Net can find and run our trainers and planners here, in plain words, one cause once."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any, Literal

from nnunet_ext.discovery.compatibility import TESTED_NNUNET, check_nnunet_version
from nnunet_ext.discovery.devices import cpus, processor
from nnunet_ext.discovery.probe import MARK
from nnunet_ext.discovery.registry import PLANNERS, TRAINERS
from nnunet_ext.errors import ConfigurationError

GIB = 2**30
PACKAGES = ("nnunet-ext", "torch", "batchgenerators", "SimpleITK", "numpy", "dynamic-network-architectures")

# "not set" and "note" are no faults: what a user sets when he needs it, and what works otherwise.
State = Literal["ok", "note", "not set", "BROKEN"]
Check = tuple[State, str]


def checks() -> Iterator[Check]:
    """Every check and what to do where it fails; starts a fresh Python, which takes some seconds."""
    yield from _versions()
    probe = ask()
    yield from discovery(probe)
    yield from further_trainers(probe.get("nnUNet_extTrainer", {}))
    yield from folders(os.environ)
    for answer in probe.get("methods", {}).values():
        works, text = answer.get("found", (False, answer.get("error")))
        yield "ok" if works else "note", text
    yield from _machine(probe)


def ask() -> dict[str, Any]:
    """What `probe` finds in a fresh Python; `error` instead where that Python fails."""
    with tempfile.TemporaryDirectory() as empty:  # a folder named nnunet_ext here would shadow the installed package
        command = [sys.executable, "-m", "nnunet_ext.discovery.probe"]
        try:
            result = subprocess.run(command, cwd=empty, capture_output=True, encoding="utf-8", timeout=600)
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"error": str(error)}
    lines = [line for line in result.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        return {"error": f"it ended with {result.returncode}: {result.stderr.strip()[-500:]}"}
    answer = json.loads(lines[-1].removeprefix(MARK))
    return answer.get("found", answer)


def _versions() -> Iterator[Check]:
    yield (
        "ok" if sys.version_info >= (3, 10) else "BROKEN",
        f"Python {platform.python_version()} (needs 3.10 or newer)",
    )
    try:
        yield "ok", f"nnunetv2 {check_nnunet_version()} (tested range {TESTED_NNUNET})"
    except ConfigurationError as error:
        yield "BROKEN", str(error)
    for name in PACKAGES:
        try:
            yield "ok", f"{name} {version(name)}"
        except PackageNotFoundError:
            yield "BROKEN", f"{name} is not installed. Run: pip install {name}"
    others = {name for name in packages_distributions().get("nnunet_ext", []) if _normal(name) != "nnunet-ext"}
    if others:  # Lifelong-nnUNet's package has the same name
        yield (
            "BROKEN",
            f"{', '.join(sorted(others))} installs a package named nnunet_ext too, and each overwrites files of the "
            "other. Keep them in two environments",
        )


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def discovery(probe: dict[str, Any]) -> Iterator[Check]:
    """Whether nnU-Net's own searches find our classes, from what `probe` answered."""
    if "error" in probe:
        yield "BROKEN", f"nnU-Net could not be asked in a fresh Python: {probe['error']}"
        return
    import nnunet_ext

    if probe["package"] != list(nnunet_ext.__path__):
        yield (
            "BROKEN",
            f"a fresh Python imports nnunet_ext from {', '.join(probe['package'])}, this one from "
            f"{', '.join(nnunet_ext.__path__)}. Look at PYTHONPATH and at folders named nnunet_ext",
        )
    if not probe["hook"]:
        yield (
            "BROKEN",
            "the start-up file nnunet_ext.pth is not active, so that nnU-Net cannot see our classes. Reinstall with "
            "pip into this environment, or put 'python -m nnunet_ext' before each nnU-Net command",
        )
        return
    yield "ok", "the start-up file nnunet_ext.pth is active"
    found, missing = [], defaultdict(list)
    for name, module in {**TRAINERS, **PLANNERS}.items():
        answer = probe["classes"][name]
        if answer.get("found") == f"{module}.{name}":
            found.append(name)
        else:
            missing[answer.get("error") or f"its search returned {answer.get('found')}"].append(name)
    if found:
        yield "ok", f"nnU-Net finds {', '.join(found)}"
    for reason, names in missing.items():
        yield "BROKEN", f"nnU-Net does not find {', '.join(names)}: {reason}"


def further_trainers(answers: dict[str, dict[str, Any]]) -> Iterator[Check]:
    """The folders of `nnUNet_extTrainer`, all of whose modules nnU-Net imports while it searches."""
    for path, answer in answers.items():
        if "error" in answer:
            yield (
                "BROKEN",
                f"a module in {path} (nnUNet_extTrainer) cannot be imported, which ends each search for a trainer "
                f"that nnU-Net does not have: {answer['error']}",
            )
        elif not answer["found"]:
            yield "BROKEN", f"nnUNet_extTrainer names {path}, which is no folder; nnU-Net passes over it silently"
        else:
            yield "ok", f"nnUNet_extTrainer names {path}, and every module there can be imported"


def folders(environment: Any) -> Iterator[Check]:
    """The folders of nnU-Net's environment variables."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = environment.get(name)
        right = "read" if name == "nnUNet_raw" else "write"
        if not value:
            yield "not set", f"{name}: export {name}=/path/to/{name} (a folder that you choose) before you train"
        elif value[0] in "'\"" or value[-1] in "'\"":
            yield "BROKEN", f"{name} is {value}: the quotation marks belong to the value. Set it without them"
        elif not Path(value).is_dir():
            yield "BROKEN", f"{name} is {value}, which is not a folder. Create it: mkdir -p {shlex.quote(value)}"
        elif not os.access(value, os.R_OK if right == "read" else os.W_OK):
            yield "BROKEN", f"{name} is {value}, which you may not {right}"
        else:
            yield "ok", f"{name} is {value} ({shutil.disk_usage(value).free / GIB:.0f} GiB free)"


def _machine(probe: dict[str, Any]) -> Iterator[Check]:
    free = _free_memory()
    memory = "" if free is None else f", {free / GIB:.1f} GiB of memory free"
    yield "ok", f"{cpus()} CPU cores ({processor()}){memory}"
    gpus = probe.get("gpus", {})
    for name, available, total in gpus.get("found") or []:
        yield "ok", f"GPU {name}: {available / GIB:.1f} of {total / GIB:.1f} GiB free"
    if "error" in gpus:
        yield "BROKEN", f"torch cannot ask the GPU: {gpus['error']}"
    elif not gpus.get("found"):
        yield "ok", "Apple GPU: use -device mps" if probe.get("mps") else "no GPU: use -device cpu"


def _free_memory() -> int | None:
    """Bytes that can be allocated, where the system tells."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
