"""The engine under the compiler's address, undefined-behaviour and thread sanitizers."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from contract.on_request import thorough

from nnunet_ext.e2enet.packed.library import compiler


def runtime(name):
    """Path of the sanitizer's library, or None where this compiler has none."""
    found = subprocess.run([compiler()[0], f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return found if os.path.isabs(found) else None


@pytest.mark.slow
@pytest.mark.parametrize(
    "sanitizer, name",
    [("address,undefined", "libasan.so"), pytest.param("thread", "libtsan.so", marks=thorough)],
)
def test_no_report(sanitizer, name, tmp_path):
    library = runtime(name)
    if library is None:
        pytest.skip(f"the compiler has no {name}")
    cases = os.environ.get("nnUNet_ext_fuzz", "6")
    command = [sys.executable, str(Path(__file__).with_name("packed_sanitized.py")), sanitizer, cases]
    if sanitizer == "thread":  # its shadow memory needs addresses that are not randomised
        command = ["setarch", platform.machine(), "-R", *command]
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "LD_PRELOAD": library,
            "XDG_CACHE_HOME": str(tmp_path),
            # Python and torch are not instrumented: only what happens in the engine is seen.
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "halt_on_error=1",
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0 and f"all {cases} cases ran, 0 failed" in done.stdout, done.stdout[-4000:]
    assert "Sanitizer" not in done.stdout and "runtime error" not in done.stdout
    assert "packed sparse" in done.stdout
