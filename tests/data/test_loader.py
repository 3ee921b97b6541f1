from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from star.data import loader as loaders
from star.data import workers
from star.data.filters import parse_filters
from star.data.loader import ENDLESS, PassLoader, RepeatedBatches, StreamLoader
from star.data.skips import UnusableDataError
from star.data.sources import ShardSource
from star.data.stream import BatchStream
from star.data.transforms import ImageTransform
from star.types import Batch

MakeShard = Callable[..., str]


@pytest.fixture
def stream(make_shard: MakeShard) -> BatchStream:
    broken = {"png": b"", "txt": b"x"}
    urls = tuple(make_shard(f"{n:05d}", [broken, *range(10 * n, 10 * n + 10)]) for n in range(3))
    return BatchStream(
        (ShardSource(urls, name="mine"),),
        batch_size=4,
        transform=ImageTransform((4, 4), crop="random"),
        filters=parse_filters({}),
        shuffle_buffer=7,
    )


def content(batch: Batch) -> tuple[Any, ...]:
    return batch.keys, batch.captions, batch.images.numpy().tobytes()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint keeps it: nothing in it may need unpickling."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def act_as(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    for module in (workers, loaders):
        monkeypatch.setattr(module, "rank_and_world_size", lambda: (rank, world_size))


def test_training_resumes_with_the_very_next_batch_of_two_workers(stream: BatchStream) -> None:
    first = StreamLoader(stream, num_workers=2, epoch_size=80)
    straight = [content(batch) for batch in first]
    stopped = StreamLoader(stream, num_workers=2, epoch_size=80)
    assert [content(batch) for batch in islice(stopped, 7)] == straight[:7]
    state = through_a_file(stopped.state_dict())
    resumed = StreamLoader(stream, num_workers=2, epoch_size=80)
    resumed.load_state_dict(state)
    assert len(straight) == 20
    assert [content(batch) for batch in resumed] == straight[7:]
    for loader in (first, stopped, resumed):
        loader.close()


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 13])
def test_training_resumes_anywhere_and_keeps_its_epochs(stream: BatchStream, stop: int) -> None:
    loader = StreamLoader(stream, num_workers=0, epoch_size=24)
    straight = [content(batch) for _ in range(4) for batch in loader]
    stopped = StreamLoader(stream, num_workers=0, epoch_size=24)
    for _ in range(stop // 6):
        list(stopped)
    list(islice(stopped, stop % 6))
    resumed = StreamLoader(stream, num_workers=0, epoch_size=24)
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    first, second = ([content(batch) for batch in resumed] for _ in range(2))
    assert (len(first), len(second)) == (6 - stop % 6, 6)
    assert first + second == straight[stop : stop + len(first) + 6]


def test_ranks_that_skip_differently_resume_each_at_its_own_place(
    stream: BatchStream, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    uneven = [number if number % 5 else {"txt": b"no picture"} for number in range(30)]
    urls = (make_shard("a", uneven), make_shard("b", range(30, 60)))
    stream = replace(stream, sources=(ShardSource(urls, name="mine"),))

    def loader(rank: int) -> StreamLoader:
        act_as(monkeypatch, rank, 2)
        return StreamLoader(stream, num_workers=0, epoch_size=160)

    straight, own = [], []
    for rank in (0, 1):
        straight.append([content(batch) for batch in loader(rank)])
        part = loader(rank)
        list(islice(part, 9))
        own.append(part.state_dict()["ranks"][0])
    assert own[0]["workers"] != own[1]["workers"]
    monkeypatch.setattr(loaders, "_gather", lambda _: own)
    state = loader(0).state_dict()
    for rank in (0, 1):
        resumed = loader(rank)
        resumed.load_state_dict(state)
        assert [content(batch) for batch in resumed] == straight[rank][9:]


@pytest.mark.parametrize("change", ["seed", "shards"])
def test_other_data_starts_a_new_pass_and_says_so(
    stream: BatchStream, make_shard: MakeShard, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    first = StreamLoader(stream, num_workers=0, epoch_size=24)
    seen = [content(batch)[0] for batch in islice(first, 3)]
    other = StreamLoader(stream, num_workers=0, epoch_size=24)
    state = first.state_dict()
    if change == "seed":
        other = StreamLoader(replace(stream, seed=1), num_workers=0, epoch_size=24)
    else:
        sources = (ShardSource((make_shard("new", range(20)),), name="mine"),)
        other = StreamLoader(replace(stream, sources=sources), num_workers=0, epoch_size=24)
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(state)
    assert "can't go on at the same sample" in caplog.text
    rest = [content(batch)[0] for batch in other]
    assert len(rest) == 3
    assert rest != seen


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 1)])
def test_as_many_readers_as_before_go_on_where_those_were(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, world_size: int, num_workers: int
) -> None:
    """Two workers of one rank become one worker of two, and the other way round."""
    counts = {1: 2, 2: 1}

    def readers(world_size: int) -> Iterator[StreamLoader]:
        for rank in range(world_size):
            act_as(monkeypatch, rank, world_size)
            yield StreamLoader(stream, num_workers=counts[world_size], epoch_size=None)

    def keys(loaders: Iterable[StreamLoader], batches: int) -> list[str]:
        found = []
        for loader in loaders:
            found += [key for batch in islice(loader, batches) for key in batch.keys]
            loader.close()
        return sorted(found)

    def resumed(state: dict[str, Any], world_size: int) -> Iterator[StreamLoader]:
        for loader in readers(world_size):
            loader.load_state_dict(state)
            yield loader

    begun, own = [], []
    for loader in readers(world_size):
        begun += keys([loader], 2 * num_workers)
        own.append(loader.state_dict()["ranks"][0])
    state = loader.state_dict() | {"ranks": own}
    other = counts[world_size]
    rest = keys(resumed(state, other), 1 * counts[other])
    assert sorted(begun + rest) == keys(readers(world_size), 3 * num_workers)


