"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

GIB = 2**30


class PeakMemory:
    """The peak of the device's memory, or on a CPU of the process's.

    Args:
        device: whose.

    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> float:
        """Begin anew; returns what is in use, GiB."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device) / GIB
        _give_back()
        clear = Path("/proc/self/clear_refs")
        if clear.exists():
            clear.write_text("5")  # Linux: forget the process's peak
        return _status("VmRSS") or self.peak()

    def peak(self) -> float:
        """The most that was in use since `reset`, GiB; without Linux's help, since the process began."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / GIB
        unit = 1 if sys.platform == "darwin" else 1024
        return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _status(name: str) -> float | None:
    """A size that Linux tells of this process, GiB."""
    file = Path("/proc/self/status")
    if not file.exists():
        return None
    line = next(line for line in file.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / GIB


def _give_back() -> None:
    """Return freed memory to the system, so that one piece of work isn't charged for the one before."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
