"""The challenges by name: ours, those that other packages register, and a user's own file."""

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nnunet_ext.challenges.amos22 import AMOS22
from nnunet_ext.challenges.brats import BRATS2019, BRATS2020, BRATS2021
from nnunet_ext.challenges.brats_tasks import BRATS_TASKS
from nnunet_ext.challenges.btcv import BTCV
from nnunet_ext.challenges.facts import Challenge
from nnunet_ext.challenges.flare import FLARE22, FLARE23
from nnunet_ext.challenges.kits19 import KITS19
from nnunet_ext.challenges.kits23 import KITS23
from nnunet_ext.challenges.lits17 import LITS17
from nnunet_ext.challenges.msd import MSD
from nnunet_ext.errors import ConfigurationError

Tasks = Mapping[int | None, Challenge]

# Name on the command line -> its tasks; None is the only one.
CHALLENGES: dict[str, Tasks] = {
    "amos22": AMOS22,
    "brats2019": {None: BRATS2019},
    "brats2020": {None: BRATS2020},
    "brats2021": {None: BRATS2021},
    **BRATS_TASKS,
    "btcv": {None: BTCV},
    "flare22": {None: FLARE22},
    "flare23": {None: FLARE23},
    "kits19": {None: KITS19},
    "kits23": {None: KITS23},
    "lits17": {None: LITS17},
    "msd": MSD,
}
DEFAULT_TASKS = {"amos22": 1}
GROUP = "nnunet_ext.challenges"  # of entry points: name -> a Challenge, or {task: Challenge}
VARIABLE = "CHALLENGE"  # in a user's file


def get_tasks(name: str) -> Tasks:
    """The tasks of a challenge.

    Args:
        name: of `CHALLENGES`, of an entry point of the group `nnunet_ext.challenges`, or a Python file whose variable
            CHALLENGE is a `Challenge` or a dict of them by number of the task. The file is run.

    Raises:
        ConfigurationError: there is none of this name; the file is not there, or holds no table.
    """
    if name in CHALLENGES:
        return CHALLENGES[name]
    if name.endswith(".py"):
        return _checked(_from_file(Path(name)), name)
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return _checked(entry.load(), f"the entry point {entry.value}")
    known = [*CHALLENGES, *(entry.name for entry in entry_points(group=GROUP))]
    raise ConfigurationError(f"Unknown challenge '{name}'. Known: {', '.join(known)}; or a Python file with a table.")


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigurationError(f"{path} is not a file.")
    folder, module_name = str(path.resolve().parent), path.stem
    if folder not in sys.path:
        sys.path.insert(0, folder)  # worker processes import the module by its name
    module = import_module(module_name)
    if Path(module.__file__ or "").resolve() != path.resolve():
        raise ConfigurationError(f"{path} has the name of another Python module, {module.__file__}. Rename it.")
    return getattr(module, VARIABLE, None)


def _checked(table: Any, where: str) -> Tasks:
    tasks = table if isinstance(table, Mapping) else {None: table}
    if not tasks or not all(isinstance(challenge, Challenge) for challenge in tasks.values()):
        raise ConfigurationError(
            f"{where} has no {VARIABLE} that is a nnunet_ext.challenges.facts.Challenge, or several."
        )
    return tasks


def has_default(name: str, task: int | None) -> bool:
    """Whether `get_challenge` answers, or must complain, without a look at the files."""
    return task is not None or name in DEFAULT_TASKS or None in get_tasks(name)


def get_challenge(name: str, task: int | None = None) -> Challenge:
    """The challenge of that name, or that task of it; AMOS22 without a task is its task 1.

    Raises:
        ConfigurationError: unknown name or task, no task where one is needed, a task where there is none.
    """
    tasks = get_tasks(name)
    task = DEFAULT_TASKS.get(name) if task is None else task
    if task in tasks:
        return tasks[task]
    if None in tasks:
        raise ConfigurationError(f"{name} has no tasks; leave out --task {task}.")
    known = ", ".join(str(number) for number in tasks)
    raise ConfigurationError(
        f"{name} has the tasks {known}; choose one with --task."
        if task is None
        else f"{name} has no task {task}. Its tasks: {known}."
    )
