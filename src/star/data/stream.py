"""Batches of one worker: sources mixed by weight, samples read, counted and stacked."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from star.data.elastic import place
from star.data.filters import Filters
from star.data.samples import SampleReader
from star.data.sequence import SampleSequence, Share
from star.data.shards import RawSample
from star.data.skips import SkipCounter, SkipSample
from star.data.sources import ShardSource
from star.data.transforms import MAX_PIXELS, ImageTransform, to_unit_range
from star.types import Batch

Text = tuple[Tensor, Tensor, Tensor]


class WorkerBatch(NamedTuple):
    """A batch on its way from a worker: plain values only, so that it can be pinned and sent.

    Attributes:
        images: (B, 3, H, W) in [-1, 1].
        captions: B strings.
        keys: B unique names.
        skipped: skips since the worker's batch before, by cause.
        state: where the worker stands after this batch, see `BatchStream.batches`.
        worker: which of the rank's workers made it.
        codes, features, text, empty: what a cache has, see `star.types.Batch`.

    """

    images: Tensor
    captions: list[str]
    keys: list[str]
    skipped: dict[str, int]
    state: dict[str, Any]
    worker: int = 0
    codes: Tensor | None = None
    features: Tensor | None = None
    text: Text | None = None
    empty: Text | None = None

    def unpack(self, waited: float = 0.0) -> Batch:
        """What training sees of it."""
        known = {"codes": self.codes, "features": self.features, "text": self.text, "empty": self.empty}
        return Batch(self.images, self.captions, self.keys, self.skipped, waited, **known)  # type: ignore[arg-type]


class Reader(Protocol):
    """Turns a raw sample into one that can be stacked."""

    def __call__(self, raw: RawSample, *, key: str, rng: random.Random) -> Any:
        """The sample; `rng` draws what is random in it. Raises SkipSample when it can't be used."""
        ...


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
        self, source: ShardSource, *, reader: Reader, sequence: SampleSequence, skips: SkipCounter, seed: int
    ) -> None:
        self.source = source
        self.reader = reader
        self.sequence = sequence
        self.skips = skips
        self.seed = seed

    def __iter__(self) -> Iterator[Any]:
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
class SampleStream(ABC):
    """What every worker does, told by its share of the data: the order of the samples, whatever they hold.

    Args:
        sources: with expanded `urls` and weights above 0.
        batch_size: samples in a batch; the last of a finite stream may be smaller.
        seed: of order, captions and crops.
        shuffle_buffer: samples that are shuffled together, per worker and source; 1 for none.
        endless: pass after pass, sources mixed by weight; otherwise one pass over all sources, one after another.
        max_consecutive_skips: more skips in a row are an error.

    """

    sources: tuple[ShardSource, ...]
    batch_size: int
    seed: int = 0
    shuffle_buffer: int = 1
    endless: bool = True
    max_consecutive_skips: int = 1000

    @abstractmethod
    def reader(self, source: ShardSource) -> Reader:
        """What reads the samples of a source."""

    @abstractmethod
    def stack(self, samples: Sequence[Any]) -> WorkerBatch:
        """Samples as a batch, without its `skipped` and `state`."""

    def batches(self, share: Share, state: dict[str, Any] | None = None) -> Iterator[WorkerBatch]:
        """Batches of one share.

        Args:
            share: which part of the data.
            state: the `state` of the batch after which to go on; None begins.

        Raises:
            UnusableDataError: for too many skips in a row.

        """
        feeds = [self._feed(source, share) for source in self.sources]
        if state is not None:
            for feed in feeds:
                feed.sequence.load_state_dict(state["sources"][feed.source.name])
        if not self.endless:
            return self._finite(chain.from_iterable(feeds), feeds)
        mixer = Mixer(feeds, seed=f"{self.seed}/{share.index}", draws=0 if state is None else state["draws"])
        return self._endless(mixer, feeds)

    def state_at_pass(self, passes: int) -> dict[str, Any]:
        """The state of a share that begins with a later pass, whose order differs from that of the passes before."""
        return {"draws": 0, "sources": {source.name: place(passes, 0) for source in self.sources}}

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
        return SourceFeed(source, reader=self.reader(source), sequence=sequence, skips=skips, seed=self.seed)

    def _endless(self, mixer: Mixer, feeds: Sequence[SourceFeed]) -> Iterator[WorkerBatch]:
        samples = iter(mixer)
        while True:
            yield self._stack(list(islice(samples, self.batch_size)), feeds, mixer.draws)

    def _finite(self, samples: Iterator[Any], feeds: Sequence[SourceFeed]) -> Iterator[WorkerBatch]:
        """Batches to the end; the last one is held back, to carry the skips that come after its samples."""
        held: WorkerBatch | None = None
        while chunk := list(islice(samples, self.batch_size)):
            if held is not None:
                yield held
            held = self._stack(chunk, feeds, draws=0)
        trailing = _take_skips(feeds)
        if held is not None:
            yield held._replace(skipped=dict(Counter(held.skipped) + trailing))
        elif trailing:
            yield WorkerBatch(torch.empty(0), [], [], dict(trailing), {})

    def _stack(self, samples: Sequence[Any], feeds: Sequence[SourceFeed], draws: int) -> WorkerBatch:
        state = {"draws": draws, "sources": {feed.source.name: feed.sequence.state_dict() for feed in feeds}}
        # A plain dict: pinning copies it with update(), which a Counter would take for an addition.
        return self.stack(samples)._replace(skipped=dict(_take_skips(feeds)), state=state)


@dataclass(frozen=True)
class BatchStream(SampleStream):
    """Pictures with captions.

    Args:
        transform: what happens to the pictures.
        filters: bounds on sizes and json fields.
        max_pixels: larger pictures are skipped.

    """

    transform: ImageTransform = field(kw_only=True)
    filters: Filters = field(kw_only=True)
    max_pixels: int = field(default=MAX_PIXELS, kw_only=True)

    def reader(self, source: ShardSource) -> SampleReader:
        """Decodes pictures and draws captions."""
        return SampleReader(source.captions, self.filters, self.transform, self.max_pixels)

    def stack(self, samples: Sequence[Any]) -> WorkerBatch:
        """Pictures in [-1, 1]."""
        images = to_unit_range(torch.stack([sample.image for sample in samples]))
        captions = [sample.caption for sample in samples]
        return WorkerBatch(images, captions, [sample.key for sample in samples], {}, {})


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

    def __iter__(self) -> Iterator[Any]:
        """Samples, drawn one by one."""
        streams = [iter(feed) for feed in self.feeds]
        weights = [feed.source.weight for feed in self.feeds]
        for draw in count(self.draws):
            stream = (
                streams[0] if len(streams) == 1 else random.Random(f"{self.seed}/{draw}").choices(streams, weights)[0]
            )
            self.draws = draw + 1
            yield next(stream)


def _take_skips(feeds: Sequence[SourceFeed]) -> Counter[str]:
    return sum((feed.skips.take() for feed in feeds), Counter())
