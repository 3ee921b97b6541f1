"""What devices can do at most, from their data sheets, and what this one did."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        name: what the plan calls it.
        memory: bytes that a program can use.
        half: TFLOP/s of dense bf16 (V100: fp16) products that are summed in fp32.
        single: TFLOP/s of fp32 products, without TF32.

    """

    name: str
    memory: int
    half: float
    single: float

    @property
    def precision(self) -> str:
        """Of a training on one, in Lightning's words: what `fast_precision` says there."""
        return "16-mixed" if self.name == "v100" else "bf16-mixed"

    def peak(self, *, half: bool) -> float:
        """TFLOP/s at the precision of a training."""
        return self.half if half else self.single


def _device(name: str, gib: float, half: float, single: float) -> Device:
    return Device(name, int(gib * GIB), half, single)


# Memory is what PyTorch sees of the advertised 40, 80, 141, ... GB.
DEVICES = {
    device.name: device
    for device in (
        _device("a100", 79.1, 312.0, 19.5),
        _device("a100_40", 39.4, 312.0, 19.5),
        _device("h100", 79.1, 989.4, 66.9),
        _device("h200", 139.8, 989.4, 66.9),
        _device("b200", 178.0, 2250.0, 75.0),
        _device("l40s", 44.4, 362.0, 91.6),
        _device("a10", 22.0, 125.0, 31.2),
        _device("l4", 22.0, 121.0, 30.3),
        _device("rtx4090", 23.6, 165.2, 82.6),
        _device("rtx3090", 23.6, 71.0, 35.6),
        _device("v100", 31.7, 125.0, 15.7),
    )
}
# What CUDA calls them, the longer names first: "L40S" has "L4" in it.
_NAMES = {
    "A100": "a100",
    "H100": "h100",
    "H200": "h200",
    "B200": "b200",
    "L40S": "l40s",
    "A10": "a10",
    "L4": "l4",
    "RTX 4090": "rtx4090",
    "RTX 3090": "rtx3090",
    "V100": "v100",
}


def known(name: str, memory: int) -> Device | None:
    """The device that CUDA calls `name`, with as much memory as it says; None when its data sheet isn't here."""
    found = next((DEVICES[short] for part, short in _NAMES.items() if part in name), None)
    return None if found is None else Device(found.name, memory, found.half, found.single)


def this_device(device: torch.device) -> Device:
    """A device of this machine: its data sheet, or for CPUs and unknown ones what a matrix product reaches."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        if found := known(properties.name, properties.total_memory):
            return found
        memory = int(properties.total_memory)
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    side = 1024 if device.type != "cpu" or cpu_has_bf16() else 128  # without instructions for it, 1024 takes seconds
    half, single = measure(device, torch.bfloat16, side=side), measure(device, torch.float32)
    return Device(device.type, memory, half, single)


def choose_device(name: Any) -> str:
    """The device that a setting names; `auto` is the GPU where there is one.

    Raises:
        ValueError: for no device's name, or a GPU that this machine doesn't have.

    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(str(name))
    except RuntimeError as error:
        raise ValueError(f"device is auto, cpu, cuda or cuda:N, got {name!r}") from error
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(f"device={name}, but PyTorch finds {found or 'no'} GPUs here: device=auto takes what there is")
    return str(device)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices itself; others are up to a hundred times slower than in fp32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def fast_precision(kind: str) -> tuple[str, str]:
    """Lightning's name of the precision that trains fastest without losing accuracy, and why.

    Args:
        kind: of device: `cpu` (this machine's), `cuda`, ...

    """
    if kind == "cpu" and not cpu_has_bf16():
        return "32-true", "this CPU has no instructions for bf16"
    if kind == "cuda" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "16-mixed", "this GPU has no bf16"
    return "bf16-mixed", f"this {kind} has bf16"


@torch.no_grad()
def measure(device: torch.device, dtype: torch.dtype, *, side: int = 1024, times: int = 4) -> float:
    """TFLOP/s of a square matrix product, the best of several."""
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(times + 1):  # the first one warms up
        begun = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best / 1e12


def peak_memory(device: torch.device) -> int:
    """Bytes that this process used at most: allocated on a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
