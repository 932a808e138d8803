"""Norm, activation and shifted concatenation by Triton kernels: equal to torch's, in Triton's interpreter."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_ext.e2enet import fused
from nnunet_ext.errors import ConfigurationError

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What `fused_interpreted.py` finds; a process of its own, because Triton reads the variable when imported."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed; it comes with torch's CUDA packages for Linux")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    out = tmp_path_factory.mktemp("fused") / "found.json"
    subprocess.run([sys.executable, Path(__file__).with_name("fused_interpreted.py"), out], env=environment, check=True)
    return json.loads(out.read_text())


@pytest.mark.slow
def test_concatenations_of_odd_sizes_along_every_axis(found):
    worst = found["concatenations"]
    assert worst["torch.float32"] < 1e-5 and worst["torch.float16"] < 1e-3


@pytest.mark.slow
def test_logits_of_networks(found):
    assert set(found["networks"]) == {"sparse", "blocks", "no shift"}
    for writes, difference in found["networks"].values():
        assert writes and difference < 1e-5


@pytest.mark.slow
def test_gradients_of_norm_and_activation(found):
    assert max(found["gradients"]["torch.float32"]) < 1e-5 and max(found["gradients"]["torch.float16"]) < 1e-3


@pytest.mark.slow
def test_gradients_of_networks(found):
    assert set(found["trained"]) == {"sparse", "blocks", "no shift"}
    for name, (used, difference) in found["trained"].items():
        assert used == ["Pending.gradients", "Pending.write"] + ["grouped.gradients"] * (name == "blocks")
        assert difference < 1e-5


@pytest.mark.slow
def test_blocks_of_connections_are_the_dense_convolution_that_is_zero_elsewhere(found):
    assert found["blocks"]["torch.float32"] < 1e-5 and found["blocks"]["torch.float16"] < 1e-3


def test_it_is_asked_for_and_blocks_give_what_is_pending_in_prediction_alone(monkeypatch):
    monkeypatch.setattr(fused, "_kernels", lambda: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.zeros(1)
    with torch.no_grad():
        assert not fused.fuses(x)
        monkeypatch.setenv(fused.VARIABLE, "0")
        assert not fused.fuses(x)
        monkeypatch.setenv(fused.VARIABLE, "1")
        assert fused.fuses(x) and not fused.fuses(x.double())
        monkeypatch.delenv("TRITON_INTERPRET")
        assert not fused.fuses(x), "a CPU has no use for it"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not fused.fuses(x), "gradients are recorded"
    assert fused.by_triton(x)


def test_without_triton_the_option_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "nnunet_ext.e2enet.fused_kernels", None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(fused.VARIABLE, "1")
    fused._kernels.cache_clear()
    with torch.no_grad(), pytest.raises(ConfigurationError, match="nnUNet_ext_fused=1 needs Triton"):
        fused.fuses(torch.zeros(1))
