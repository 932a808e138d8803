"""The script for GPUs runs, on tiny networks and a CPU; what it measures there is not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from contract.on_request import thorough

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
@thorough
def test_the_section_that_trains(tmp_path):
    environment = {**os.environ, "nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    (row,) = run(tmp_path / "rows.jsonl", "--section", "training", env=environment)
    assert row["name"] == "E2ENetTrainer" and "error" not in row
    assert len(row["epoch_s"]) == 1 and row["wall_s"] > row["epoch_s"][0]


def run(out, *words, **environment):
    subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--device", "cpu", "--out", out, *words], check=True, capture_output=True,
        text=True, **environment,
    )  # fmt: skip
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_a_part_of_the_gpu_benchmark_and_what_is_there_already(tmp_path):
    words = ["--section", "correctness", "speed", "--only", "S=.9", "connections", "routing"]
    rows = run(tmp_path / "rows.jsonl", *words)
    assert [(row["section"], row["name"]) for row in rows] == [
        ("correctness", "E2ENet S=.9, blocks of 16"), ("correctness", "connections"), ("correctness", "routing"),
        ("speed", "E2ENet S=.9, blocks of 16"),
    ]  # fmt: skip
    network, connections, routing, speed = rows
    assert network["float32"] == 0 < network["half"] < 0.1
    assert connections["counts_kept"] and connections["share_moved"] > 0.1
    assert routing["choices"] == [0, 1, 2] and routing["worst"] < 1e-5
    assert speed["forward"]["ms"] > 0 and speed["step"]["ms"] > 0
    assert run(tmp_path / "rows.jsonl", *words) == rows


@pytest.mark.slow
@thorough
def test_every_network_of_the_gpu_benchmark(tmp_path):
    rows = run(tmp_path / "rows.jsonl", "--section", "correctness", "speed")
    assert not [row for row in rows if "error" in row]
    assert {row["name"] for row in rows if row.get("form") == "compiled"} == {"E2ENet S=.8", "Med-Tuning med_adapter"}
    measured = {row["name"] for row in rows if row["section"] == "speed"}
    assert {row["name"] for row in rows if row["section"] == "correctness"} - {"connections", "routing"} < measured
    assert len(measured) == 15
