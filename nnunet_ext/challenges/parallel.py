"""One function over many cases in several processes: in order, with a progress bar, and stopped cleanly by Ctrl-C."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from nnunet_ext.discovery.devices import cpus
from nnunet_ext.errors import ConfigurationError

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_processes() -> int:
    """As many as this process may use cores, 8 at most."""
    return min(8, cpus())


def each(
    function: Callable[[Item], Result], items: Sequence[Item], *, processes: int, title: str
) -> Generator[Result, None, None]:
    """Yields `function(item)` in the order of `items`; few results are held at a time.

    With one process, or one item, everything runs in this process. `function` and `items` must be picklable. Closing
    the generator stops the workers.

    Raises:
        ConfigurationError: a worker was killed, as systems do when memory is short.
    """
    bar = tqdm(total=len(items), desc=title, unit="case", disable=None if items else True)  # None: only in a terminal
    with bar, _termination_is_an_interrupt():
        results = map(function, items) if min(processes, len(items)) < 2 else _in_processes(function, items, processes)
        for result in results:
            bar.update()
            yield result


def _in_processes(function: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(
        min(processes, len(items)),
        mp_context=multiprocessing.get_context("spawn"),  # forks of a process with threads can hang
        initializer=_begin_worker,
        initargs=(os.getpid(),),
    )
    waiting: deque[Future[Result]] = deque()
    rest = iter(items)
    try:
        for item in rest:
            with _interrupts_wait():  # submitting starts workers, and these inherit that interrupts wait
                waiting.append(executor.submit(function, item))
            if len(waiting) >= 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ConfigurationError(
            "A worker process was killed, most likely because memory ran out. Use fewer processes: -np 1"
        ) from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        if waiting:  # stopped early: what still runs is of no use
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()
                child.join()


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(parent: int) -> None:
    """Leaves interrupts to the parent, and ends with it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextmanager
def _termination_is_an_interrupt() -> Iterator[None]:
    """So that what was begun is put in order, as after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
