"""Hiding fine scales from the decoder, so that coarse scales have to say what the picture is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScaleDropout:
    """Shows the decoder only the first few scales of some images.

    Left alone, a small tokenizer writes everything into its finest map and uses a handful of codes in the others. A
    generator draws the tokens of a map independently of each other: they can't agree on what coarser maps left open.
    The price is fine detail, so start low.

    Args:
        probability: share of the images that lose scales; how many they keep is uniform in 1 ... K - 1.

    Raises:
        ValueError: for a probability outside [0, 1].

    """

    probability: float

    def __post_init__(self) -> None:
        """Check the probability."""
        if not 0 <= self.probability <= 1:
            raise ValueError(f"the share of images that lose scales must be in [0, 1], got {self.probability}")

    def __call__(self, batch: int, num_scales: int, generator: torch.Generator | None = None) -> Tensor:
        """How many scales each image keeps, (B,) long, at least 1."""
        hit = torch.rand(batch, generator=generator) < self.probability
        few = torch.randint(1, max(num_scales, 2), (batch,), generator=generator)
        return torch.where(hit, few, num_scales)
