from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from star.data.workers import WorkerStreams, open_loader

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="macOS can't tell who sends a signal")


class Counting:
    """A stream without end."""

    def batches(self, share: Any, state: Any) -> Iterator[Any]:
        number = 0
        while True:
            number += 1
            yield Numbered(number)


class Numbered(int):
    """Passes for a batch."""

    def _replace(self, worker: int) -> int:
        return int(self)


def test_signals_for_the_whole_job_leave_workers_at_work_and_the_parent_ends_them() -> None:
    streams: Any = WorkerStreams(Counting(), num_workers=1)  # type: ignore[arg-type]
    batches: Any = iter(open_loader(streams, num_workers=1, prefetch=1, pin_memory=False, persistent=False))
    assert next(batches) == 1
    (worker,) = batches._workers
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        code = f"import os, signal; os.kill({worker.pid}, signal.{name})"
        subprocess.run([sys.executable, "-S", "-c", code], check=True)
    time.sleep(0.2)
    assert [next(batches) for _ in range(5)] == [2, 3, 4, 5, 6]
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(10)
    assert worker.exitcode == 0
