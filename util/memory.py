"""What the C library is told of a process: to keep what tensors free, to end with its parent."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl.h of Linux
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
TOP_PAD = 2**26  # bytes by which the heap grows beyond what is asked for


def end_with_parent() -> None:
    """Lets this process be killed when the one that started it ends, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_freed_memory() -> bool:
    """Lets this process reuse the memory of large tensors instead of handing it back.

    glibc maps large blocks one by one and unmaps them when they are freed, so that each training
    step pays for all its pages again. Here they come from the heap, which is never trimmed:
    resident memory stays at its peak. (M_MMAP_THRESHOLD is limited to 32 MiB in older versions.)

    Returns:
        Whether the allocator took it: False, and nothing is changed, without glibc.
    """
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):  # Windows; musl; macOS
        return False
    if not library.startswith("glibc"):
        return False
    mallopt = ctypes.CDLL(None).mallopt  # two ints: -1 is the largest size_t
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, TOP_PAD))
    return all(mallopt(name, value) == 1 for name, value in settings)
