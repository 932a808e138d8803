"""A study on a real Slurm, which the benchmark starts on this machine: as root, with nnUNet_ext_slurm=1."""

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "slurm" / "run.sh"


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("nnUNet_ext_slurm") != "1", reason="starts daemons; nnUNet_ext_slurm=1 runs it")
def test_a_study_on_slurm(tmp_path):
    done = subprocess.run(["bash", SCRIPT, tmp_path / "slurm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    states = re.findall(r"^\d+ ([A-Z]+) ran \S+ limit \S+ (rule_\w+)$", done.stdout, re.M)
    assert {state for state, _ in states} == {"COMPLETED"} and sum("train" in rule for _, rule in states) == 4
    assert (tmp_path / "slurm" / "study" / "compare.html").is_file()
