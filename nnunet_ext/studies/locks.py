"""Locks that the system releases when their process ends, however it ends."""

from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, on which nothing is locked
    fcntl = None  # type: ignore[assignment]


def hold(path: Path, *, wait: bool = False) -> IO[str] | None:
    """Locks a file, which is made where it is missing; closing it, or the end of the process, releases it.

    Children to which its descriptor is passed on (`pass_fds` of subprocess) hold it too.

    Args:
        path: the file.
        wait: until others have released it.

    Returns:
        The open file; None where another process holds it. Where the file system has no locks, as some of clusters,
        it is given out unlocked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        return file
    return file


def is_held(path: Path) -> bool:
    """Whether a process holds the lock; nothing is written."""
    if fcntl is None:
        return False
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no locks here
        return False
    return False
