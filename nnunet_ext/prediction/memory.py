"""What the C library does with memory that is freed."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_MOST = 2**31 - 1
_LARGE = 384 * 2**20  # bytes of a block that goes back to the system: it would leave holes that nothing else fits into
_kept = False


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, for its next allocations; returns whether the C library can do that.

    glibc gives large blocks back to the system as soon as they are freed, and gets them again page by page: on CPUs
    this takes a good part of the time of a network, whose feature maps come and go. The process holds its largest size
    until `give_back`.
    """
    global _kept
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    _kept = bool(set_option(_MMAP_THRESHOLD, _LARGE)) and bool(set_option(_TRIM_THRESHOLD, _MOST))
    return _kept


def give_back() -> None:
    """Gives what `keep_freed_memory` kept to the system, now and then: between blocks in use, holes grow for ever."""
    if _kept:
        ctypes.CDLL(None).malloc_trim(0)
