"""How many cores and threads there are for a process: those that it may use, not those of the machine."""

import os
import shutil
import subprocess
import sys

import pytest

from nnunet_ext.discovery.devices import cpu_threads, cpus, processor

ONE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from nnunet_ext.discovery.devices import cpu_threads, cpus
print(cpus(), cpu_threads())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_a_process_that_may_use_one_core():
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", ONE], capture_output=True, text=True, check=True, env=free)
    assert done.stdout.split() == ["1", "1"]


def test_threads_are_those_asked_for_and_never_more_than_cores(monkeypatch):
    expected = {"1": 1, "1,4": 1, "1000": cpus(), "0": cpus(), "many": cpus(), "": cpus()}
    for asked, threads in expected.items():
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert cpu_threads() == threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cpu_threads() == cpus() >= 1


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="needs lscpu")
def test_the_processors_name():
    facts = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    names = [line.partition(":")[2].strip() for line in facts.stdout.splitlines() if line.startswith("Model name:")]
    assert names in ([], [processor()]), "without a name of its own there is none to compare"
    assert processor()
