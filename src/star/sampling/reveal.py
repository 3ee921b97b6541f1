"""How many of a scale's tokens each step of causal-driven sampling reveals (STAR section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Relative sizes of the steps, by how much of the way is left: 1 at the first step, 0 at the last.
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "arccos": lambda left: left.acos() / (math.pi / 2),
    "cosine": lambda left: (left * math.pi / 2).cos(),
    "linear": lambda left: 1 - left,
    "square": lambda left: 1 - left.square(),
    "root": lambda left: 1 - left.sqrt(),
}


@dataclass(frozen=True)
class RevealSchedule:
    """Step j of T reveals tokens in proportion to `shape`, few at first: n_j ~ arccos(1 - j / (T - 1)).

    Args:
        steps: `T`; a scale with fewer tokens takes one step per token.
        shape: `arccos` (the paper), `cosine`, `linear`, `square` or `root`.

    Raises:
        ValueError: for no steps or another shape.

    """

    steps: int = 8
    shape: str = "arccos"

    def __post_init__(self) -> None:
        """Validate."""
        if self.steps < 1 or self.shape not in SHAPES:
            raise ValueError(
                f"a reveal schedule needs steps and one of {', '.join(SHAPES)}, got {self.steps}, {self.shape!r}"
            )

    def counts(self, length: int) -> tuple[int, ...]:
        """Tokens that each step reveals of a scale's `length`: at least one, and all of them together."""
        steps = min(self.steps, length)
        if steps < 2:
            return (length,) * steps
        # fp32 as in the release, where some counts are halves before they are rounded
        weights = SHAPES[self.shape](torch.linspace(1, 0, steps, dtype=torch.float32))
        counts = (weights / weights.sum() * length).round().clamp(min=1).int().tolist()
        counts[-1] += length - sum(counts)
        while counts[-1] < 1:  # rounding up gave too much away: the largest step returns it
            counts[counts.index(max(counts))] -= 1
            counts[-1] += 1
        return tuple(counts)
