"""Work that several processes share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any


def in_processes(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """What `function(*task)` gives for every task, as they are done.

    No more tasks are given out than there are processes, so that ctrl-C, or a task that fails, ends all with what is
    being worked on.
    """
    # A fresh interpreter per process: a fork would copy the locks of whatever threads the caller runs.
    context, running = multiprocessing.get_context("spawn"), set[Future[Any]]()
    with ProcessPoolExecutor(workers, context, follow_parent) as pool:
        for task in tasks:
            if len(running) == workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (job.result() for job in done)
            with _deaf_to_ctrl_c():  # so that a process is, too, before it has begun to follow
                running.add(pool.submit(function, *task))
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (job.result() for job in done)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Hear ctrl-C afterwards; processes that are begun meanwhile don't."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """Leave ctrl-C to the process that began this one, and end with it: a pool's `initializer`.

    Ctrl-C reaches every process of a terminal, and each would say so in a trace of its own. A pool's processes hold
    both ends of the queue they read, so that the end of a parent that was killed would never reach them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
