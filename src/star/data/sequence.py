"""The order in which one worker reads the samples of one source, and how that order is taken up again."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

from star.data.shards import RawSample, ShardError, read_shard, shard_name
from star.data.skips import SkipCounter

# Cutting shards finer than this makes every worker read much more than it uses.
_MAX_EXACT_PARTS = 4


@dataclass(frozen=True)
class Share:
    """Which part of the data one worker reads: part `index` of `count` (ranks times workers)."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Position:
    """Where a sample lies: how many passes over the source came before it, and its place in this pass.

    Attributes:
        passes: finished passes.
        piece: place of its shard (or part of one) in this worker's order of the pass.
        sample: place in the shard.

    """

    passes: int = 0
    piece: int = 0
    sample: int = 0


@dataclass(frozen=True)
class PlacedSample:
    """A raw sample, where it lies, and the shard it came from."""

    raw: RawSample
    position: Position
    shard: str


def parts_per_shard(num_shards: int, count: int) -> int:
    """In how many parts a shard is cut, so that `count` workers get equal shares without reading much in vain.

    With many shards every worker reads its own ones. With few, a shard is shared: each of n workers reads it all and
    uses every n-th sample.
    """
    if num_shards >= _MAX_EXACT_PARTS * count:
        return 1
    exact = count // math.gcd(num_shards, count)
    return exact if exact <= _MAX_EXACT_PARTS else math.ceil(count / num_shards)


class SampleSequence:
    """The samples of one source in one worker's order: shards shuffled in each pass, samples shuffled in blocks.

    A block is read, shuffled and handed out while the next one is read. So the order is a pure function of the seed,
    the worker's share and the start of the block: where the block starts and how many of it were handed out restore
    it exactly, by reading at most two blocks again and decoding nothing.

    Args:
        urls: one address per shard.
        name: the source's name, part of the seed.
        share: which part of the source this worker reads.
        seed: of the shuffling.
        block_size: how many samples are shuffled together; 1 keeps the order within the shards.
        endless: pass after pass in shuffled order; otherwise one pass in the given order, in which every sample occurs
            in exactly one share and shares differ in size by at most a sample per shard.
        skips: where broken shards are counted.

    """

    def __init__(
        self,
        urls: tuple[str, ...],
        *,
        name: str,
        share: Share,
        seed: int,
        block_size: int,
        endless: bool,
        skips: SkipCounter,
    ) -> None:
        self.urls = urls
        self.name = name
        self.share = share
        self.seed = seed
        self.block_size = max(1, block_size)
        self.endless = endless
        self.skips = skips
        self._block = self._end = Position()
        self._handed_out = 0

    def state_dict(self) -> dict[str, int]:
        """Where the sequence stands: whole numbers, the last two say up to where it may have handed samples out."""
        end = {"end_passes": self._end.passes, "end_piece": self._end.piece}
        return asdict(self._block) | {"handed_out": self._handed_out} | end

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken; before the first sample is drawn."""
        self._block = Position(state["passes"], state["piece"], state["sample"])
        self._end = Position(state.get("end_passes", state["passes"]), state.get("end_piece", state["piece"]))
        self._handed_out = state["handed_out"]

    def __iter__(self) -> Iterator[PlacedSample]:
        """Samples from where the sequence stands."""
        reader = self._read(self._block)
        block = list(islice(reader, self.block_size))
        while block:
            self._block, self._end = block[0].position, block[-1].position
            # Popped from the end, so that memory holds one block and not two.
            waiting = self._shuffled(block)[self._handed_out :][::-1]
            block = list(islice(reader, self._handed_out))
            while waiting:
                block.extend(islice(reader, 1))
                self._handed_out += 1
                yield waiting.pop()
            self._handed_out = 0

    def _shuffled(self, block: list[PlacedSample]) -> list[PlacedSample]:
        if self.block_size > 1:
            place = block[0].position
            rng = random.Random(
                f"{self.seed}/{self.name}/{self.share.index}/{place.passes}/{place.piece}/{place.sample}"
            )
            rng.shuffle(block)
        return block

    def _read(self, start: Position) -> Iterator[PlacedSample]:
        """Samples in the order of the shards, from `start` on."""
        passes = start.passes
        while self.endless or passes == 0:
            for piece, (url, part, num_parts) in enumerate(self._pieces(passes)):
                if (passes, piece) < (start.passes, start.piece):
                    continue
                first = start.sample if (passes, piece) == (start.passes, start.piece) else 0
                for number, raw in self._open(url, counted=part == 0):
                    if number >= first and number % num_parts == part:
                        yield PlacedSample(raw, Position(passes, piece, number), shard_name(url))
            passes += 1

    def _pieces(self, passes: int) -> list[tuple[str, int, int]]:
        """This worker's (shard, part, number of parts) of a pass."""
        if not self.endless:
            # The part moves on from shard to shard, or the first shares would get every odd sample.
            count = self.share.count
            return [(url, (self.share.index + place) % count, count) for place, url in enumerate(self.urls)]
        num_parts = parts_per_shard(len(self.urls), self.share.count)
        pieces = [(url, part, num_parts) for url in self.urls for part in range(num_parts)]
        random.Random(f"{self.seed}/{self.name}/{passes}").shuffle(pieces)
        return pieces[self.share.index :: self.share.count]

    def _open(self, url: str, *, counted: bool) -> Iterator[tuple[int, RawSample]]:
        """The numbered samples of a shard; a broken or empty one is counted, by one of the workers that read it."""
        number = -1
        try:
            for number, raw in enumerate(read_shard(url)):
                yield number, raw
        except ShardError as error:
            if counted:
                self.skips.add(f"shard: {error.reason}", url)
        else:
            if number < 0 and counted:
                self.skips.add("shard: empty", url)
