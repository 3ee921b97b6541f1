from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain, islice
from typing import Any

import pytest

from star.data.sequence import SampleSequence, Share, parts_per_shard
from star.data.skips import SkipCounter

MakeShard = Callable[..., str]


def make(urls: list[str], share: Share = Share(), **settings: Any) -> SampleSequence:  # noqa: B008
    skips = SkipCounter(source="mine", max_consecutive=20)
    defaults = {"name": "mine", "seed": 0, "block_size": 8, "endless": True, "skips": skips}
    return SampleSequence(tuple(urls), share=share, **(defaults | settings))


def names(sequence: SampleSequence, count: int | None = None) -> list[str]:
    return [f"{placed.shard}/{placed.raw.key}" for placed in islice(sequence, count)]


@pytest.fixture
def shards(make_shard: MakeShard) -> list[str]:
    return [make_shard(f"{shard:05d}", range(10 * shard, 10 * shard + 10)) for shard in range(4)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 50])
def test_a_finite_pass_has_every_sample_in_exactly_one_share(shards: list[str], count: int) -> None:
    shares = [names(make(shards, Share(index, count), endless=False, block_size=1)) for index in range(count)]
    assert sorted(chain.from_iterable(shares)) == [f"{n // 10:05d}/{n:09d}" for n in range(40)]
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= len(shards)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_an_endless_pass_has_every_sample_in_exactly_one_share(shards: list[str], count: int) -> None:
    shares = [names(make(shards, Share(index, count), block_size=5), 40 // count) for index in range(count)]
    assert len(set(chain.from_iterable(shares))) == 40


def test_passes_differ_in_order_and_not_in_content(shards: list[str]) -> None:
    drawn = names(make(shards), 120)
    passes = [drawn[:40], drawn[40:80], drawn[80:]]
    assert all(len(set(part)) == 40 for part in passes)
    assert len({tuple(part) for part in passes}) == 3


def test_the_order_depends_on_the_seed_and_nothing_else(shards: list[str]) -> None:
    assert names(make(shards), 40) == names(make(shards), 40)
    assert names(make(shards), 40) != names(make(shards, seed=1), 40)
    assert names(make(shards, block_size=1), 40) != names(make(shards), 40)


def test_a_block_of_one_keeps_the_order_within_shards(shards: list[str]) -> None:
    drawn = names(make(shards, block_size=1), 40)
    assert all(drawn[start : start + 10] == sorted(drawn[start : start + 10]) for start in range(0, 40, 10))


@pytest.mark.parametrize("taken", [0, 1, 7, 8, 9, 39, 40, 41, 63])
@pytest.mark.parametrize("block_size", [1, 8, 64])
def test_a_saved_place_is_found_again(shards: list[str], taken: int, block_size: int) -> None:
    straight = names(make(shards, Share(1, 3), block_size=block_size), 100)
    first, second = (make(shards, Share(1, 3), block_size=block_size) for _ in range(2))
    assert names(first, taken) == straight[:taken]
    second.load_state_dict(first.state_dict())
    assert names(second, 100 - taken) == straight[taken:]


def test_broken_shards_are_counted_once_a_pass(shards: list[str], tmp_path: Any, make_shard: MakeShard) -> None:
    sequence = make([*shards, str(tmp_path / "none.tar"), make_shard("empty", [])], endless=False)
    assert len(names(sequence)) == 40
    assert sequence.skips.take() == {"shard: FileNotFoundError": 1, "shard: empty": 1}


def test_nothing_but_broken_shards_is_an_error(make_shard: MakeShard, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"shard: (empty|FileNotFoundError) x 1\d"):
        next(iter(make([make_shard("empty", []), str(tmp_path / "none.tar")])))


def test_more_workers_than_samples_all_get_some(make_shard: MakeShard) -> None:
    urls = [make_shard("a", range(3))]
    assert all(len(names(make(urls, Share(index, 8)), 5)) == 5 for index in range(8))


@pytest.mark.parametrize(
    ("num_shards", "count", "parts"),
    [(1, 1, 1), (2000, 8, 1), (2000, 512, 1), (8, 2, 1), (3, 2, 2), (5, 4, 4), (1, 8, 8), (500, 512, 2), (4, 8, 2)],
)
def test_shards_are_cut_only_when_they_are_few(num_shards: int, count: int, parts: int) -> None:
    assert parts_per_shard(num_shards, count) == parts
    assert num_shards * parts >= count


def test_uneven_shares_still_use_all_samples_alike(make_shard: MakeShard) -> None:
    urls = [make_shard(f"{shard:05d}", range(4 * shard, 4 * shard + 4)) for shard in range(7)]
    drawn = Counter(name for index in range(5) for name in names(make(urls, Share(index, 5)), 560))
    assert len(drawn) == 28
    assert max(drawn.values()) < 1.4 * min(drawn.values())
