"""nnU-Net's own searches find our classes: each in a fresh process, as its commands are."""

import json
import os
import subprocess
import sys

import pytest

import nnunet_ext.discovery.startup
from nnunet_ext.discovery.registry import PLANNERS, RESAMPLING, TRAINERS

BRIDGE = os.path.join(nnunet_ext.__path__[0], "discovery", "bridge")

FIND = """
import json, pickle, sys
from os.path import join

def find_trainer(name):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    return recursive_find_trainer_class_by_name(name)

def find_planner(name):  # as nnunetv2.experiment_planning.plan_and_preprocess_api does
    import nnunetv2
    from nnunetv2.experiment_planning.plan_and_preprocess_api import recursive_find_python_class
    folder = join(nnunetv2.__path__[0], "experiment_planning")
    return recursive_find_python_class(folder, name, current_module="nnunetv2.experiment_planning")

def find_resampling(name):
    from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name
    return recursive_find_resampling_fn_by_name(name)

def facts(found, again, canonical):
    return {
        "name": f"{found.__module__}.{found.__qualname__}",
        "same on second look-up": again is found,
        "same as imported": canonical is found,
        "same after pickling": pickle.loads(pickle.dumps(found)) is found,
    }
"""

# Takes the start-up file's work back, as if it had never run.
WITHOUT_START_UP = """
import sys
from nnunet_ext.discovery.startup import _Finder, installed
sys.meta_path.remove(_Finder)
assert not installed()
"""


def python(code, **environment):
    """Runs code in a fresh process; returns the JSON in the last line that it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "nnUNet_extTrainer": "", **environment},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def canonical(module, name):
    return {
        "name": f"{module}.{name}",
        "same on second look-up": True,
        "same as imported": True,
        "same after pickling": True,
    }


@pytest.fixture(scope="module")
def found():
    """What nnU-Net finds under every registered name, and for two others, in one process."""
    return python(
        FIND
        + """
from importlib import import_module
from nnunet_ext.discovery.registry import PLANNERS, RESAMPLING, TRAINERS
from nnunet_ext.discovery.startup import install
result = {}
for find, names in ((find_trainer, TRAINERS), (find_planner, PLANNERS), (find_resampling, RESAMPLING)):
    for name, module in names.items():
        first = find(name)
        result[name] = facts(first, find(name), getattr(import_module(module), name))
import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as stock
from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
result["stock trainer"] = find_trainer("nnUNetTrainer") is nnUNetTrainer
result["stock planner"] = find_planner("ExperimentPlanner").__module__
result["stock resampling"] = find_resampling("resample_torch_simple").__module__
result["unknown"] = [hasattr(stock, "NoSuchTrainer"), hasattr(planning, "NoSuchPlanner")]
result["heavy searches"] = sorted(name for name in sys.modules if name.startswith("nnunetv2") and "primus" in name)
before = vars(stock)["__getattr__"], sys.meta_path[:]
install()
install()
result["unchanged by further installs"] = (vars(stock)["__getattr__"], sys.meta_path[:]) == before
result["finders"] = [getattr(finder, "__name__", "") for finder in sys.meta_path].count("_Finder")
print(json.dumps(result))
"""
    )


@pytest.mark.parametrize(("name", "module"), {**TRAINERS, **PLANNERS, **RESAMPLING}.items())
def test_nnunet_finds_the_canonical_class(found, name, module):
    assert found[name] == canonical(module, name)


def test_nnunets_own_classes_are_found_as_before(found):
    assert found["stock trainer"] is True
    assert found["stock planner"].startswith("nnunetv2.experiment_planning.")
    assert found["stock resampling"] == "nnunetv2.preprocessing.resampling.resample_torch"


def test_unknown_names_stay_unknown(found):
    assert found["unknown"] == [False, False]


def test_our_names_are_found_before_nnunet_imports_its_optional_parts(found):
    assert found["heavy searches"] == []


def test_installing_again_does_no_harm(found):
    assert found["unchanged by further installs"] is True
    assert found["finders"] == 1


@pytest.fixture(scope="module")
def without_start_up():
    """What is found in one process where the start-up file did not run: without help, by the bridge, once installed."""
    return python(
        WITHOUT_START_UP
        + FIND
        + f"""
