"""Runs nnU-Net's own commands one after the other: shown before they run, logged in full, with a progress bar."""

import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from nnunet_ext.discovery.commands import stock_command, typed_command

TAIL = 25  # lines of a failed stage's log that are shown


class StageFailed(RuntimeError):
    """A command ended with an error; the message has the last lines of its log."""


class Stages:
    """The commands of one run.

    Args:
        environment: variables of all commands, on top of the process's own, from which `nnUNet_*` are taken out: what
            the user has set for real work must not reach these commands.
        logs: folder for one log a stage and for `commands.sh`, with which the stages can be run again by hand.
        total: number of stages that will be run.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path, total: int) -> None:
        self.environment, self.logs, self.total = dict(environment), logs, total
        self.seconds: dict[str, float] = {}
        self.script = logs / "commands.sh"
        self.script.write_text(
            "".join(f"export {_assignment(*pair)}\n" for pair in self.environment.items()),
            encoding="utf-8",
            errors="surrogateescape",  # a folder's name that this locale cannot read
        )

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Prints the heading of a stage and measures its time."""
        print(f"\n[{len(self.seconds) + 1}/{self.total}] {title}", flush=True)
        start = time.monotonic()
        yield
        self.seconds[title] = time.monotonic() - start

    def show(self, line: str) -> None:
        """Prints a command and adds it to `commands.sh`."""
        print(f"  $ {line}", flush=True)
        with self.script.open("a", encoding="utf-8", errors="surrogateescape") as script:
            script.write(f"{line}\n")

    def run(
        self,
        title: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        epochs: int | None = None,
    ) -> None:
        """Runs a stock command, `command[0]` being its name, and waits for it.

        Args:
            title: of the stage; its log is `<number>_<command>.log`.
            command: name and arguments.
            environment: further variables of this command.
            epochs: of a training; the progress bar counts them.

        Raises:
            StageFailed: the command's exit code is not 0.
        """
        extra = dict(environment or {})
        log = self.logs / f"{len(self.seconds) + 1}_{command[0]}.log"
        with self.stage(title):
            self.show(shown_command(command, extra))
            code = self._follow([*stock_command(command[0]), *command[1:]], extra, log, epochs)
        if code != 0:
            last = log.read_text(errors="replace").splitlines()[-TAIL:]
            raise StageFailed(
                f"{command[0]} failed with exit code {code}. The end of its log:\n\n"
                + "\n".join(f"    {text}" for text in last)
                + f"\n\nThe whole log: {log}"
            )

    def _follow(self, command: list[str], extra: Mapping[str, str], log: Path, epochs: int | None) -> int:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=child_environment({**self.environment, **extra}),
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
        try:
            with log.open("w", encoding="utf-8") as file, _Progress(epochs) as progress:
                while (line := _next(lines)) is not None:
                    if line:
                        file.write(line)
                        file.flush()
                    progress.show(line.strip())
            return process.wait()
        finally:
            _end(process)


class _Progress:
    """A bar over the epochs of a training; for other commands the time that has passed and the latest line."""

    def __init__(self, epochs: int | None) -> None:
        self.terminal, self.training = sys.stderr.isatty(), epochs is not None
        self.bar = tqdm(
            total=epochs,
            desc="  training" if self.training else "  running",
            unit="epoch",
            bar_format=None if self.training else "{desc} {elapsed} {postfix}",
            mininterval=0.3 if self.terminal else 15,
            dynamic_ncols=True,
            leave=self.training,
            disable=not self.training and not self.terminal,
        )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, line: str) -> None:
        """Takes one line of the command's output; an empty one only moves the clock."""
        if not self.training:
            if line:
                self.bar.set_postfix_str(line[:60], refresh=False)
            self.bar.refresh()
        elif not line and self.terminal:
            self.bar.refresh()
        elif (dice := pseudo_dice(line)) is not None:
            self.bar.set_postfix_str(f"Dice {dice:.2f}", refresh=False)
        elif "Epoch time:" in line:
            self.bar.update()
        elif "Training done" in line:
            self.bar.set_description_str("  trained, validating")


def pseudo_dice(line: str) -> float | None:
    """The mean of nnU-Net's line "Pseudo dice [np.float32(0.5), ...]"; None for other lines."""
    _, found, values = line.partition("Pseudo dice")
    numbers = [float(number) for number in re.findall(r"\d+\.\d+(?:e[-+]\d+)?", values)]
    return sum(numbers) / len(numbers) if found and numbers else None


def shown_command(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The command as one would type it, variables first."""
    return " ".join([*(_assignment(*pair) for pair in environment.items()), typed_command(command)])


def child_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The process's environment without `nnUNet_*`, with `variables`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
    return {**inherited, "PYTHONUNBUFFERED": "1", "MPLBACKEND": "Agg", **variables}


def _assignment(key: str, value: str) -> str:
    return f"{key}={shlex.quote(value)}"


def _read_lines(process: subprocess.Popen, lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:  # universal newlines: every step of a progress bar is a line, too
        lines.put(line)
    lines.put(None)


def _next(lines: "queue.Queue[str | None]") -> str | None:
    """The next line; "" after half a second of silence; None at the end."""
    try:
        return lines.get(timeout=0.5)
    except queue.Empty:
        return ""


def _end(process: subprocess.Popen) -> None:
    """Leaves no process behind when the demo is interrupted.

    Ctrl-C first: nnU-Net then ends its own worker processes, which it cannot do when it is terminated.
    """
    interrupt = partial(process.send_signal, signal.SIGINT) if os.name == "posix" else process.terminate
    for end, patience in ((interrupt, 10), (process.terminate, 5), (process.kill, 5)):
        if process.poll() is not None:
            return
        end()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
