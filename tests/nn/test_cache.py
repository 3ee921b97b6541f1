from __future__ import annotations

import pytest
import torch
from torch import Tensor

from star.nn.cache import KVCache
from star.nn.masks import ScaleMask
from star.schedule import ScaleSchedule


def fill(cache: KVCache, schedule: ScaleSchedule, rows: int = 2) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    seen = []
    for k, length in enumerate(schedule.lengths):
        q, keys, values = (torch.randn(rows, 1, length, 4) for _ in range(3))
        seen.append(cache.append(0, k, q, keys, values))
    return seen


@pytest.mark.parametrize("order", [None, 0, 1, 2])
def test_a_scale_gets_just_the_keys_that_its_mask_shows(schedule: ScaleSchedule, order: int | None) -> None:
    everything = fill(KVCache(schedule), schedule)[-1]
    mask = ScaleMask(order)
    for k, (keys, values) in enumerate(fill(KVCache(schedule, mask), schedule)):
        visible = slice(schedule.offsets[mask.first_visible(k)], schedule.offsets[k + 1])
        assert torch.equal(keys, everything[0][:, :, visible])
        assert torch.equal(values, everything[1][:, :, visible])


def test_a_markov_cache_drops_what_nobody_will_see(schedule: ScaleSchedule) -> None:
    cache = KVCache(schedule, ScaleMask(1))
    fill(cache, schedule)
    assert cache.tokens() == sum(schedule.lengths[-2:])


def test_a_policy_may_shorten_what_stays(schedule: ScaleSchedule) -> None:
    class FirstOnly:
        def keep(self, layer: int, scale: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return keys[:, :, :1], values[:, :, :1]

    cache = KVCache(schedule, policy=FirstOnly())
    keys, _ = fill(cache, schedule)[-1]
    assert keys.shape[2] == len(schedule) - 1 + schedule.lengths[-1]  # one of each scale before, and all of its own
    assert cache.tokens() == len(schedule)


@pytest.mark.parametrize("order", [None, 1])
def test_selecting_rows_moves_keys_values_and_text(schedule: ScaleSchedule, order: int | None) -> None:
    cache = KVCache(schedule, ScaleMask(order))
    before = fill(cache, schedule)[-2]
    text = cache.text(0, lambda: (torch.arange(2.0), torch.arange(2.0)))
    cache.select(torch.tensor([1, 1, 0]))
    q = torch.zeros(3, 1, schedule.lengths[-1], 4)
    keys, _ = cache.append(0, len(schedule) - 1, q, q, q)
    length = before[0].shape[2] if order is None else schedule.lengths[-2]
    old = before[0][:, :, -length:]
    torch.testing.assert_close(
        keys[:, :, :length] if order is None else keys[:, :, : schedule.lengths[-2]], old[[1, 1, 0]]
    )
    assert cache.text(0, lambda: text)[0].tolist() == [1.0, 1.0, 0.0]
