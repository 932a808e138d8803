"""The start-up hook costs nothing and is not lost, whatever else looks at the modules that it waits for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The hook waits for a module of this test instead of nnU-Net's, which take seconds to import.
WAITING = """
import importlib, importlib.util, json, sys
from nnunet_ext.discovery import registry, startup
registry.CLASSES["awaited"] = {"E2ENetTrainer": "collections"}  # any module that has no such class
startup.MODULES = ("awaited",)
startup.install()

def hooked(module):
    return "__getattr__" in vars(module)
"""


def run(code, folder, *flags):
    """Runs code in a fresh process that finds modules in `folder`, too; returns the JSON that it prints."""
    command = [sys.executable, *flags, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def awaited(tmp_path):
    (tmp_path / "awaited.py").write_text("value = 1\n")
    return tmp_path


def test_the_start_up_file_brings_only_modules_of_this_package(tmp_path):
    (tmp_path / "nnunet_ext.pth").write_bytes((ROOT / "nnunet_ext.pth").read_bytes())
    code = f"""
import site
before = set(sys.modules)
site.addsitedir({str(tmp_path)!r})
new = sorted(set(sys.modules) - before)
import json
print(json.dumps(new))
"""
    expected = ["nnunet_ext", *(f"nnunet_ext.discovery{name}" for name in ("", ".searched", ".startup"))]
    assert run(code, ROOT, "-I", "-S") == expected


def test_a_look_up_without_an_import_does_not_lose_the_hook(awaited):
    code = """
importlib.util.find_spec("awaited")
importlib.util.find_spec("awaited")
import awaited
print(json.dumps(hooked(awaited)))
"""
    assert run(WAITING + code, awaited) is True


def test_an_import_that_failed_at_first_is_hooked_when_it_succeeds(awaited):
    (awaited / "awaited.py").write_text("import sys\nif not hasattr(sys, 'again'): raise KeyboardInterrupt\n")
    code = """
try:
    import awaited
except KeyboardInterrupt:
    sys.again = True
import awaited
print(json.dumps(hooked(awaited)))
"""
    assert run(WAITING + code, awaited) is True


def test_a_reloaded_module_stays_hooked_once(awaited):
    code = """
import awaited
first = vars(awaited)["__getattr__"]
importlib.reload(awaited)
print(json.dumps([awaited.value, vars(awaited)["__getattr__"] is first]))
"""
    assert run(WAITING + code, awaited) == [1, True]


@pytest.mark.parametrize("place", [0, 1])
def test_a_finder_of_another_package_that_asks_all_others_too_ends_no_import(awaited, place):
    """Each asks the other; neither may ask for ever, and both see the module."""
    code = f"""
seen = []
class Other:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "awaited":
            return None
        others = [finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not cls]
        seen.append(name)
        return next(spec for spec in others if spec is not None)
sys.meta_path.insert({place}, Other)
import awaited
print(json.dumps([hooked(awaited), bool(seen)]))
"""
    assert run(WAITING + code, awaited) == [True, True]


def test_a_missing_module_is_missing_as_ever(tmp_path):
    code = """
try:
    import awaited
except ModuleNotFoundError as error:
    print(json.dumps([error.name, importlib.util.find_spec("awaited")]))
"""
    assert run(WAITING + code, tmp_path) == ["awaited", None]


def test_install_brings_the_hook_into_a_python_that_has_not_read_the_start_up_file():
    code = """
import json, nnunet_ext
from nnunet_ext.discovery import startup
before = startup.installed()
nnunet_ext.install()
nnunet_ext.install()
print(json.dumps([before, startup.installed(), sys.meta_path.count(startup._Finder)]))
"""
    assert run(code, ROOT, "-I", "-S") == [False, True, 1]


@pytest.mark.slow
def test_a_running_kernel_finds_the_trainers_after_install(tmp_path):
    """As after `pip install .` in a notebook that has nnU-Net imported already."""
    package = tmp_path / "nnunet_ext"
    package.mkdir()
    for path in [*(ROOT / "nnunet_ext").iterdir(), ROOT / "trainers", ROOT / "plans"]:
        (package / path.name).symlink_to(path)
    code = f"""
import json
sys.path += {sys.path!r}
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
import nnunet_ext
nnunet_ext.install()
print(json.dumps(find("E2ENetTrainer").__module__))
"""
    assert run(code, tmp_path, "-S") == "nnunet_ext.trainers.e2enet"