def test_shards_may_move_to_another_folder(stream: BatchStream, tmp_path: Any) -> None:
    first = StreamLoader(stream, num_workers=0, epoch_size=24)
    list(islice(first, 2))
    urls = tuple(f"pipe:cat {url}" for url in stream.sources[0].urls or ())
    moved = StreamLoader(replace(stream, sources=(ShardSource(urls, name="mine"),)), num_workers=0, epoch_size=24)
    moved.load_state_dict(first.state_dict())
    assert [content(batch) for batch in moved] == [content(batch) for batch in islice(first, 4)]


def test_lengths(stream: BatchStream, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(StreamLoader(stream, num_workers=0, epoch_size=50)) == 12
    assert len(StreamLoader(stream, num_workers=0, epoch_size=1)) == 1
    assert len(StreamLoader(stream, num_workers=0, epoch_size=None)) == ENDLESS
    assert len(PassLoader(stream, num_workers=0, size=9)) == 3
    with pytest.raises(TypeError):
        len(PassLoader(stream, num_workers=0))
    act_as(monkeypatch, 1, 3)
    assert len(StreamLoader(stream, num_workers=0, epoch_size=50)) == 4
    assert len(PassLoader(stream, num_workers=0, size=9)) == 1


def test_validation_is_the_same_whole_pass_each_time_with_two_workers(stream: BatchStream) -> None:
    loader = PassLoader(replace(stream, endless=False), num_workers=2)
    next(iter(loader))
    first, second = ([content(batch) for batch in loader] for _ in range(2))
    keys = [key for batch in first for key in batch[0]]
    assert first == second
    assert len(keys) == len(set(keys)) == 30
    loader.close()


@pytest.mark.parametrize("world_size", [2, 3])
def test_validation_of_all_ranks_has_each_sample_once(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    keys: list[str] = []
    for rank in range(world_size):
        act_as(monkeypatch, rank, world_size)
        keys += [key for batch in PassLoader(replace(stream, endless=False), num_workers=0) for key in batch.keys]
    assert len(keys) == len(set(keys)) == 30


def test_a_sized_validation_gives_every_rank_as_many_batches(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in (0, 1):
        act_as(monkeypatch, rank, 2)
        loader = PassLoader(stream, num_workers=0, size=100)
        first, second = ([content(batch) for batch in loader] for _ in range(2))
        assert len(first) == len(loader) == 13
        assert first == second


def test_validation_without_one_usable_sample_is_an_error(stream: BatchStream) -> None:
    useless = replace(stream, endless=False, filters=parse_filters({"number": {"min": 99}}))
    with pytest.raises(ValueError, match=r"no sample of the validation shards could be used.*filter: number"):
        list(PassLoader(useless, num_workers=0))


def test_ranks_that_validate_together_agree_that_each_has_a_sample(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that never came to the end of its validation would let the others wait for it."""
    finite, answers = replace(stream, endless=False), iter([[True, True], [True, False], [False, True]])
    monkeypatch.setattr(loaders, "_gather", lambda own: [{"found": found} for found in next(answers)])
    loader = PassLoader(finite, num_workers=0, together=True)
    assert len(list(loader)) == len(list(PassLoader(finite, num_workers=0)))
    with pytest.raises(ValueError, match="fewer usable samples than there are processes"):
        list(loader)
    act_as(monkeypatch, 1, 2)
    useless = replace(finite, filters=parse_filters({"number": {"min": 99}}))
    with pytest.raises(ValueError, match="fewer usable samples than there are processes"):
        list(PassLoader(useless, num_workers=0, together=True))
    assert list(PassLoader(useless, num_workers=0)) == []


def test_the_last_batch_carries_what_other_workers_skipped(stream: BatchStream, make_shard: MakeShard) -> None:
    """Of two workers the second finds nothing usable at all."""
    shard = make_shard("half", [100, {"txt": b"no picture"}])
    source = replace(stream.sources[0], urls=(shard,))
    finite = replace(stream, sources=(source,), endless=False, shuffle_buffer=1)
    batches = list(PassLoader(finite, num_workers=2))
    assert [len(batch) for batch in batches] == [1]
    assert batches[0].skipped == {"image: missing": 1}


def test_repeated_batches_are_the_first_ones(stream: BatchStream) -> None:
    first = [content(batch) for batch in islice(StreamLoader(stream, num_workers=0, epoch_size=None), 2)]
    repeated = RepeatedBatches(StreamLoader(stream, num_workers=0, epoch_size=None), 2)
    assert [content(batch) for _ in range(3) for batch in repeated] == 3 * first


def test_a_batch_knows_how_long_it_was_waited_for(stream: BatchStream, monkeypatch: pytest.MonkeyPatch) -> None:
    read = BatchStream.stack

    def slowly(self: BatchStream, samples: Any) -> Any:
        time.sleep(0.05)
        return read(self, samples)

    monkeypatch.setattr(BatchStream, "stack", slowly)
    loader = StreamLoader(stream, num_workers=0, epoch_size=12)
    assert all(0.05 <= batch.waited < 5 for batch in loader)
    assert [batch.waited for batch in RepeatedBatches(loader, 2)] == [0.0, 0.0]


def test_loading_leaves_the_global_random_numbers_alone(stream: BatchStream) -> None:
    before = torch.random.get_rng_state()
    next(iter(StreamLoader(stream, num_workers=0, epoch_size=None)))
    list(PassLoader(replace(stream, endless=False), num_workers=0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_stops_a_worker_is_said_without_its_traceback(stream: BatchStream) -> None:
    strict = replace(stream, filters=parse_filters({"number": {"min": 99}}), max_consecutive_skips=3)
    with pytest.raises(UnusableDataError) as stopped:
        next(iter(StreamLoader(strict, num_workers=1, epoch_size=80)))
    said = str(stopped.value)
    assert said.startswith("source 'mine': 4 samples in a row could not be used (")
    assert said.endswith("or raise data.max_consecutive_skips (3)")
    assert "\n" not in said
