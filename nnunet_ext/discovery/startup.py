"""Makes our trainers and planners visible to the stock nnU-Net commands. Runs at every start of Python: stay light."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from nnunet_ext.discovery.registry import CLASSES, resolver


def _hook(module: ModuleType) -> None:
    before = vars(module).get("__getattr__")
    if not hasattr(before, "nnunet_ext"):
        module.__getattr__ = resolver(module.__name__, before)  # type: ignore[method-assign]


class _Finder:
    """A meta path finder that adds the hook to the awaited nnU-Net modules right after they were executed."""

    waiting = set(CLASSES)

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in cls.waiting:
            return None
        cls.waiting.discard(name)  # so that the look-up below passes this finder by
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            exec_module = spec.loader.exec_module

            def exec_then_hook(module: ModuleType) -> None:
                exec_module(module)
                _hook(module)

            spec.loader.exec_module = exec_then_hook  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Hooks the nnU-Net modules that are loaded, and waits for the others. Calling it twice does no harm."""
    for name in CLASSES:
        if name in sys.modules:
            _Finder.waiting.discard(name)
            _hook(sys.modules[name])
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


def installed() -> bool:
    """Whether the hook is in place in this process."""
    return _Finder in sys.meta_path
