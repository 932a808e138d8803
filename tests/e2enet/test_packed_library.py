"""How the engine gets compiled: once, whole or not at all, and with a reason where it cannot be."""

import multiprocessing
import os
import signal
import stat
import time

import pytest
import torch

from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.packed import dispatch, library
from nnunet_ext.e2enet.packed.library import PackedUnavailable


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(dispatch.SWITCH, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(library, "FLAGS", [flag for flag in library.FLAGS if flag != "-O3"])  # compiles faster
    library.engine.cache_clear()
    dispatch._said.clear()
    yield
    library.engine.cache_clear()


def script(path, text):
    """An executable that stands for the compiler."""
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo 1; exit 0; fi\n{text}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def counting_compiler(tmp_path):
    real = library.compiler()
    return script(tmp_path / "counting", f'echo once >> "{tmp_path}/calls"\nexec "{real}" "$@"')


def calls(tmp_path):
    return len((tmp_path / "calls").read_text().splitlines())


def cached(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.suffix not in (".lock", ""))


def predict():
    network = E2ENet(1, 2, strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]], base_features=4).eval()
    with torch.inference_mode():
        return network(torch.randn(1, 1, 8, 8, 8))


def in_children(count, function, *arguments):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=function, args=arguments) for _ in range(count)]
    for child in children:
        child.start()
    return children


def test_eight_processes_with_an_empty_cache_compile_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", counting_compiler(tmp_path))
    children = in_children(8, library.engine)
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [0] * 8
    assert calls(tmp_path) == 1
    assert len(cached(tmp_path)) == 1
    library.engine()
    assert calls(tmp_path) == 1


def test_another_compiler_or_processor_has_its_own_library(tmp_path, monkeypatch):
    library.engine()
    monkeypatch.setattr(library, "INSTRUCTION_SETS", {"portable": (4, [])})
    library.engine.cache_clear()
    assert library.engine().packed_lanes() == 4
    assert len(cached(tmp_path)) == 2


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = set(os.listdir("/tmp"))
    assert library.engine().packed_layer_size() > 0
    assert not [name for name in set(os.listdir("/tmp")) - before if name.startswith("nnunet_ext-")]


def test_no_compiler(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert torch.isfinite(predict()).all()
    assert "torch's dense convolutions: no C++ compiler was found" in capsys.readouterr().out
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    "text, reason",
    [
        ("echo 'x.cpp:3: error: no such thing' >&2; exit 1", "x.cpp:3: error: no such thing"),
        ('for last; do :; done; echo half > "$last"; kill -9 $$', "failed"),
        ('for last; do :; done; echo not a library > "$last"', "does not load"),
    ],
    ids=["error", "killed in the middle", "writes no library"],
)
def test_a_compiler_that_fails(text, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", script(tmp_path / "broken", text))
    assert torch.isfinite(predict()).all()
    line = capsys.readouterr().out
    assert "torch's dense convolutions" in line and reason in line and len(line.splitlines()) == 1
    monkeypatch.delenv("CXX")
    library.engine.cache_clear()
    assert library.engine().packed_lanes() > 0


def test_a_compiler_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", script(tmp_path / "endless", "exec sleep 60"))
    monkeypatch.setattr(library, "SECONDS_TO_COMPILE", 0.5)
    with pytest.raises(PackedUnavailable, match=r"took over 0\.5 s"):
        library.engine()
    assert cached(tmp_path) == []


def test_ctrl_c_while_compiling_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", script(tmp_path / "slow", f'echo > "{tmp_path}/started"; exec sleep 60'))
    (child,) = in_children(1, _interruptible)
    end = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    child.join(30)
    assert child.exitcode == 7
    assert cached(tmp_path) == []


def _interruptible():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        library.engine()
    except KeyboardInterrupt:
        os._exit(7)


@pytest.mark.parametrize("machine, platform", [("riscv64", "linux"), ("x86_64", "win32")])
def test_unknown_machines(machine, platform, monkeypatch):
    monkeypatch.setattr(library.platform, "machine", lambda: machine)
    monkeypatch.setattr(library.sys, "platform", platform)
    with pytest.raises(PackedUnavailable, match=machine if platform == "linux" else platform):
        library.engine()
