"""How sure the model was of every token it drew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from star.sampling.decoder import needs_refiner
from star.sampling.trace import RevealTrace, paint
from star.schedule import ScaleSchedule
from star.types import Draw, TokenSampler


@dataclass(frozen=True)
class Confidence:
    """A scale's trace: the probability, before the filters, of every code that was drawn.

    Attributes:
        certainty: (B, L_k).

    """

    certainty: Tensor

    def select(self, rows: Tensor) -> Confidence:
        """The images `rows` (N,) long, in that order; repeats allowed."""
        return Confidence(self.certainty[rows])

    def stack(self, other: Confidence) -> Confidence:
        """These images, then the other's."""
        return Confidence(torch.cat([self.certainty, other.certainty]))


class WithConfidence:
    """Draws as another sampler does, and notes how probable each code was; where that one traces, its trace stays.

    Args:
        sampler: draws.

    """

    def __init__(self, sampler: TokenSampler) -> None:
        self.sampler = sampler
        self.needs_refiner = needs_refiner(sampler)

    def __call__(
        self,
        hidden: Tensor,
        head: Callable[[Tensor], Tensor],
        guide: Callable[[Tensor, int], Tensor],
        k: int,
        state: Any,
    ) -> Draw:
        """The sampler's draw of scale `k` with a trace."""
        draw = self.sampler(hidden, head, guide, k, state)
        if draw.trace is None:
            logits = guide(head(hidden), k).float()
            certainty = logits.softmax(-1).gather(-1, draw.codes[..., None])[..., 0]
            draw.trace = Confidence(certainty)
        return draw


def confidence_picture(traces: Sequence[Any], schedule: ScaleSchedule, *, image: int = 0, side: int = 96) -> Tensor:
    """The maps of all traced scales of one image, side by side, coarse to fine.

    Args:
        traces: `DecodeState.traces`, drawn with `WithConfidence`.
        schedule: all scales.
        image: which image of the batch.
        side: height of a map in pixels.

    Returns:
        (3, side, W) in [0, 1]: dark blue is unsure, yellow is sure.

    Raises:
        ValueError: when nothing was traced.

    """
    maps = [
        paint(trace.certainty[image], size, side)
        for trace, size in zip(traces, schedule.sizes, strict=False)
        if isinstance(trace, Confidence | RevealTrace)
    ]
    if not maps:
        raise ValueError("no scale was traced: draw with WithConfidence around the sampler")
    return torch.cat([torch.nn.functional.pad(each, (0, 4), value=1.0) for each in maps], 2)[..., :-4]
