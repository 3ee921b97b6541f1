"""Inception Score (Salimans et al., 2016), as torch-fidelity computes it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from star.metrics.base import Prompts, check, concatenated, ordered, places_of
from star.metrics.features import FeatureNetwork


class InceptionScore(Metric):
    """exp of the mean divergence between each picture's classes and those of its split.

    Args:
        features: an Inception network (`logits`).
        splits: into so many nearly equal parts.
        split_size: instead, parts of so many pictures, the last one smaller (ADM: 5000).
        shuffle_seed: shuffle before splitting; None keeps the order.

    Raises:
        ValueError: for no split, or one without pictures.

    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    fewer = "metric.items.inception_score.metric.splits=1 takes all at once"
    logits: list[Tensor]
    places: list[Tensor]

    def __init__(
        self,
        *,
        features: FeatureNetwork,
        splits: int = 10,
        split_size: int | None = None,
        shuffle_seed: int | None = 2020,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if splits < 1 or (split_size is not None and split_size < 1):
            raise ValueError(f"an Inception Score has at least one split of one picture, got {splits}, {split_size}")
        self.features = features
        self.splits = splits
        self.split_size = split_size
        self.shuffle_seed = shuffle_seed
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("places", default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, prompts: Prompts) -> None:
        """Add pictures (B, 3, H, W) in [0, 1]; prompts with an `index` give them their place among all."""
        check(images, prompts)
        before = sum(len(part) for part in self.places)
        self.logits.append(self.features.logits(images).float().to(self.device))  # type: ignore[operator]
        self.places.append(torch.tensor(places_of(prompts, before), dtype=torch.long, device=self.device))

    @property
    def least(self) -> int:
        """How many pictures it needs."""
        return self.splits

    def compute(self) -> dict[str, Any]:
        """`value` (mean over the splits), `std` and `num_images`.

        Raises:
            ValueError: for fewer pictures than splits.

        """
        logits = ordered(concatenated(self.logits), concatenated(self.places)).cpu().double()
        if len(logits) < self.least:
            raise ValueError(
                f"an Inception Score of {self.splits} splits needs as many pictures, got {len(logits)}: {self.fewer}"
            )
        values = inception_scores(logits, self.splits, split_size=self.split_size, shuffle_seed=self.shuffle_seed)
        return {"value": float(values.mean()), "std": float(values.std(correction=0)), "num_images": len(logits)}

    @property
    def label(self) -> str:
        """What exactly the score is."""
        return f"inception_score/{self.features.name}"

    def deviations(self) -> list[str]:
        """In what the classifier isn't the protocol's."""
        return self.features.deviations()

    def iterate_missing(self) -> Iterator[str]:
        """What the network lacks, or that it has no classes."""
        if not hasattr(self.features, "logits"):
            yield f"metric=inception_score needs an Inception network; {self.features.name} has no classes"
        yield from self.features.iterate_missing()

    def facts(self) -> dict[str, Any]:
        """The network, for the card."""
        return self.features.facts()


def inception_scores(
    logits: Tensor, splits: int = 10, *, split_size: int | None = None, shuffle_seed: int | None = 2020
) -> Tensor:
    """The score of each split (S,) of logits (N, classes), in float64."""
    count = len(logits)
    order = np.arange(count) if shuffle_seed is None else np.random.RandomState(shuffle_seed).permutation(count)
    shuffled = logits.double()[torch.from_numpy(order)]
    if split_size is None:
        bounds = [count * i // splits for i in range(splits + 1)]
    else:
        bounds = [*range(0, count, split_size), count]
    scores = []
    for first, last in pairwise(bounds):
        log_p = shuffled[first:last].log_softmax(1)
        marginal = log_p.exp().mean(0, keepdim=True).log()
        scores.append((log_p.exp() * (log_p - marginal)).sum(1).mean().exp())
    return torch.stack(scores)
