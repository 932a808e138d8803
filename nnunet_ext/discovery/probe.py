"""What a fresh Python finds, printed as JSON: run as `python -m nnunet_ext.discovery.probe`, as nnU-Net's commands are.

The look-ups are nnU-Net's own.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

MARK = "PROBE "


def _attempt(find: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    try:
        return {"found": find(*arguments)}
    except BaseException as error:  # also what a stranger's module raises at import
        return {"error": f"{type(error).__name__}: {error}"}


def _dotted(cls: Any) -> str | None:
    return None if cls is None else f"{cls.__module__}.{cls.__qualname__}"


def _facts() -> dict[str, Any]:
    import nnunet_ext
    from nnunet_ext.discovery.registry import PLANNERS, TRAINERS
    from nnunet_ext.methods import METHODS

    facts: dict[str, Any] = {
        "hook": any(getattr(f, "__module__", "") == "nnunet_ext.discovery.startup" for f in sys.meta_path),
        "package": list(nnunet_ext.__path__),
    }

    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find_trainer

    def trainer(name: str) -> str | None:
        return _dotted(find_trainer(name))

    def planner(name: str) -> str | None:
        folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
        return _dotted(find(folder, name, "nnunetv2.experiment_planning"))

    def imports_all(folder: str) -> bool:
        """Whether it is a folder; a name that is nowhere makes nnU-Net import every module there."""
        if os.path.isdir(folder):
            find(folder, "?", None, base_folder=folder, cleanup_imports_from_base_folder=True)
        return os.path.isdir(folder)

    facts["classes"] = {
        **{name: _attempt(trainer, name) for name in TRAINERS},
        **{name: _attempt(planner, name) for name in PLANNERS},
    }
    paths = [path for path in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if path.strip()]
    facts["nnUNet_extTrainer"] = {path: _attempt(imports_all, path) for path in paths}
    needs = {name: method.needs() for name, method in METHODS.items()}
    facts["methods"] = {name: _attempt(need) for name, need in needs.items() if need is not None}

    import torch

    facts["gpus"] = _attempt(
        lambda: [(torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)) for i in range(torch.cuda.device_count())]
    )
    facts["mps"] = torch.backends.mps.is_available()
    return facts


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        answer = _attempt(_facts)
    print(MARK + json.dumps(answer))
