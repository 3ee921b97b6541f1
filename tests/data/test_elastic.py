"""What a pass gains and loses when other readers go on with it."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from star.data import sequence
from star.data.elastic import redistribute
from star.data.sequence import SampleSequence, Share
from star.data.shards import RawSample
from star.data.skips import SkipCounter

SHARD = 10


def reader(index: int, count: int, *, shards: int, block: int) -> SampleSequence:
    return SampleSequence(
        tuple(f"{number:03d}.tar" for number in range(shards)),
        name="mine",
        share=Share(index, count),
        seed=3,
        block_size=block,
        endless=True,
        skips=SkipCounter(source="mine", max_consecutive=9),
    )


@pytest.fixture(autouse=True)
def shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "read_shard", lambda url: [RawSample(f"{url}/{n}", {}) for n in range(SHARD)])


def read(sequences: list[SampleSequence], counts: list[int]) -> list[tuple[int, str]]:
    """Pass and key of as many samples of each sequence."""
    return [
        (placed.position.passes, placed.raw.key)
        for one, count in zip(sequences, counts, strict=True)
        for placed in islice(iter(one), count)
    ]


def state(one: SampleSequence) -> dict[str, object]:
    return {"draws": 5, "sources": {"mine": one.state_dict()}}


@pytest.mark.parametrize("block", [1, 7, 25])
@pytest.mark.parametrize(("before", "now"), [(4, 6), (6, 4), (4, 1), (1, 4)])
def test_within_a_pass_nothing_comes_twice_and_little_is_lost(before: int, now: int, block: int) -> None:
    old = [reader(i, before, shards=60, block=block) for i in range(before)]
    seen = read(old, [30 + 3 * i for i in range(before)])  # uneven, as skipped samples make them
    places = redistribute([state(one) for one in old], shards={"mine": 60}, count=now)
    assert places is not None
    new = [reader(i, now, shards=60, block=block) for i in range(now)]
    for one, place in zip(new, places, strict=True):
        one.load_state_dict(place["sources"]["mine"])
    rest = [sample for sample in read(new, [2 * 60 * SHARD // now] * now) if sample[0] == 0]
    counts = Counter(seen + rest)
    assert set(counts.values()) == {1}
    # for each reader its block, the shard it was in, and those up to the reader that was furthest ahead
    assert 60 * SHARD - len(counts) <= before * (block + SHARD + 3 * before)
    following = read([reader(i, now, shards=60, block=block) for i in range(now)], [10] * now)
    assert places[0]["draws"] == 5
    assert following


def test_as_many_readers_lose_nothing() -> None:
    old = [reader(i, 4, shards=60, block=7) for i in range(4)]
    seen = read(old, [30] * 4)
    places = redistribute([state(one) for one in old], shards={"mine": 60}, count=4)
    assert places is not None
    new = [reader(i, 4, shards=60, block=7) for i in range(4)]
    for one, place in zip(new, places, strict=True):
        one.load_state_dict(place["sources"]["mine"])
    assert sorted(seen + read(new, [40] * 4)) == sorted(
        read([reader(i, 4, shards=60, block=7) for i in range(4)], [70] * 4)
    )


def test_at_the_end_of_a_pass_or_with_few_shards_the_next_pass_begins() -> None:
    for shards, before, now in ((60, 4, 5), (6, 4, 5)):
        old = [reader(i, before, shards=shards, block=1) for i in range(before)]
        read(old, [shards * SHARD // before if shards == 60 else 3] * before)
        places = redistribute([state(one) for one in old], shards={"mine": shards}, count=now)
        assert places is not None
        assert {place["sources"]["mine"]["passes"] for place in places} == {1}


def test_who_had_not_begun_begins_and_old_checkpoints_do_not_say() -> None:
    places = redistribute([None, None], shards={"mine": 60}, count=3)
    assert places is not None
    assert [place["sources"]["mine"]["piece"] for place in places] == [0, 0, 0]
    old = {"passes": 0, "piece": 1, "sample": 2, "handed_out": 3}
    assert redistribute([{"draws": 0, "sources": {"mine": old}}], shards={"mine": 60}, count=2) is None
