"""Hands batches to the training: workers, virtual epochs, and a state from which training goes on exactly."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import distributed
from torch.utils.data import DataLoader

from star.data.elastic import redistribute
from star.data.shards import shard_name
from star.data.skips import UnusableDataError
from star.data.stream import SampleStream, WorkerBatch
from star.data.workers import WorkerStreams, open_loader, rank_and_world_size
from star.types import Batch

logger = logging.getLogger(__name__)

# The length of a stream that never ends. Lightning fetches a batch ahead of a loader without a length, and would
# then save a state that is a batch ahead of the training.
ENDLESS = 2**31 - 1


class StreamLoader:
    """Training batches: an endless stream in virtual epochs, whose place can be saved and found again.

    `state_dict` after a batch and `load_state_dict` into a new loader with the same settings continue with the batch
    that would have come next. What is saved is where each worker stood when it made its last *delivered* batch; what it
    had prefetched is read again.

    Args:
        stream: an endless stream.
        num_workers: reading processes of this rank; 0 reads in the main process.
        epoch_size: samples of an epoch over all ranks; None for a single endless epoch.
        prefetch: batches that each worker prepares ahead.
        pin_memory: page-locked batches, for faster copies to a GPU; without a GPU it has no effect.

    """

    def __init__(
        self,
        stream: SampleStream,
        *,
        num_workers: int,
        epoch_size: int | None,
        prefetch: int = 2,
        pin_memory: bool = True,
    ) -> None:
        self.stream = stream
        self.num_workers = num_workers
        self.epoch_size = epoch_size
        self.prefetch = prefetch
        self.pin_memory = pin_memory
        self._place = {"batches": 0, "next_worker": 0}
        self._resume_at = 0
        self._states: dict[int, dict[str, Any]] = {}
        # Lightning's clean-up knows this name and shuts the workers of what it finds there down.
        self._iterator: Iterator[WorkerBatch] | None = None

    def __len__(self) -> int:
        """Batches of this rank in an epoch, at least 1."""
        if self.epoch_size is None:
            return ENDLESS
        return max(1, self.epoch_size // (self.stream.batch_size * rank_and_world_size()[1]))

    def __iter__(self) -> Iterator[Batch]:
        """One epoch, or what a loaded state left of it."""
        done, self._resume_at = self._resume_at % len(self), 0
        for number in range(done + 1, len(self) + 1):
            asked = time.monotonic()
            batch = next(self._running())
            waited = time.monotonic() - asked
            self._states[batch.worker] = batch.state
            self._place = {"batches": number, "next_worker": (batch.worker + 1) % max(1, self.num_workers)}
            yield batch.unpack(waited)

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands, for all ranks: every rank must call it, and gets the same."""
        workers = [self._states.get(worker) for worker in range(max(1, self.num_workers))]
        own = self._place | {"workers": workers}
        return {"fingerprint": self._fingerprint(), "num_workers": self.num_workers, "ranks": _gather(own)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        With other ranks or workers the pass goes on as `redistribute` says. With other shards, another seed or shuffle
        buffer there is no such place: then a warning says so, and the data starts with a new pass in a new order.
        """
        self.close()
        ranks = state["ranks"]
        rank, world_size = rank_and_world_size()
        layout, saved = (world_size, self.num_workers), (len(ranks), state["num_workers"])
        known = state["fingerprint"] == self._fingerprint()
        if layout == saved and known:
            own = ranks[rank]
            self._place = {name: own[name] for name in self._place}
            self._states = {worker: each for worker, each in enumerate(own["workers"]) if each is not None}
        else:
            self._place = {"batches": ranks[0]["batches"], "next_worker": 0}
            self._states = self._others_states(ranks, rank, world_size, known=known)
        self._resume_at = self._place["batches"]

    def _others_states(
        self, ranks: list[dict[str, Any]], rank: int, world_size: int, *, known: bool
    ) -> dict[int, dict[str, Any]]:
        """The states with which this rank's workers go on after readers that were divided differently."""
        workers = max(1, self.num_workers)
        before = [state for each in ranks for state in each["workers"]]
        shards = {source.name: len(source.urls or ()) for source in self.stream.sources}
        after = redistribute(before, shards=shards, count=world_size * workers) if known else None
        if after is None:
            logger.warning(
                "shards, seed or shuffle buffer are not those of the checkpoint: the data can't go on at the same "
                "sample, it starts with a new pass in a new order"
            )
            after = [self.stream.state_at_pass(1 + max(_passes(ranks), default=0))] * (world_size * workers)
        elif len(after) != len(before):
            logger.warning(
                "%d processes read the data before, now %d do: the pass goes on behind the last shard that was begun",
                len(before),
                len(after),
            )
        return dict(enumerate(after[rank * workers : (rank + 1) * workers]))

    def close(self) -> None:
        """Stop the workers; iterating goes on after the last delivered batch."""
        self._iterator = None

    def _running(self) -> Iterator[WorkerBatch]:
        if self._iterator is None:
            streams = WorkerStreams(
                self.stream, num_workers=self.num_workers, first_worker=self._place["next_worker"], states=self._states
            )
            settings: dict[str, Any] = {"num_workers": self.num_workers, "prefetch": self.prefetch}
            self._iterator = iter(open_loader(streams, pin_memory=self.pin_memory, persistent=False, **settings))
        return self._iterator

    def _fingerprint(self) -> str:
        """What the order depends on besides ranks and workers; shards may move to another folder."""
        shards = {source.name: [shard_name(url) for url in source.urls or ()] for source in self.stream.sources}
        order = json.dumps([self.stream.seed, self.stream.shuffle_buffer, shards], sort_keys=True)
        return hashlib.sha256(order.encode()).hexdigest()[:16]


class PassLoader:
    """Validation batches: each iteration the same, by default one pass with every sample once over all ranks.

    Args:
        stream: a finite stream; an endless one when `size` is given.
        num_workers: reading processes of this rank.
        together: all ranks iterate, and wait for each other's results in the end: a rank without a sample is an error
            on all of them.
        size: samples of an iteration over all ranks. Every rank then makes the same number of batches, beginning again
            when the set is smaller: for strategies that talk in every forward pass, such as FSDP.
        prefetch: batches that each worker prepares ahead.
        pin_memory: page-locked batches, see `StreamLoader`.

    """

    def __init__(
        self,
        stream: SampleStream,
        *,
        num_workers: int,
        size: int | None = None,
        together: bool = False,
        prefetch: int = 2,
        pin_memory: bool = True,
    ) -> None:
        self.stream = stream
        self.size = size
        self.together = together
        self._settings: dict[str, Any] = {"num_workers": num_workers, "prefetch": prefetch, "pin_memory": pin_memory}
        self._loader: DataLoader[WorkerBatch] | None = None

    def __len__(self) -> int:
        """Batches of this rank.

        Raises:
            TypeError: without a `size` nobody knows before the shards are read.

        """
        if self.size is None:
            raise TypeError("a whole pass over shards has no length that is known beforehand")
        return max(1, -(-self.size // (self.stream.batch_size * rank_and_world_size()[1])))

    def __iter__(self) -> Iterator[Batch]:
        """One iteration.

        Raises:
            UnusableDataError: when the only rank finds no usable sample, with the counts by cause.
            ValueError: when ranks go together and one of them finds none.

        """
        batches = self._batches()
        first = next(batches, None)
        if self.together and not all(rank["found"] for rank in _gather({"found": first is not None})):
            raise ValueError(
                "the validation shards have fewer usable samples than there are processes: set data.validation_size "
                "to a number of samples, which then come several times, or trainer.limit_val_batches=0"
            )
        if first is not None:
            yield first
            yield from batches

    def _batches(self) -> Iterator[Batch]:
        if self._loader is None:
            batches = None if self.size is None else len(self)
            streams = WorkerStreams(self.stream, num_workers=self._settings["num_workers"], batches=batches)
            self._loader = open_loader(streams, persistent=True, **self._settings)
        held: WorkerBatch | None = None
        skipped = Counter[str]()
        for batch in self._loader:
            if batch.keys:
                if held is not None:
                    yield held.unpack()
                held = batch
            else:
                skipped.update(batch.skipped)  # of a worker that found no usable sample: the last batch carries them
        if held is not None:
            yield held._replace(skipped=dict(Counter(held.skipped) + skipped)).unpack()
        elif rank_and_world_size()[1] == 1:
            raise UnusableDataError(
                f"no sample of the validation shards could be used: {dict(skipped)}; "
                "check their urls, captions and filters"
            )

    def close(self) -> None:
        """Stop the workers."""
        self._loader = None


class RepeatedBatches:
    """The first batches of a loader, over and over: for the question whether a model learns anything at all.

    Args:
        loader: where they come from.
        count: how many.

    """

    def __init__(self, loader: StreamLoader, count: int) -> None:
        self._batches = [replace(batch, waited=0.0) for batch in islice(loader, count)]
        loader.close()

    def __len__(self) -> int:
        """How many batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """The batches, each time in the same order."""
        return iter(self._batches)


def _passes(ranks: list[dict[str, Any]]) -> Iterator[int]:
    for rank in ranks:
        for state in filter(None, rank["workers"]):
            yield from (source["passes"] for source in state["sources"].values())


def _gather(own: dict[str, Any]) -> list[dict[str, Any]]:
    """What every rank has, in the order of ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [own]
    ranks: list[dict[str, Any]] = [{} for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(ranks, own)
    return ranks
