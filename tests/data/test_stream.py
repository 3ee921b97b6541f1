from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest
import torch

from star.data.filters import parse_filters
from star.data.sequence import Share
from star.data.skips import UnusableDataError
from star.data.sources import ShardSource
from star.data.stream import BatchStream, WorkerBatch
from star.data.transforms import ImageTransform

MakeShard = Callable[..., str]


def source(url: str, name: str = "mine", weight: float = 1.0) -> ShardSource:
    return ShardSource((url,), weight=weight, name=name)


@pytest.fixture
def stream(make_shard: MakeShard) -> BatchStream:
    return BatchStream(
        (source(make_shard("00000", range(20))),),
        batch_size=4,
        transform=ImageTransform((4, 4), crop="random"),
        filters=parse_filters({}),
        shuffle_buffer=5,
    )


def equal(left: WorkerBatch, right: WorkerBatch) -> bool:
    return torch.equal(left.images, right.images) and left[1:] == right[1:]


def test_a_picture_stays_with_its_caption_and_key(stream: BatchStream) -> None:
    for batch in islice(stream.batches(Share()), 7):
        assert batch.images.shape == (4, 3, 4, 4)
        reds = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        assert batch.captions == [f"picture {red}" for red in reds]
        assert batch.keys == [f"mine/00000/{red:09d}" for red in reds]


def test_sources_are_mixed_by_weight(stream: BatchStream, make_shard: MakeShard) -> None:
    sources = (source(make_shard("a", range(9)), "a", 3.0), source(make_shard("b", range(9)), "b", 1.0))
    mixed = replace(stream, sources=sources, batch_size=400)
    drawn = Counter(key[0] for key in next(mixed.batches(Share())).keys)
    assert 260 < drawn["a"] < 340


def test_weights_count_what_is_used_not_what_is_read(stream: BatchStream, make_shard: MakeShard) -> None:
    often_broken = [number if number % 4 == 0 else {"png": b"", "txt": b"x"} for number in range(40)]
    sources = (source(make_shard("a", often_broken), "a"), source(make_shard("b", range(9)), "b"))
    mixed = replace(stream, sources=sources, batch_size=400)
    drawn = Counter(key[0] for key in next(mixed.batches(Share())).keys)
    assert 150 < drawn["a"] < 250


@pytest.mark.parametrize("taken", [0, 1, 6])
def test_a_state_continues_exactly(stream: BatchStream, make_shard: MakeShard, taken: int) -> None:
    sources = (*stream.sources, source(make_shard("b", [{"txt": b"no picture"}, *range(5)]), "b", 0.5))
    stream = replace(stream, sources=sources)
    straight = list(islice(stream.batches(Share()), 12))
    state = straight[taken - 1].state if taken else None
    for expected, batch in zip(straight[taken:], stream.batches(Share(), state), strict=False):
        assert equal(batch, expected)


def test_augmentation_depends_on_pass_and_key_alone(
    stream: BatchStream, make_shard: MakeShard, encode: Callable
) -> None:
    wide = {"png": encode(size=(64, 4), colour="red"), "txt": b"x"}
    one = replace(stream, sources=(source(make_shard("w", [wide])),), transform=ImageTransform((4, 4), flip=True))
    torch.manual_seed(0)
    first = list(islice(one.batches(Share()), 3))
    torch.manual_seed(1)
    assert all(equal(*pair) for pair in zip(first, one.batches(Share()), strict=False))


def test_skips_travel_with_the_next_batch(stream: BatchStream, make_shard: MakeShard) -> None:
    samples = [0, {"png": b"", "txt": b"x"}, 2, 3, {"txt": b"x"}, 5]
    finite = replace(stream, sources=(source(make_shard("a", samples)),), batch_size=2, endless=False, shuffle_buffer=1)
    first, second = finite.batches(Share())
    assert first.skipped == {"decode: UnidentifiedImageError": 1}
    assert second.skipped == {"image: missing": 1}


def test_the_last_batch_of_a_pass_carries_the_skips_behind_it(stream: BatchStream, make_shard: MakeShard) -> None:
    url = make_shard("a", [0, 1, 2, {"txt": b"x"}, {"txt": b"x"}])
    batches = list(replace(stream, sources=(source(url),), batch_size=2, endless=False).batches(Share()))
    assert sum(len(batch.keys) for batch in batches) == 3
    assert Counter(batches[0].skipped) + Counter(batches[1].skipped) == {"image: missing": 2}


def test_a_finite_pass_goes_through_all_sources_once(stream: BatchStream, make_shard: MakeShard) -> None:
    sources = (*stream.sources, source(make_shard("b", range(3)), "b", 9.0))
    finite = replace(stream, sources=sources, endless=False)
    keys = [key for batch in finite.batches(Share()) for key in batch.keys]
    assert len(keys) == len(set(keys)) == 23


def test_too_many_skips_in_a_row_are_an_error(stream: BatchStream, make_shard: MakeShard) -> None:
    strict = replace(stream, filters=parse_filters({"number": {"min": 99}}), max_consecutive_skips=50)
    with pytest.raises(UnusableDataError, match=r"'mine'.*filter: number x 51"):
        next(strict.batches(Share()))


def test_a_later_pass_has_another_order(stream: BatchStream) -> None:
    first = next(stream.batches(Share(), stream.state_at_pass(0)))
    assert equal(first, next(stream.batches(Share())))
    assert first.keys != next(stream.batches(Share(), stream.state_at_pass(3))).keys


def test_skips_with_good_samples_between_them_never_end_a_training(stream: BatchStream, make_shard: MakeShard) -> None:
    half_broken = [number if number % 2 else {"png": b"", "txt": b"x"} for number in range(20)]
    lenient = replace(stream, sources=(source(make_shard("half", half_broken)),), max_consecutive_skips=1)
    lenient = replace(lenient, shuffle_buffer=1)
    skipped = [batch.skipped for batch in islice(lenient.batches(Share()), 50)]
    assert sum(Counter(each).total() for each in skipped) > 150
