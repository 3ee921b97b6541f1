"""How causal-driven sampling went: what each step revealed, how sure it was, and pictures of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from star.schedule import ScaleSchedule

# From the first step to the last, and from unsure to sure: dark blue, blue, green, yellow.
_COLORS = torch.tensor(
    [[0.27, 0.0, 0.33], [0.23, 0.32, 0.55], [0.13, 0.57, 0.55], [0.37, 0.79, 0.38], [0.99, 0.91, 0.14]]
)
_UNKNOWN = 0.85
_GAP = 4


@dataclass(frozen=True)
class RevealTrace:
    """How one scale was revealed, in `T` steps.

    Attributes:
        revealed: (B, T, L_k) bool, the positions that each step revealed.
        confidence: (B, T, L_k), the probability, after the filters, of the code that a step drew at each position,
            whether it was kept or not.
        by_refiner: for each step whether its logits were the refiner's, not the generator's.

    """

    revealed: Tensor
    confidence: Tensor
    by_refiner: tuple[bool, ...]

    @property
    def order(self) -> Tensor:
        """The step, from 0, that revealed each position: (B, L_k) long."""
        return self.revealed.int().argmax(1)

    @property
    def certainty(self) -> Tensor:
        """The confidence of each position's code when it was revealed: (B, L_k)."""
        return (self.confidence * self.revealed).sum(1)

    def select(self, rows: Tensor) -> RevealTrace:
        """The images `rows` (N,) long, in that order; repeats allowed."""
        return RevealTrace(self.revealed[rows], self.confidence[rows], self.by_refiner)

    def stack(self, other: RevealTrace) -> RevealTrace:
        """These images, then the other's; where one was done in fewer steps, the last ones revealed nothing."""
        steps = max(len(self.by_refiner), len(other.by_refiner))
        revealed = torch.cat([_lengthen(trace.revealed, steps) for trace in (self, other)])
        confidence = torch.cat([_lengthen(trace.confidence, steps) for trace in (self, other)])
        return RevealTrace(revealed, confidence, max(self.by_refiner, other.by_refiner, key=len))


def _lengthen(part: Tensor, steps: int) -> Tensor:
    return F.pad(part, (0, 0, 0, steps - part.shape[1]))


def picture(traces: Sequence[Any], schedule: ScaleSchedule, *, image: int = 0, side: int = 128) -> Tensor:
    """All refined scales of one image, side by side: in which order (above) and how surely (below) it was revealed.

    Args:
        traces: `DecodeState.traces`, a `RevealTrace` for each refined scale.
        schedule: all scales.
        image: which image of the batch.
        side: height of a map in pixels.

    Returns:
        (3, H, W) in [0, 1]. Dark is early above and unsure below.

    Raises:
        ValueError: when nothing was traced.

    """
    columns = []
    for k, trace in enumerate(traces):
        if isinstance(trace, RevealTrace):
            order = trace.order[image] / max(len(trace.by_refiner) - 1, 1)
            maps = [paint(values, schedule.sizes[k], side) for values in (order, trace.certainty[image])]
            columns.append(_beside(maps, 1))
    if not columns:
        raise ValueError("no scale was traced: set sampler.return_trace on a causal-driven sampler before drawing")
    return _beside(columns, 2)


def film(trace: RevealTrace, size: tuple[int, int], *, image: int = 0, side: int = 128) -> Tensor:
    """One scale of one image step by step: what was known after each step, coloured by how sure it was.

    Args:
        trace: of the scale.
        size: (height, width) of its map.
        image: which image of the batch.
        side: height of a map in pixels.

    Returns:
        (3, side, W) in [0, 1]; grey is unknown.

    """
    known = trace.revealed[image].cumsum(0).bool()  # (T, L_k)
    certainty = trace.certainty[image]
    return _beside([paint(certainty.where(now, torch.nan), size, side) for now in known], 2)


def paint(values: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Values (L_k) in [0, 1] of a map of `size` in colours, (3, side, W); nan is grey."""
    scaled = values.float().cpu().nan_to_num(0.0).clamp(0, 1) * (len(_COLORS) - 1)
    low = scaled.floor().long().clamp(max=len(_COLORS) - 2)
    colors = torch.lerp(_COLORS[low], _COLORS[low + 1], (scaled - low)[:, None])
    colors = torch.where(values.cpu().isnan()[:, None], _UNKNOWN, colors)
    pixels = colors.T.reshape(1, 3, *size)
    return F.interpolate(pixels, (side, max(round(side * size[1] / size[0]), 1)), mode="nearest")[0]


def _beside(pictures: Sequence[Tensor], dim: int) -> Tensor:
    """Pictures next to each other in one direction, white between them."""
    parts: list[Tensor] = []
    for each in pictures:
        shape = list(each.shape)
        shape[dim] = _GAP
        parts += [each, torch.ones(shape)]
    return torch.cat(parts[:-1], dim)
