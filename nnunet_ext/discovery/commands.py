"""How nnU-Net's commands are started so that they find our classes."""

import shutil
import sys
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
