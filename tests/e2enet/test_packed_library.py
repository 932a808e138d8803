"""How the engine gets compiled: once, whole or not at all, and with a reason where it cannot be."""

import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

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
    monkeypatch.setattr(library, "_engines", {})
    dispatch._said.clear()
    yield


def script(path, text):
    """An executable that stands for the compiler."""
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo 1; exit 0; fi\n{text}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def counting_compiler(tmp_path):
    real = library.compiler()[0]
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
    library._engines.clear()
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
    library._engines.clear()
    assert library.engine().packed_lanes() > 0


def test_a_compiler_that_fails_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", script(tmp_path / "broken", f'echo once >> "{tmp_path}/calls"; exit 1'))
    for _ in range(3):
        predict()
    assert calls(tmp_path) == 1
    assert library.found_here()[0] is False and calls(tmp_path) == 1


def test_the_compiler_may_have_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", f"'{counting_compiler(tmp_path)}' -DNOTHING")
    library.engine()
    assert calls(tmp_path) == 1
    assert library.found_here()[1].endswith("-DNOTHING and loads")


@pytest.mark.parametrize(
    ("words", "reason"), [("/no/such -O1", "/no/such, which CXX names"), ("'g++", "cannot be read")]
)
def test_a_compiler_that_is_not_there_is_named(words, reason, monkeypatch):
    monkeypatch.setenv("CXX", words)
    with pytest.raises(PackedUnavailable, match=reason):
        library.engine()


# the cache, from which code is loaded


def the_library(tmp_path):
    (name,) = (path for path in (tmp_path / "cache").rglob("*.so"))
    return name


def test_the_cache_is_private(tmp_path):
    before = os.umask(0)
    try:
        library.engine()
    finally:
        os.umask(before)
    folder = library.cache_folder()
    modes = {oct(path.stat().st_mode & 0o777) for path in (folder, folder.parent, the_library(tmp_path))}
    assert modes == {"0o700"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")
@pytest.mark.parametrize("what", ["folder", "parent", "library", "writable library", "link"])
def test_what_others_could_have_written_is_not_loaded(what, tmp_path, monkeypatch):
    library.engine()
    path = the_library(tmp_path)
    mark = path.stat().st_mtime_ns
    if what == "link":
        path.rename(tmp_path / "elsewhere.so")
        path.symlink_to(tmp_path / "elsewhere.so")
    elif what == "writable library":
        path.chmod(0o722)
    else:
        os.chown({"folder": path.parent, "parent": path.parent.parent, "library": path}[what], 54321, 54321)
    loaded = []
    monkeypatch.setattr(library, "_engines", {})
    load = library._load
    monkeypatch.setattr(library, "_load", lambda path, *rest: loaded.append(path) or load(path, *rest))
    library.engine()
    (used,) = loaded
    if what in ("folder", "parent"):
        assert tmp_path not in used.parents
    else:
        assert used == path and path.stat().st_mtime_ns > mark and library.is_private(path)


@pytest.mark.parametrize("content", [b"not a library", b""])
def test_a_damaged_library_is_made_again(content, tmp_path, monkeypatch):
    (child,) = in_children(1, library.engine)  # this process loads a library of that name only once
    child.join(300)
    path = the_library(tmp_path)
    path.write_bytes(content)
    assert library.engine().packed_lanes() > 0
    assert not path.exists()
    (child,) = in_children(1, library._made_engine, 4)
    child.join(300)
    assert path.stat().st_size > len(content)


def test_another_shared_library_under_its_name_is_replaced(tmp_path):
    (child,) = in_children(1, library.engine)
    child.join(300)
    path = the_library(tmp_path)
    path.unlink()
    (tmp_path / "other.cpp").write_text('extern "C" int nothing() { return 0; }')
    subprocess.run([library.compiler()[0], "-shared", "-fPIC", "-o", path, tmp_path / "other.cpp"], check=True)
    assert library.engine().packed_lanes() > 0
    assert not path.exists()


def test_without_a_home_nothing_is_cached_and_no_relative_folder_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(library.os.path, "expanduser", lambda path: path)
    assert library.cache_folder() is None
    assert library.engine().packed_lanes() > 0
    assert list(tmp_path.iterdir()) == []


def test_a_library_of_another_layout_is_refused(monkeypatch):
    class Longer(library.Layer):
        _fields_ = [("more", library.ctypes.c_int64)]

    monkeypatch.setattr(library, "Layer", Longer)
    with pytest.raises(PackedUnavailable, match="in another way"):
        library.engine()


def test_eight_threads_load_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", counting_compiler(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(library.engine, [4] * 8)))) == 1
    assert calls(tmp_path) == 1


OTHER_COMPILERS = [
    path for name in ("g++-9", "g++-10", "g++-11", "clang++", "clang++-14") if (path := shutil.which(name))
]


@pytest.mark.parametrize("path", OTHER_COMPILERS or [pytest.param("", marks=pytest.mark.skip(reason="none is here"))])
def test_other_compilers_compute_the_same(path, monkeypatch):
    network = E2ENet(1, 2, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]], base_features=4).eval()
    with torch.no_grad():
        usual = network(x := torch.randn(1, 1, 10, 16, 12))
        for lanes in (
            ("AVX512", "AVX2", "portable") if library.instruction_set()[0] == 16 else ("AVX2", "portable")[-1:]
        ):
            monkeypatch.setenv("CXX", path)
            monkeypatch.setattr(library, "_engines", {})
            monkeypatch.setattr(library, "instruction_set", lambda lanes=lanes: library.INSTRUCTION_SETS[lanes])
            monkeypatch.setattr("nnunet_ext.e2enet.packed.program.instruction_set", library.instruction_set)
            dispatch.release(network)
            torch.testing.assert_close(network(x), usual, atol=1e-4, rtol=1e-4)
            assert library.engine().packed_lanes() == library.INSTRUCTION_SETS[lanes][0]


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
