"""What the C library does with memory that is freed."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, for its next allocations; returns whether the C library can do that.

    glibc gives large blocks back to the system as soon as they are freed, and gets them again page by page: on CPUs
    this takes a good part of the time of a network, whose feature maps come and go. The process holds its largest size
    from then on.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    return bool(set_option(_MMAP_THRESHOLD, _MOST)) and bool(set_option(_TRIM_THRESHOLD, _MOST))
