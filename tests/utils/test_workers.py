from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest

from star.utils.workers import in_processes

POOL = """
import os, time
from star.utils.workers import in_processes

for process in in_processes(os.getpid, [()], 1):
    print(process, flush=True)
    time.sleep(60)
"""


def test_all_results_arrive_and_an_error_ends_the_work() -> None:
    assert sorted(in_processes(divmod, [(9, 2), (9, 4), (7, 7)], 2)) == [(1, 0), (2, 1), (4, 1)]
    assert list(in_processes(divmod, [], 2)) == []
    with pytest.raises(ZeroDivisionError):
        list(in_processes(divmod, ((1, 0) for _ in count()), 2))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc which processes run")
def test_a_pools_process_leaves_ctrl_c_to_its_parent_and_ends_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", POOL], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, signal.SIGINT)
        time.sleep(0.5)
        assert alive(worker)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        for _ in range(100):
            if not alive(worker):
                return
            time.sleep(0.1)
        os.kill(worker, signal.SIGKILL)
    raise AssertionError("the worker outlived its parent by ten seconds")


def alive(process: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked for doesn't."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
