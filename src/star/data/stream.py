"""Batches of one worker: sources mixed by weight, samples read, counted and stacked."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from star.data.filters import Filters
from star.data.samples import Sample, SampleReader
from star.data.sequence import Position, SampleSequence, Share
from star.data.skips import SkipCounter, SkipSample
from star.data.sources import ShardSource
from star.data.transforms import MAX_PIXELS, ImageTransform, to_unit_range


class WorkerBatch(NamedTuple):
    """A batch on its way from a worker: plain values only, so that it can be pinned and sent.

    Attributes:
        images: (B, 3, H, W) in [-1, 1].
        captions: B strings.
        keys: B unique names.
        skipped: skips since the worker's batch before, by cause.
        state: where the worker stands after this batch, see `BatchStream.batches`.
        worker: which of the rank's workers made it.

    """

    images: Tensor
    captions: list[str]
    keys: list[str]
    skipped: dict[str, int]
    state: dict[str, Any]
    worker: int = 0


class SourceFeed:
    """The usable samples of one source in one worker's order.

    Args:
        source: with expanded `urls`.
        reader: checks and decodes.
        sequence: the order of the raw samples.
        skips: counts what can't be used.
        seed: of captions and crops, which depend on nothing else but the pass and the sample's key.

    """

    def __init__(
        self, source: ShardSource, *, reader: SampleReader, sequence: SampleSequence, skips: SkipCounter, seed: int
    ) -> None:
        self.source = source
        self.reader = reader
        self.sequence = sequence
        self.skips = skips
        self.seed = seed

    def __iter__(self) -> Iterator[Sample]:
        """Samples from where the sequence stands."""
        for placed in self.sequence:
            key = f"{self.source.name}/{placed.shard}/{placed.raw.key}"
            rng = random.Random(f"{self.seed}/{placed.position.passes}/{key}")
            try:
                sample = self.reader(placed.raw, key=key, rng=rng)
            except SkipSample as skip:
                self.skips.add(skip.cause, key)
            else:
                self.skips.success()
                yield sample


@dataclass(frozen=True)
class BatchStream:
    """What every worker does, told by its share of the data.

    Args:
        sources: with expanded `urls` and weights above 0.
        batch_size: pairs in a batch; the last of a finite stream may be smaller.
        transform: what happens to the pictures.
        filters: bounds on sizes and json fields.
        seed: of order, captions and crops.
        shuffle_buffer: samples that are shuffled together, per worker and source; 1 for none.
        endless: pass after pass, sources mixed by weight; otherwise one pass over all sources, one after another.
        max_pixels: larger pictures are skipped.
        max_consecutive_skips: more skips in a row are an error.

    """

    sources: tuple[ShardSource, ...]
    batch_size: int
    transform: ImageTransform
    filters: Filters
    seed: int = 0
    shuffle_buffer: int = 1
    endless: bool = True
    max_pixels: int = MAX_PIXELS
    max_consecutive_skips: int = 1000

    def batches(self, share: Share, state: dict[str, Any] | None = None) -> Iterator[WorkerBatch]:
        """Batches of one share.

        Args:
            share: which part of the data.
            state: the `state` of the batch after which to go on; None begins.

        Raises:
            RuntimeError: for too many skips in a row.

        """
        feeds = [self._feed(source, share) for source in self.sources]
        if state is not None:
            for feed in feeds:
                feed.sequence.load_state_dict(state["sources"][feed.source.name])
        if not self.endless:
            return _stack_finite(chain.from_iterable(feeds), feeds, self.batch_size)
        mixer = Mixer(feeds, seed=f"{self.seed}/{share.index}", draws=0 if state is None else state["draws"])
        return _stack_endless(mixer, feeds, self.batch_size)

    def state_at_pass(self, passes: int) -> dict[str, Any]:
        """The state of a share that begins with a later pass, whose order differs from that of the passes before."""
        return {"draws": 0, "sources": {source.name: _beginning(passes) for source in self.sources}}

    def _feed(self, source: ShardSource, share: Share) -> SourceFeed:
        assert isinstance(source.urls, tuple)
        skips = SkipCounter(source=source.name, max_consecutive=self.max_consecutive_skips)
        sequence = SampleSequence(
            source.urls,
            name=source.name,
            share=share,
            seed=self.seed,
            block_size=self.shuffle_buffer,
            endless=self.endless,
            skips=skips,
        )
        reader = SampleReader(source.captions, self.filters, self.transform, self.max_pixels)
        return SourceFeed(source, reader=reader, sequence=sequence, skips=skips, seed=self.seed)


class Mixer:
    """Endless samples of several feeds, each draw from one of them by weight.

    The weights say what is trained on: a source whose samples are often skipped is read more, not drawn less.

    Args:
        feeds: endless feeds.
        seed: of the draws; draw n depends on the seed and n alone.
        draws: how many draws came before.

    """

    def __init__(self, feeds: Sequence[SourceFeed], *, seed: str, draws: int = 0) -> None:
        self.feeds = feeds
        self.seed = seed
        self.draws = draws

    def __iter__(self) -> Iterator[Sample]:
        """Samples, drawn one by one."""
        streams = [iter(feed) for feed in self.feeds]
        weights = [feed.source.weight for feed in self.feeds]
        for draw in count(self.draws):
            stream = (
                streams[0] if len(streams) == 1 else random.Random(f"{self.seed}/{draw}").choices(streams, weights)[0]
            )
            self.draws = draw + 1
            yield next(stream)


def _beginning(passes: int) -> dict[str, int]:
    return {"passes": passes, "piece": Position.piece, "sample": Position.sample, "handed_out": 0}


def _stack_endless(mixer: Mixer, feeds: Sequence[SourceFeed], batch_size: int) -> Iterator[WorkerBatch]:
    samples = iter(mixer)
    while True:
        yield _stack(list(islice(samples, batch_size)), feeds, mixer.draws)


def _stack_finite(samples: Iterator[Sample], feeds: Sequence[SourceFeed], batch_size: int) -> Iterator[WorkerBatch]:
    """Batches to the end; the last one is held back, to carry the skips that come after its samples."""
    held: WorkerBatch | None = None
    while chunk := list(islice(samples, batch_size)):
        if held is not None:
            yield held
        held = _stack(chunk, feeds, draws=0)
    trailing = _take_skips(feeds)
    if held is not None:
        yield held._replace(skipped=dict(Counter(held.skipped) + trailing))
    elif trailing:
        yield WorkerBatch(torch.empty(0), [], [], dict(trailing), {})


def _stack(samples: Sequence[Sample], feeds: Sequence[SourceFeed], draws: int) -> WorkerBatch:
    return WorkerBatch(
        images=to_unit_range(torch.stack([sample.image for sample in samples])),
        captions=[sample.caption for sample in samples],
        keys=[sample.key for sample in samples],
        # A plain dict: pinning copies it with update(), which a Counter would take for an addition.
        skipped=dict(_take_skips(feeds)),
        state={"draws": draws, "sources": {feed.source.name: feed.sequence.state_dict() for feed in feeds}},
    )


def _take_skips(feeds: Sequence[SourceFeed]) -> Counter[str]:
    return sum((feed.skips.take() for feed in feeds), Counter())
