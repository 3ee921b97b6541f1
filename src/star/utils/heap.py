"""What glibc does with freed memory."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h's names for mallopt
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees, for its next allocations, in place of giving it back to the system.

    A step of a training frees what the next one needs again, as does a scale of a drawing. Given back, every page has
    to be asked for and cleared anew: up to 24,000 a step of the demo's generator, a tenth of its time, for the same
    peak.

    Returns:
        Whether it does so now: not off Linux, with another C library, or where the environment says how to allocate.

    """
    told = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if told or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, _MOST) == 1 for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
