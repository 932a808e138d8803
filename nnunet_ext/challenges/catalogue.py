"""The challenges by name."""

from nnunet_ext.challenges.amos22 import AMOS22
from nnunet_ext.challenges.brats import BRATS2019, BRATS2020
from nnunet_ext.challenges.btcv import BTCV
from nnunet_ext.challenges.facts import Challenge
from nnunet_ext.challenges.kits19 import KITS19
from nnunet_ext.challenges.lits17 import LITS17
from nnunet_ext.challenges.msd import MSD
from nnunet_ext.errors import ConfigurationError

# Name on the command line -> its tasks; None is the only one.
CHALLENGES: dict[str, dict[int | None, Challenge]] = {
    "amos22": AMOS22,
    "brats2019": {None: BRATS2019},
    "brats2020": {None: BRATS2020},
    "btcv": {None: BTCV},
    "kits19": {None: KITS19},
    "lits17": {None: LITS17},
    "msd": MSD,
}
DEFAULT_TASKS = {"amos22": 1}


def get_challenge(name: str, task: int | None = None) -> Challenge:
    """The challenge of that name, or that task of it; AMOS22 without a task is its task 1.

    Raises:
        ConfigurationError: unknown name or task, no task where one is needed, a task where there is none.
    """
    tasks = CHALLENGES.get(name)
    if tasks is None:
        raise ConfigurationError(f"Unknown challenge '{name}'. Known: {', '.join(CHALLENGES)}.")
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
