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


HOLES = """
import json, torch
from pathlib import Path
from nnunet_ext.prediction.memory import give_back, keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

kept = keep_freed_memory()
before = resident()
huge = torch.ones(2**27)  # 512 MiB
del huge
after_huge = resident() - before
blocks = [torch.ones(2**22) for _ in range(64)]  # 16 MiB each
last = torch.ones(2**22)
del blocks
held = resident() - before
give_back()
given = resident() - before
print(json.dumps([kept, after_huge, held, given]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_what_is_kept_can_be_given_back():
    """Also between blocks in use; and blocks of hundreds of megabytes go back by themselves."""
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    kept, after_huge, held, given = json.loads(done.stdout)
    if not kept:
        pytest.skip("this C library has no mallopt that does it")
    assert held > 2**30 > 2**26 > given
    assert after_huge < 2**28


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
