"""Pictures of a batch put together, and their random streams told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

import torch

from star.nn.cache import KVCache
from star.types import Condition

if TYPE_CHECKING:
    from star.sampling.decoder import DecodeState


def merge(states: Sequence[DecodeState], cache: KVCache) -> DecodeState:
    """The pictures of several states, equally many of each and equally far, as one batch with this cache."""
    images = states[0].f_hat.shape[0]
    halves = range(len(states[0].condition) // images)
    rows = [
        state.condition.select(torch.arange(half * images, (half + 1) * images, device=state.f_hat.device))
        for half in halves
        for state in states
    ]
    return replace(
        states[0],
        f_hat=torch.cat([state.f_hat for state in states]),
        cache=cache,
        condition=reduce(Condition.stack, rows),
        generators=[generator for state in states for generator in state.generators],
        codes=[torch.cat(drawn) for drawn in zip(*(state.codes for state in states), strict=True)],
        traces=[
            None if traces[0] is None else reduce(lambda one, other: one.stack(other), traces)
            for traces in zip(*(state.traces for state in states), strict=True)
        ],
    )


def fork(generators: Sequence[torch.Generator]) -> list[torch.Generator]:
    """One generator per entry; the second and later occurrences of the same one get streams of their own."""
    forked: list[torch.Generator] = []
    for i, generator in enumerate(generators):
        copies = sum(earlier is generator for earlier in generators[:i])
        fork = torch.Generator(generator.device)
        fork.set_state(generator.get_state())
        if copies:
            # from its stream: copies of copies, and later copies, don't share one
            fork.manual_seed(int(torch.randint(2**62, (copies,), generator=fork, device=fork.device)[-1]))
        forked.append(fork)
    return forked
