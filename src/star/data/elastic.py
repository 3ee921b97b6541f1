"""How a pass over the data goes on when other processes read it than those that began it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from star.data.sequence import parts_per_shard

ReaderState = Mapping[str, Any]


def redistribute(
    readers: Sequence[ReaderState | None], *, shards: Mapping[str, int], count: int
) -> list[dict[str, Any]] | None:
    """States with which other readers go on where these stopped.

    As many readers as before take the places of the old ones, one each: nothing is lost and nothing comes twice. More
    or fewer go on behind the last shard (or part of one) that any of the old ones had begun. So nothing comes twice
    within a pass; what the pass loses is the rest of the blocks that were being shuffled, and of the shards up to the
    one that was furthest ahead: about a shuffle buffer and a shard for each old reader. Where so few shards are left
    of the pass that they would have to be cut differently, the next pass begins.

    Args:
        readers: the state of each old reader, rank after rank, worker after worker; None of one that had not begun.
        shards: how many shards each source has.
        count: how many readers there are now.

    Returns:
        The state of each new reader; None when the old ones don't say how far they had got.

    """
    begun = {index: state for index, state in enumerate(readers) if state is not None}
    if any("end_piece" not in source for state in begun.values() for source in state["sources"].values()):
        return None
    if count == len(readers):
        fresh = {"draws": 0, "sources": dict.fromkeys(shards, place(0, 0))}
        return [dict(state) if state is not None else fresh for state in readers]
    draws = max((state["draws"] for state in begun.values()), default=0)
    places = {
        name: _places({i: state["sources"][name] for i, state in begun.items()}, len(readers), number, count)
        for name, number in shards.items()
    }
    return [{"draws": draws, "sources": {name: places[name][index] for name in shards}} for index in range(count)]


def place(passes: int, piece: int) -> dict[str, int]:
    """The state of a sequence that begins at a piece of a pass."""
    return {"passes": passes, "piece": piece, "sample": 0, "handed_out": 0, "end_passes": passes, "end_piece": piece}


def _places(begun: Mapping[int, Mapping[str, int]], before: int, shards: int, now: int) -> list[dict[str, int]]:
    """Where each of `now` readers of a source begins, after those `before`."""
    passes = max((state["end_passes"] for state in begun.values()), default=0)
    # Reader i of n takes every n-th piece of the pass from the i-th on; this counts the pieces of the pass.
    ends = [i + state["end_piece"] * before for i, state in begun.items() if state["end_passes"] == passes]
    first = max(ends, default=-1) + 1
    parts = parts_per_shard(shards, before)
    if parts != parts_per_shard(shards, now) or first >= shards * parts:
        passes, first = passes + 1, 0
    return [place(passes, max(0, -(-(first - index) // now))) for index in range(now)]