import os
import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as stock
result = {{"without help": hasattr(stock, "E2ENetTrainer")}}
from nnunet_ext.trainers.e2enet import E2ENetTrainer
os.environ["nnUNet_extTrainer"] = {BRIDGE!r}
found = find_trainer("E2ENetTrainer")
result["by the bridge"] = facts(found, find_trainer("E2ENetTrainer"), E2ENetTrainer)
result["modules"] = "nnunet_ext_bridge" in sys.modules
result["by the bridge, not the hook"] = not hasattr(stock, "E2ENetTrainer")
os.environ["nnUNet_extTrainer"] = ""
from nnunet_ext.discovery.startup import install
install()
result["installed late"] = find_trainer("E2ENetTrainer") is found
print(json.dumps(result))
"""
    )


def test_nothing_is_found_without_the_hook_and_installing_it_late_works_as_well(without_start_up):
    assert without_start_up["without help"] is False
    assert without_start_up["installed late"] is True


def test_the_bridge_serves_where_the_start_up_file_did_not_run(without_start_up):
    assert without_start_up["by the bridge, not the hook"] is True
    assert without_start_up["by the bridge"] == canonical("nnunet_ext.trainers.e2enet", "E2ENetTrainer")
    assert without_start_up["modules"] is False


def test_a_class_that_cannot_be_imported_is_an_error_and_not_a_class_that_is_not_there():
    code = """
import json
from nnunet_ext.discovery import registry
registry.TRAINERS["BrokenTrainer"] = "nnunet_ext.errors"
resolve = registry.resolver("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
try:
    resolve("BrokenTrainer")
except ImportError as error:
    print(json.dumps(str(error)))
"""
    assert python(code).startswith("nnunet_ext.errors could not be imported for BrokenTrainer")


def test_a_modules_own_getattr_still_answers():
    code = """
import json, sys, types
from nnunet_ext.discovery.startup import _hook
module = types.ModuleType("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
module.__getattr__ = lambda name: f"its own {name}"
_hook(module)
print(json.dumps([module.Something, callable(vars(module)["__getattr__"])]))
"""
    assert python(code) == ["its own Something", True]


# python -m nnunet_ext


def run_module(*arguments):
    command = [sys.executable, "-m", "nnunet_ext", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_stock_commands_run_through_the_package():
    result = run_module("nnUNetv2_move_plans_between_datasets", "-h")  # the command that starts quickest
    assert result.returncode == 0, result.stderr
    assert "usage: nnUNetv2_move_plans_between_datasets" in result.stdout


def test_no_command_is_answered_with_the_usage():
    result = run_module()
    assert result.returncode == 2
    assert "usage: nnunet_ext" in result.stderr


def test_our_own_commands_run_through_the_package():
    assert run_module("--version").stdout.startswith("nnunet_ext ")
    result = run_module("presets", "e2enet")
    assert result.returncode == 0 and "e2enet/s90: sparsity=0.9" in result.stdout


def test_an_unknown_command_is_named():
    result = run_module("nnUNetv2_trian")
    assert result.returncode == 1
    assert "'nnUNetv2_trian' is neither a command of nnunet_ext (demo, " in result.stderr


def test_commands_and_their_spawned_children_get_hook_and_bridge(tmp_path):
    """A module of the `nnUNet_extTrainer` that was set before is kept in front."""
    code = """
import os, runpy, sys
sys.argv = ["nnunet_ext", "probe"]
import importlib.metadata
class Probe:
    @staticmethod
    def load():
        def main():
            import json
            from nnunet_ext.discovery.startup import installed
            print(json.dumps([installed(), os.environ["nnUNet_extTrainer"].split(os.pathsep), sys.argv]))
        return main
importlib.metadata.entry_points = lambda **_: [Probe]
try:
    runpy.run_module("nnunet_ext", run_name="__main__", alter_sys=False)
except SystemExit as stop:
    assert not stop.code
"""
    assert python(code, nnUNet_extTrainer=str(tmp_path)) == [True, [str(tmp_path), BRIDGE], ["probe"]]
