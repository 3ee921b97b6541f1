from __future__ import annotations

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
