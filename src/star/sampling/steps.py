"""One scale through the transformer, in the way that the speed's switches say."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from star.models.transformer import STARTransformer
from star.nn.cache import KVCache
from star.nn.halves import HalvedCache
from star.sampling.speed import Speed
from star.schedule import ScaleSchedule
from star.types import CachePolicy, Condition


class Steps:
    """A transformer with the caches that fit how it is run.

    Args:
        transformer: predicts a scale from all coarser ones.
        speed: how it is run.

    """

    def __init__(self, transformer: STARTransformer, speed: Speed) -> None:
        self.transformer = transformer
        self.speed = speed
        self.run = speed.runner(transformer)

    def cache(
        self, schedule: ScaleSchedule, halves: int, device: torch.device, policy: CachePolicy | None
    ) -> KVCache | HalvedCache:
        """An empty cache for as many halves as there are (2 under guidance); `policy` may shorten what stays in it."""
        model = self.transformer
        build = partial(KVCache, schedule, model.mask, policy, num_layers=model.depth)
        return HalvedCache(build, halves, device) if self.speed.sequential_guidance else build()

    def trim(self, condition: Condition) -> Condition:
        """The texts without padding, unless what runs them is compiled for one length."""
        return condition.trim() if self.run is None and self.speed.trim_text else condition

    def __call__(
        self,
        x_in: Tensor | None,
        condition: Condition,
        schedule: ScaleSchedule,
        k: int,
        cache: KVCache | HalvedCache,
    ) -> Tensor:
        """Hidden states (R, L_k, C) of scale `k`; see `STARTransformer.step`."""
        step = partial(self.transformer.step, schedule=schedule, k=k, run=self.run)
        if not self.speed.cache_text:
            cache.forget_text()
        if not isinstance(cache, HalvedCache):
            return step(x_in, condition, cache=cache)
        halves = len(cache.caches)
        inputs = [None] * halves if x_in is None else x_in.chunk(halves)
        texts = [condition.select(rows) for rows in torch.arange(len(condition)).chunk(halves)]
        turns = zip(inputs, texts, cache.turns(schedule.offsets[k + 1]), strict=True)
        return torch.cat([step(part, text, cache=own) for part, text, own in turns])
