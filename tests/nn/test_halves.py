from __future__ import annotations

import gc
from typing import Any

import torch

from star.nn.cache import KVCache
from star.nn.halves import HalvedCache
from star.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule.square(1, 2, 3)


def fill(cache: KVCache, scale: int, rows: int = 2) -> torch.Tensor:
    keys = torch.randn(rows, 2, SCHEDULE.lengths[scale], 4)
    return cache.append(0, scale, keys, keys, -keys)[0]


def test_a_parked_cache_comes_back_as_it_was() -> None:
    """Only what is drawn travels, and there is room for the rest again."""
    cache = KVCache(SCHEDULE)
    fill(cache, 0)
    before = fill(cache, 1).clone()
    text = (torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4))
    cache.text(0, lambda: text)
    cache.park(5)
    assert cache.tokens() == 5
    cache.fetch("cpu")
    assert cache.tokens() == SCHEDULE.offsets[-2]
    assert torch.equal(fill(cache, 2)[:, :, :5], before)
    assert torch.equal(cache.text(0, lambda: text)[0], text[0])


def test_coming_back_takes_no_memory_twice() -> None:
    """Nothing on the device but the buffers; the half that waits elsewhere is the whole point."""
    cache = KVCache(SCHEDULE, num_layers=4)
    for scale in (0, 1):
        keys = torch.randn(2, 2, SCHEDULE.lengths[scale], 4)
        for layer in range(4):
            cache.append(layer, scale, keys, keys, keys)
    cache.park(5)
    there: list[int] = []
    room = cache._buffer

    def counted(part: torch.Tensor, *device: Any) -> torch.Tensor:
        made = room(part, *device)
        there.append(sum(x.numel() for x in gc.get_objects() if type(x) is torch.Tensor and x.device.type == "meta"))
        return made

    cache._buffer = counted  # type: ignore[method-assign]
    cache.fetch("meta")
    assert max(there) == sum(part.numel() for part in cache.held())


class Travelling(KVCache):
    """Notes when it is moved; there is but one device here."""

    def __init__(self) -> None:
        super().__init__(SCHEDULE)
        self.moves: list[str] = []

    def park(self, tokens: int, place: Any = "cpu") -> None:
        self.moves.append(f"park {tokens}")
        super().park(tokens)

    def fetch(self, device: Any) -> None:
        self.moves.append(f"fetch {device}")
        super().fetch("cpu")


def test_on_a_gpu_one_half_is_there_at_a_time() -> None:
    plain = HalvedCache(lambda: KVCache(SCHEDULE), 2, torch.device("cpu"))
    halved = HalvedCache(Travelling, 2, torch.device("cuda"))
    places = ["parked", "parked"]
    for scale in range(2):
        pairs = zip(plain.turns(SCHEDULE.offsets[scale + 1]), halved.turns(SCHEDULE.offsets[scale + 1]), strict=True)
        for half, (one, other) in enumerate(pairs):
            places = ["here" if cache.moves[-1:] == ["fetch cuda"] else "parked" for cache in halved.caches]
            assert places == ["here" if n == half else "parked" for n in range(2)]
            torch.manual_seed(10 * half + scale)
            expected = fill(one, scale)
            torch.manual_seed(10 * half + scale)
            assert torch.equal(fill(other, scale), expected)
    assert [cache.moves[-1] for cache in halved.caches] == ["park 5", "park 5"]
    first = halved.caches[0]
    halved.first(2)
    assert halved.caches == [first]
    assert first.moves[-1] == "fetch cuda"
    assert [cache.moves[-1] for cache in halved.turns(14)] == ["fetch cuda"]
    assert first.tokens() == SCHEDULE.offsets[-2]  # a lone half stays


def test_each_half_has_its_turn_and_rows_move_in_step() -> None:
    halved = HalvedCache(lambda: KVCache(SCHEDULE), 2, torch.device("cpu"))
    seen = [fill(cache, 0) for cache in halved.turns(1)]
    halved.select(torch.tensor([1, 0, 0, 4, 3, 3]) % 3)
    after = [fill(cache, 1, rows=3)[:, :, :1] for cache in halved.turns(5)]
    for one, other in zip(seen, after, strict=True):
        assert torch.equal(other, one[torch.tensor([1, 0, 0])])
    halved.first(1)
    assert [fill(cache, 2, rows=1).shape[0] for cache in halved.turns(14)] == [1]
    assert halved.tokens() == SCHEDULE.offsets[-2]
