"""Which of our classes nnU-Net can find, and through which of its modules.

nnU-Net looks a trainer or planner up by asking its own modules `hasattr(module, name)`. A module-level `__getattr__`
(PEP 562) on the first module of each search answers for our names, so that nnU-Net gets the one canonical class.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

TRAINERS = {
    "DiNTSSearchTrainer": "nnunet_ext.trainers.dints_search",
    "DiNTSTrainer": "nnunet_ext.trainers.dints",
    "E2ENetTrainer": "nnunet_ext.trainers.e2enet",
    "MedDANetTrainer": "nnunet_ext.trainers.med_danet",
    "MedTuningTrainer": "nnunet_ext.trainers.med_tuning",
}
PLANNERS = {
    "DiNTSPlanner": "nnunet_ext.plans.dints",
    "E2ENetPlanner": "nnunet_ext.plans.e2enet",
    "MedDANetPlanner": "nnunet_ext.plans.med_danet",
    "MedTuningPlanner": "nnunet_ext.plans.med_tuning",
}
CLASSES = {
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer": TRAINERS,
    "nnunetv2.experiment_planning.plan_and_preprocess_api": PLANNERS,
}


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
