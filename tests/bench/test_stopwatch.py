from __future__ import annotations

import time

import pytest
import torch

from star.bench.memory import PeakMemory
from star.bench.stopwatch import Stopwatch


def test_every_moment_belongs_to_the_innermost_part() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with watch.part("outer"):
        time.sleep(0.02)
        with watch.part("inner"):
            time.sleep(0.04)
    own, whole = watch.times()
    assert own["outer"][1] == pytest.approx(0.02, abs=0.015)
    assert own["inner"][1] == whole["inner"][1] >= 0.04
    assert whole["outer"][1] >= 0.06
    assert own["inner"][0] < 0.02  # asleep, no work is done
    assert watch.times() == ({}, {})


def test_methods_are_put_back() -> None:
    class Owner:
        def method(self) -> int:
            return 3

    owner, watch = Owner(), Stopwatch(torch.device("cpu"))
    with watch.calls(owner, "method", "part"):
        assert owner.method() == 3
    assert "method" not in vars(owner)
    assert set(watch.times()[0]) == {"part"}


def test_peak_memory_is_that_of_the_work_alone() -> None:
    memory = PeakMemory(torch.device("cpu"))
    before = memory.reset()
    torch.ones(2**26)  # 256 MiB, freed at once
    assert memory.peak() - before == pytest.approx(0.25, abs=0.05)
    again = memory.reset()
    assert again - before < 0.1
    assert memory.peak() - again < 0.1
