"""Makes our trainers, planners and resampling visible to the stock nnU-Net commands. Runs at every start of Python.

So nothing is imported here but `sys` and `_thread`, which every Python holds already; all else waits until nnU-Net's
own modules are imported.
"""

import sys
from _thread import _local

from nnunet_ext.discovery.searched import PLANNER_MODULE, RESAMPLING_MODULE, TRAINER_MODULE

TYPE_CHECKING = False  # as in `typing`, which is not imported for that
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

MODULES = (TRAINER_MODULE, PLANNER_MODULE, RESAMPLING_MODULE)


def _hook(module: "ModuleType") -> None:
    from nnunet_ext.discovery.registry import resolver

    before = vars(module).get("__getattr__")
    if not hasattr(before, "nnunet_ext"):
        module.__getattr__ = resolver(module.__name__, before)  # type: ignore[method-assign]


class _Finder:
    """A meta path finder that adds the hook to the awaited nnU-Net modules right after they were executed."""

    asking = _local()  # the module whose other finders this thread is asking

    @classmethod
    def find_spec(cls, name: str, path: "Any" = None, target: "Any" = None) -> "ModuleSpec | None":
        if name not in MODULES or getattr(cls.asking, "name", None) == name:
            return None
        cls.asking.name = name
        try:
            spec = _spec_of_others(name, path, target)
        finally:
            cls.asking.name = None
        if spec is not None and spec.loader is not None:
            exec_module = spec.loader.exec_module

            def exec_then_hook(module: "ModuleType") -> None:
                exec_module(module)
                _hook(module)

            spec.loader.exec_module = exec_then_hook  # type: ignore[method-assign]
        return spec


def _spec_of_others(name: str, path: "Any", target: "Any") -> "ModuleSpec | None":
    for finder in sys.meta_path:
        if hasattr(finder, "find_spec"):  # ours answers None by now
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
    return None


def install() -> None:
    """Hooks the nnU-Net modules that are loaded, and waits for the others. Calling it twice does no harm."""
    for name in MODULES:
        if name in sys.modules:
            _hook(sys.modules[name])
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


def installed() -> bool:
    """Whether the hook is in place in this process."""
    return _Finder in sys.meta_path
