"""Runs our commands in this process or in another one."""

import subprocess
import sys

from nnunet_ext.cli.main import COMMANDS, Command, main

OURS = ("convert", "export", "score")
DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
from nnunet_ext.cli.main import COMMANDS, Command, main
for name in {names}:
    COMMANDS.setdefault(name, Command(f"nnunet_ext.cli.{{name}}", name))
{before}
if __name__ == "__main__":
    sys.exit(main({words}))
"""


def run(capsys, *words):
    """The exit code, and what was printed to stdout and stderr, of `nnunet_ext WORDS`."""
    for name in OURS:
        COMMANDS.setdefault(name, Command(f"nnunet_ext.cli.{name}", name))
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def start(folder, *words, before="", environment=None):
    """Starts `nnunet_ext WORDS` in a session of its own, after the Python lines `before`."""
    script = folder / "driver.py"
    script.write_text(DRIVER.format(names=OURS, before=before, words=[str(word) for word in words]))
    return subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
