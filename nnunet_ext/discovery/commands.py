"""How nnU-Net's commands are started so that they find our classes."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_ext.discovery import startup


def stock_command(name: str) -> list[str]:
    """How to start nnU-Net's command `name` so that it finds our classes.

    The script beside the running Python; `python -m nnunet_ext NAME` where that script is missing or the start-up
    file is not active.
    """
    script = shutil.which(name, path=str(Path(sys.executable).parent))
    if script is None or not startup.installed():
        return [sys.executable, "-m", "nnunet_ext", name]
    return [script]


def typed_command(command: Sequence[str]) -> str:
    """The command as one types it here, quoted for a shell; the full path only where the name alone would not do."""
    start = stock_command(command[0])
    if len(start) == 1 and shutil.which(command[0]) == start[0]:
        start = [command[0]]
    return shlex.join([*start, *command[1:]])
