"""`keep_freed_memory` stops page faults, and leaves a process alone that is told otherwise."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MEASURE = """
import resource, sys, torch
from star.utils.heap import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(25):
    if step == 20:  # long after the heap has found room: within seven rounds of several runs
        before = faults()
    blocks = [torch.zeros(10_000_000) for i in range(2)]
    del blocks
print(faults() - before)
"""


def measured(what: str, environment: dict[str, str] | None = None) -> tuple[str, int]:
    """What `keep_freed_memory` said, and page faults of five rounds of allocating 2 x 40 MB."""
    environment = {"OMP_NUM_THREADS": "1", **(environment or {})}
    command = [sys.executable, "-c", MEASURE, what]
    said, faults = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return said, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own settings")
def test_freed_memory_is_used_again() -> None:
    """Without it every round asks the system for its pages anew: 4 KiB each, or 2 MiB where it has large ones."""
    said, kept = measured("keep")
    _, given_back = measured("plain")
    assert said == "True"
    assert kept < given_back / 4


@pytest.mark.parametrize(
    "told", [{"MALLOC_MMAP_THRESHOLD_": "1048576"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_the_environment_has_the_last_word(told: dict[str, str]) -> None:
    """Someone who says how to allocate, to save memory for instance, is obeyed."""
    assert measured("keep", told)[0] == "False"
