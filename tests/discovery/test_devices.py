"""How many cores and threads there are for a process: those that it may use, not those of the machine."""

import os
import platform
import shutil
import subprocess
import sys

import pytest

from nnunet_ext.discovery.devices import THREADS, cpu_threads, cpus, processor
from nnunet_ext.errors import ConfigurationError

ONE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from nnunet_ext.discovery.devices import cpu_threads, cpus
print(cpus(), cpu_threads())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_a_process_that_may_use_one_core():
    free = {name: value for name, value in os.environ.items() if name != THREADS}
    done = subprocess.run([sys.executable, "-c", ONE], capture_output=True, text=True, check=True, env=free)
    assert done.stdout.split() == ["1", "1"]


def test_threads_are_those_asked_for_and_never_more_than_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for asked, threads in {"1": 1, "1000": cpus(), "": cpus()}.items():
        monkeypatch.setenv(THREADS, asked)
        assert cpu_threads() == threads
    for asked in ("0", "-1", "1.5", "many"):
        monkeypatch.setenv(THREADS, asked)
        with pytest.raises(ConfigurationError, match=f"nnUNet_ext_threads must be .* from 1, found '{asked}'"):
            cpu_threads()
    monkeypatch.delenv(THREADS)
    assert cpu_threads() == cpus() >= 1


@pytest.mark.skipif(shutil.which("lscpu") is None or platform.machine() != "x86_64", reason="lscpu has other sources")
def test_the_processors_name():
    facts = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    names = [line.partition(":")[2].strip() for line in facts.stdout.splitlines() if line.startswith("Model name:")]
    assert names in ([], [processor()]), "without a name of its own there is none to compare"
    assert processor()
