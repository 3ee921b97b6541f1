"""Time by part, of a program whose parts call one another."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

Times = dict[str, tuple[float, float]]


class Stopwatch:
    """Every moment belongs to one part: the innermost that is running.

    Args:
        device: a GPU is waited for whenever the part changes, which takes time itself.

    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stack: list[str] = []
        self._own: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._whole: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._since = (0.0, 0.0)

    def times(self) -> tuple[Times, Times]:
        """CPU and wall seconds of every part since this was last asked: its own, and with the parts inside of it."""
        found = [{name: (cpu, wall) for name, (cpu, wall) in held.items()} for held in (self._own, self._whole)]
        self._own.clear()
        self._whole.clear()
        return found[0], found[1]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time spent inside belongs to `name`."""
        start = self._book()
        self._stack.append(name)
        try:
            yield
        finally:
            _add(self._whole[name], start, self._book())
            self._stack.pop()

    @contextmanager
    def calls(self, owner: Any, method: str, name: str | Callable[..., str]) -> Iterator[None]:
        """Calls of a method belong to `name`, or to what it makes of the arguments; undone afterwards."""
        original = getattr(owner, method)
        mine = vars(owner).get(method)

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name if isinstance(name, str) else name(*arguments, **named)):
                return original(*arguments, **named)

        setattr(owner, method, timed)
        try:
            yield
        finally:
            delattr(owner, method)
            if mine is not None:
                setattr(owner, method, mine)

    @contextmanager
    def modules(self, modules: Iterator[nn.Module], name: str) -> Iterator[None]:
        """Calls of modules belong to `name`."""
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(self.calls(module, "forward", name))
            yield

    def _book(self) -> tuple[float, float]:
        now = stamp(self.device)
        if self._stack:
            _add(self._own[self._stack[-1]], self._since, now)
        self._since = now
        return now


def _add(seconds: list[float], start: tuple[float, float], end: tuple[float, float]) -> None:
    seconds[0] += end[0] - start[0]
    seconds[1] += end[1] - start[1]


def stamp(device: torch.device) -> tuple[float, float]:
    """CPU seconds of this process, and seconds on the wall, once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time(), time.perf_counter()
