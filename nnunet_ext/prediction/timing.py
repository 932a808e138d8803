"""Seconds and peak memory of each stage of prediction, of which several run at once."""

import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAGES = ("read", "crop", "normalise", "resample", "network", "labels", "write")
_STATM = Path("/proc/self/statm")
EVERY = 0.02  # seconds between two looks at the memory


class Timing:
    """Adds up seconds by stage and case, and looks at the process's memory while a stage runs.

    Where stages run at once, each of them is told the memory of the whole process.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}
        self.peaks: dict[str, int] = {}
        self._active: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._ended = threading.Event()
        self._start = time.perf_counter()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Timing":
        if _STATM.is_file():
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Within it, this thread's stages belong to the case."""
        self._local.case = name
        yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within it, the stage runs."""
        with self._lock:
            self._active[name] += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - start
            with self._lock:
                self._active[name] -= 1
                stages = self.seconds.setdefault(self._local.case, {})
                stages[name] = stages.get(name, 0.0) + taken

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._ended.wait(EVERY):
            used = int(_STATM.read_text(encoding="utf-8").split()[1]) * page
            with self._lock:
                for name, count in self._active.items():
                    if count:
                        self.peaks[name] = max(self.peaks.get(name, 0), used)

    def report(self) -> dict[str, Any]:
        """Seconds in all, by case and stage; peak memory of the process by stage in bytes, where the system tells."""
        with self._lock:
            cases = {name: {k: round(v, 4) for k, v in stages.items()} for name, stages in self.seconds.items()}
            return {
                "seconds": round(time.perf_counter() - self._start, 3),
                "cases": cases,
                "peak_bytes": dict(self.peaks),
            }

    def table(self) -> str:
        """For people: seconds a case (median), in all, and peak memory of each stage."""
        report = self.report()
        rows = [("stage", "seconds a case", "in all", "peak memory")]
        for stage in STAGES:
            taken = [stages[stage] for stages in report["cases"].values() if stage in stages]
            if taken:
                peak = report["peak_bytes"].get(stage)
                memory = "" if peak is None else f"{peak / 2**30:.2f} GiB"
                rows.append((stage, f"{statistics.median(taken):.2f}", f"{sum(taken):.2f}", memory))
        lines = [f"{a:<10}{b:>16}{c:>10}{d:>14}" for a, b, c, d in rows]
        return "\n".join([*lines, f"{report['seconds']:.2f} s from start to end; stages overlap."])
