"""Starts Snakemake on a study, once at a time, and hands signals on to it."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from nnunet_ext.discovery.commands import typed_command
from nnunet_ext.discovery.devices import cpus
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.studies.layout import Layout
from nnunet_ext.studies.locks import hold

_PLUGIN = "snakemake_executor_plugin_"
_JOBS = 100  # at once on a cluster, where no profile says otherwise


def check_snakemake(profile: str | None) -> None:
    """Refuses what Snakemake would refuse late.

    Raises:
        ConfigurationError: it is not installed, or knows neither a profile nor an executor of that name.
    """
    if find_spec("snakemake") is None:
        raise ConfigurationError(
            'Studies are run by Snakemake, which is not installed. Run: pip install "nnunet-ext[workflow]" (with '
            "Python 3.11 or newer)"
        )
    if profile is not None and not _is_profile(profile) and not _is_executor(profile):
        raise ConfigurationError(
            f"Snakemake has neither a profile nor an executor '{profile}'. Give the folder of a profile, put one into "
            f"~/.config/snakemake/{profile}, or install the executor: pip install snakemake-executor-plugin-{profile}"
        )


def _is_profile(name: str) -> bool:
    """As Snakemake looks for profiles: a folder, or one of that name in its folders of settings."""
    places = [Path(name), Path.home() / ".config" / "snakemake" / name, Path("/etc/xdg/snakemake") / name]
    return any(place.is_dir() for place in places)


def _is_executor(name: str) -> bool:
    module = f"{_PLUGIN}{name.replace('-', '_')}"
    return module.isidentifier() and find_spec(module) is not None


def snakemake_words(
    layout: Layout, *, gpus: int, profile: str | None, dry_run: bool, further: Sequence[str] = ()
) -> list[str]:
    """The command line of Snakemake.

    Args:
        layout: of the study.
        gpus: of this machine.
        profile: profile or executor; None runs on this machine.
        dry_run: only shows the jobs.
        further: arguments for Snakemake, which come last.
    """
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(Path(__file__).with_name("Snakefile"))]
    words += ["--directory", str(layout.work), "--nolock", "--keep-going", "--rerun-incomplete"]
    words += ["--rerun-triggers", "mtime"]
    settings = {"study": layout.study.path, "work": layout.work, "device": layout.device, "gpus": gpus}
    words += ["--config", *(f"{key}={value}" for key, value in settings.items())]
    if profile is None:
        # one training a GPU, or one on a CPU
        words += ["--cores", str(cpus()), "--resources", "planning=1", f"training={max(1, gpus)}"]
    else:
        words += ["--profile", profile] if _is_profile(profile) else ["--executor", profile, "--jobs", str(_JOBS)]
        words += ["--resources", "planning=1"]
    return [*words, *(["--dry-run"] if dry_run else []), *further]


def launch(layout: Layout, words: Sequence[str], *, elsewhere: bool = False) -> int:
    """Runs Snakemake in the study's folder and returns its exit code.

    `elsewhere`: jobs run on other machines, whose locks `--status` does not see.

    Raises:
        ConfigurationError: the study is being run already.
    """
    layout.work.mkdir(parents=True, exist_ok=True)
    lock = hold(layout.work / "run.lock")
    if lock is None:
        status = ["nnunet_ext", "run", str(layout.study.path), "-o", str(layout.work), "--status"]
        raise ConfigurationError(
            f"{layout.study.path.name} is being run already. See how far it is: {typed_command(status)}"
        )
    with lock:
        layout.elsewhere.touch() if elsewhere else layout.elsewhere.unlink(missing_ok=True)
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            pass_fds=[lock.fileno()],  # held as long as Snakemake runs, also where this process is killed
            start_new_session=True,  # a Ctrl-C reaches it once, from here
        )

        def hand_on(number: int, frame: FrameType | None) -> None:
            os.killpg(process.pid, signal.SIGINT)

        before: dict[int, Any] = {n: signal.signal(n, hand_on) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
