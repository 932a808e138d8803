"""What a user installs: the built files, the start-up files, and which part may import which."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

import nnunet_ext

ROOT = Path(__file__).parents[1]
STARTUP = {"nnunet_ext.pth", "nnunet_ext.start"}
FOLDERS = {"nnunet_ext": "nnunet_ext", "trainers": "nnunet_ext/trainers", "plans": "nnunet_ext/plans"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources():
    """`{file in the repository: its place in an installation}` of every Python file that must be installed."""
    found = {}
    for folder, installed in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            found[path.relative_to(ROOT)] = f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
    return found


SOURCES = sources()


# what is built


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source distribution, and the wheel that is built from it."""
    copy = tmp_path_factory.mktemp("source") / "repository"
    ignored = shutil.ignore_patterns(".git", "build", "dist", "__pycache__", "*.egg-info", ".*_cache", ".venv*")
    shutil.copytree(ROOT, copy, ignore=ignored)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_every_module_under_its_installed_name(wheel):
    for path, installed in SOURCES.items():
        assert wheel.get(installed) == (ROOT / path).read_bytes(), path


def test_the_wheel_holds_no_other_module(wheel):
    assert {name for name in wheel if name.endswith(".py")} == set(SOURCES.values())


def test_the_wheel_holds_every_table_template_and_other_file_of_the_package(wheel):
    files = [
        f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert sorted(set(files) - set(wheel)) == []


def test_the_wheel_holds_the_start_up_files_beside_the_package(wheel):
    for name in STARTUP:
        assert wheel[name] == (ROOT / name).read_bytes()


def test_an_uninstall_removes_the_start_up_files(wheel):
    """pip removes what RECORD lists."""
    record = next(content for name, content in wheel.items() if name.endswith(".dist-info/RECORD")).decode()
    assert {line.split(",")[0] for line in record.splitlines()} == set(wheel)


def test_the_wheel_holds_the_licence(wheel):
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_the_wheel_is_for_every_platform(built):
    assert [path.name for path in built.glob("*.whl")] == [f"nnunet_ext-{nnunet_ext.__version__}-py3-none-any.whl"]


def test_the_source_distribution_holds_all_that_the_wheel_is_built_from(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path.as_posix() for path in SOURCES} | STARTUP | {"pyproject.toml", "setup.py", "README.md", "LICENSE"}
    assert wanted - names == set()


def test_every_package_but_the_bridge_has_an_init_file():
    folders = {path.parent for path in SOURCES}
    assert {f.as_posix() for f in folders if not (ROOT / f / "__init__.py").exists()} == {"nnunet_ext/discovery/bridge"}


def test_one_version_everywhere():
    assert PROJECT["project"]["version"] == nnunet_ext.__version__


# the start-up files


def python(code, *flags, **environment):
    """Runs code in a fresh process in an empty search path but for what the code adds; returns what it prints."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [sys.executable, *flags, "-c", code]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**inherited, **environment}, cwd=ROOT.parent
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.strip()


def test_the_pth_file_is_one_line_that_python_executes():
    lines = (ROOT / "nnunet_ext.pth").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("import ")


def test_python_installs_the_hook_from_the_pth_file(tmp_path):
    shutil.copy(ROOT / "nnunet_ext.pth", tmp_path)
    code = f"""
import site, sys
sys.path.insert(0, {str(ROOT)!r})
assert "nnunet_ext" not in sys.modules
site.addsitedir({str(tmp_path)!r})
print(sys.modules["nnunet_ext.discovery.startup"].installed())
"""
    assert python(code, "-S") == "True"


def test_the_pth_file_is_silent_where_the_package_is_gone(tmp_path):
    shutil.copy(ROOT / "nnunet_ext.pth", tmp_path)
    code = f"import site, sys; site.addsitedir({str(tmp_path)!r}); print('nnunet_ext' in sys.modules)"
    assert python(code, "-S") == "False"


def test_the_start_file_names_the_function_that_the_pth_file_calls():
    module, _, name = (ROOT / "nnunet_ext.start").read_text().strip().partition(":")
    assert f"import {module}" in (ROOT / "nnunet_ext.pth").read_text()
    assert f"{module}.{name}()" in (ROOT / "nnunet_ext.pth").read_text()


def test_every_start_of_python_installs_the_hook_and_imports_nothing_heavy():
    code = """
import sys
print(sys.modules["nnunet_ext.discovery.startup"].installed())
print(sorted({"torch", "numpy", "nnunetv2", "matplotlib", "SimpleITK", "nnunet_ext.trainers"} & set(sys.modules)))
"""
    assert python(code).splitlines() == ["True", "[]"]


def test_importing_the_package_imports_neither_torch_nor_nnunet():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import nnunet_ext
print([name for name in sys.modules if name.split(".")[0] in ("torch", "nnunetv2", "numpy")])
"""
    assert python(code, "-S") == "[]"
