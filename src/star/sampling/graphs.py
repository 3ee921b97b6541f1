"""A scale's blocks as one CUDA graph: recorded once for each shape, then launched by one call instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from star.nn.cache import KVCache
from star.nn.position import Rotation
from star.types import Condition

Work = Callable[[], Tensor]
Capture = Callable[[Work, KVCache, torch.device], tuple[Tensor, Callable[[], None]]]


@dataclass(frozen=True)
class _Recording:
    """A graph with the places that it reads its inputs from and writes its result to."""

    x: Tensor
    condition: Condition
    result: Tensor
    replay: Callable[[], None]
    held: Any  # whatever else lies at an address that the graph knows: it must not be given to others

    def run(self, x: Tensor, condition: Condition) -> Tensor:
        """Hidden states (R, L_k, C), which hold until the graph runs again."""
        self.x.copy_(x)
        for place, given in zip(_parts(self.condition), _parts(condition), strict=True):
            place.copy_(given)
        self.replay()
        return self.result


class GraphedBlocks:
    """What runs a transformer's blocks, recorded.

    A graph knows addresses, not tensors: all pictures of one shape are drawn in the same cache, one batch after
    another.

    Args:
        run: `STARTransformer.run_blocks`, or a compiled form of it.
        capture: records one piece of work; CUDA's by default.

    """

    def __init__(self, run: Callable[..., Tensor], *, capture: Capture | None = None) -> None:
        self.run = run
        self.capture = capture or capture_on_cuda
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        self._homes: dict[tuple[Any, ...], KVCache] = {}
        self._current: KVCache | None = None
        self._home: tuple[Any, ...] = ()

    def __call__(
        self, x: Tensor, condition: Condition, *, rotation: Rotation | None, cache: KVCache, scale: int
    ) -> Tensor:
        """Tokens (R, L_k, C) of a scale through all blocks.

        Raises:
            ValueError: off a GPU, or when two batches are drawn in turns.

        """
        if scale == 0:
            self._begin(x, condition, cache)
        elif cache is not self._current:
            raise ValueError(
                "CUDA graphs draw one batch after another, in one cache: finish a picture before the next one begins, "
                "or set speed.compile to blocks"
            )
        key = (*self._home, scale, x.shape[0])
        if key not in self._recordings:
            self._recordings[key] = self._record(x, condition, rotation, cache, scale)
            if scale == 0:
                self._homes[self._home].adopt(cache)
        return self._recordings[key].run(x, condition)

    def _begin(self, x: Tensor, condition: Condition, cache: KVCache) -> None:
        kind = x.device.type
        length = None if condition.context is None else condition.context.shape[1]
        numbers = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        self._home = (cache.schedule, x.shape[0], length, numbers)
        self._current = cache
        if self._home in self._homes:
            cache.adopt(self._homes[self._home])
        else:
            self._homes[self._home] = KVCache(cache.schedule, cache.mask, cache.policy)

    def _record(
        self, x: Tensor, condition: Condition, rotation: Rotation | None, cache: KVCache, scale: int
    ) -> _Recording:
        kind = x.device.type
        x = x.clone()
        condition = condition.to(x.device, copy=True)
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

        def work() -> Tensor:
            # what autocast remembers would lie outside of the graph's memory
            with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
                return self.run(x, condition, rotation=rotation, cache=cache, scale=scale)

        result, replay = self.capture(work, cache, x.device)
        return _Recording(x, condition, result, replay, held=(rotation, cache.held()))


def capture_on_cuda(work: Work, cache: KVCache, device: torch.device) -> tuple[Tensor, Callable[[], None]]:
    """Record work on a device; returns its result, and what does the work again in the same places.

    Raises:
        ValueError: off a GPU, where nothing would be recorded, and the first picture repeated for ever.

    """
    if device.type != "cuda":
        raise ValueError(f"CUDA graphs need a GPU, and this is drawn on {device}: set speed.compile to blocks or none")
    with torch.cuda.device(device):  # streams are the current GPU's, which need not be the model's
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        known = cache.knows_text()
        with torch.cuda.stream(aside):  # whatever is set up on first use must not be recorded
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        if not known:
            cache.forget_text()  # a graph that computes it must hold it
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = work()
        return result, graph.replay


def _parts(condition: Condition) -> list[Tensor]:
    parts = (condition.pooled, condition.context, condition.context_mask)
    return [part for part in parts if part is not None]
