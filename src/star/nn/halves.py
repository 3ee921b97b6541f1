"""A cache for small cards: the conditional and the unconditional half apart, one of them parked meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from star.nn.cache import KVCache


class HalvedCache:
    """Two caches that are used in turn; on a GPU the one that isn't used lies in main memory.

    Args:
        build: makes the cache of one half.
        halves: 2 under guidance, else 1.
        device: where the model runs.

    """

    def __init__(self, build: Callable[[], KVCache], halves: int, device: torch.device) -> None:
        self.caches = [build() for _ in range(halves)]
        self.device = device

    def turns(self, tokens: int) -> Iterator[KVCache]:
        """Each half in its turn; `tokens`: how many there are once it had its turn."""
        for cache in self.caches:
            # a single half, or one that shares its memory with the others, has no reason to move
            moves = len(self.caches) > 1 and self.device.type != "cpu"
            if moves:
                cache.fetch(self.device)
            yield cache
            if moves:
                cache.park(tokens)

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows (R,) long, those of the second half behind those of the first, in step."""
        own = rows[: len(rows) // len(self.caches)]
        for cache in self.caches:
            cache.select(own)

    def forget_text(self) -> None:
        """Have the texts' keys and values computed again."""
        for cache in self.caches:
            cache.forget_text()

    def clear(self) -> None:
        """Forget everything."""
        for cache in self.caches:
            cache.clear()

    def first(self, rows: int) -> None:
        """Keep the first rows: one half is all that stays."""
        if len(self.caches) > 1 and self.device.type != "cpu":
            self.caches[0].fetch(self.device)
        del self.caches[1:]
        self.caches[0].first(rows)

    def tokens(self, layer: int = 0) -> int:
        """How many tokens of a layer take memory on the device at a time."""
        return max(cache.tokens(layer) for cache in self.caches)
