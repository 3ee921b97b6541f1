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


def test_layers_share_the_room_for_the_last_scale(schedule: ScaleSchedule) -> None:
    """Nothing of an earlier scale is lost by it, in either layer."""
    cache, apart = KVCache(schedule), [KVCache(schedule), KVCache(schedule)]
    for k, length in enumerate(schedule.lengths):
        for layer in (0, 1):
            keys = torch.randn(2, 1, length, 4)
            seen, _ = cache.append(layer, k, keys, keys, keys)
            assert torch.equal(seen, apart[layer].append(0, k, keys, keys, keys)[0])
    assert cache.tokens() == schedule.total - schedule.lengths[-1]


@pytest.mark.parametrize("order", [None, 1])
def test_what_is_held_is_forgotten_at_once(schedule: ScaleSchedule, order: int | None) -> None:
    cache = KVCache(schedule, ScaleMask(order), num_layers=3)
    fill(cache, schedule)
    cache.text(0, lambda: (torch.zeros(1), torch.zeros(1)))
    layers = 3 if order is None else 2  # buffers of all layers, or this layer's last two scales
    assert len(cache.held()) == 2 * (layers + 1 + (order is None))
    cache.clear()
    assert cache.held() == []
    fill(cache, schedule)


def test_buffers_of_all_layers_are_one_piece_of_memory(schedule: ScaleSchedule) -> None:
    cache = KVCache(schedule, num_layers=3)
    seen = fill(cache, schedule)
    for (keys, values), (other_keys, other_values) in zip(seen, fill(KVCache(schedule), schedule), strict=True):
        assert torch.equal(keys, other_keys)
        assert torch.equal(values, other_values)
    assert (
        len({part.untyped_storage().data_ptr() for part in cache.held()}) == 3
    )  # and the last scale's keys and values
