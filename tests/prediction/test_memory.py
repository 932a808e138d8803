"""Freed memory is kept where the C library can do that."""

import json
import subprocess
import sys

import pytest

from nnunet_ext.prediction import memory

FAULTS = """
import json, resource, torch
from nnunet_ext.prediction.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
kept = keep_freed_memory()
faults()
print(json.dumps([kept, first, faults()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_large_blocks_are_used_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kept, before, after = json.loads(done.stdout)
    if not kept:
        pytest.skip("this C library has no mallopt that does it")
    assert after < before / 10


def test_another_system_or_library_is_left_alone(monkeypatch):
    class Other:
        def __init__(self, name):
            pass

    monkeypatch.setattr(memory.ctypes, "CDLL", Other)
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("asked"))
    assert memory.keep_freed_memory() is False
