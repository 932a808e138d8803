"""The installed commands, as the benchmarks run them."""

import os
import subprocess
import sys
import time
from pathlib import Path


def command(*words, **environment):
    """Runs a command that stands beside this Python, and says so; `environment`: variables that are other than here.

    Raises:
        CalledProcessError: it failed.
    """
    print(time.strftime("%H:%M:%S"), *words, flush=True)
    words = [str(Path(sys.executable).parent / words[0]), *map(str, words[1:])]
    subprocess.run(words, check=True, env={**os.environ, **environment})
