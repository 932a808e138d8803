"""Which of our classes and functions nnU-Net can find, and through which of its modules.

nnU-Net looks a trainer, planner or resampling function up by asking its own modules `hasattr(module, name)`. A
module-level `__getattr__` (PEP 562) on the first module of each search answers for our names, so that nnU-Net gets the
one canonical object.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from nnunet_ext.discovery.searched import PLANNER_MODULE, RESAMPLING_MODULE, TRAINER_MODULE
from nnunet_ext.methods import METHODS


def _modules_by_name(paths: Iterable[str]) -> dict[str, str]:
    return {path.rpartition(".")[2]: path.rpartition(".")[0] for path in paths}


# Name -> module.
TRAINERS = _modules_by_name(path for method in METHODS.values() for path in method.trainer_paths)
PLANNERS = _modules_by_name(method.planner_path for method in METHODS.values())
RESAMPLING = _modules_by_name(["nnunet_ext.resampling.separable.resample_separable"])
CLASSES = {TRAINER_MODULE: TRAINERS, PLANNER_MODULE: PLANNERS, RESAMPLING_MODULE: RESAMPLING}


def resolver(owner: str, fallback: Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """The `__getattr__` for module `owner`: our names first, then `fallback` (the module's own `__getattr__`)."""
    names = CLASSES[owner]

    def __getattr__(name: str) -> Any:
        if name in names:
            try:
                return getattr(import_module(names[name]), name)
            except AttributeError as error:  # hasattr() would turn it into "class not found"
                raise ImportError(f"{names[name]} could not be imported for {name}: {error}") from error
        if fallback is not None:
            return fallback(name)
        raise AttributeError(f"module {owner!r} has no attribute {name!r}")

    __getattr__.nnunet_ext = True  # type: ignore[attr-defined]
    return __getattr__
