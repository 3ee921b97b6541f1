"""CLIP-Score: the cosine between a picture's embedding and its caption's (Hessel et al., 2021, unscaled)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from star.metrics.base import Prompts, ScoreMean, concatenated, ordered, places_of
from star.metrics.clip import ClipModel


class ClipScore(ScoreMean):
    """Mean cosine, overall and by category: no clamp at 0.

    Args:
        model: embeds pictures and texts.
        scale: multiplies the cosine; 1 is STAR's table, 100 HPSv2's.
        categories: names that prompts carry as `category`.
        group_size: pictures per group; given, the standard deviation of the groups' means is reported (HPSv2: 80).
        name: of the score, for labels.

    """

    higher_is_better = True
    places: list[Tensor]

    def __init__(
        self,
        *,
        model: ClipModel,
        scale: float = 1.0,
        categories: Sequence[str] = (),
        group_size: int | None = None,
        name: str = "clip_score",
        **kwargs: Any,
    ) -> None:
        super().__init__(categories=categories, **kwargs)
        self.model = model
        self.scale = scale
        self.group_size = group_size
        self.name = name
        self.add_state("places", default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, prompts: Prompts) -> None:
        """Score images (B, 3, H, W) in [0, 1]; prompts with an `index` give them their place in the groups."""
        before = sum(len(part) for part in self.places)
        super().update(images, prompts)
        self.places.append(torch.tensor(places_of(prompts, before), dtype=torch.long, device=self.device))

    def score(self, images: Tensor, prompts: Prompts) -> Tensor:
        """Scaled cosines (B,) of pictures (B, 3, H, W) in [0, 1] and their prompts."""
        texts = self.model.embed_texts([prompt["prompt"] for prompt in prompts], images.device)
        return self.scale * cosines(self.model.embed_images(images), texts)

    def compute(self) -> dict[str, Any]:
        """`value`, `interval`, `num_images`, `categories`, and `group_std` by category if pictures are grouped."""
        result = super().compute()
        if self.group_size is not None:
            places = concatenated(self.places)
            scores, members = (ordered(concatenated(state), places) for state in (self.scores, self.members))
            names = self.categories or ("all",)
            groups = {name: scores[members == i] for i, name in enumerate(names)}
            result["group_std"] = {name: _spread(part, self.group_size) for name, part in groups.items() if len(part)}
        return result

    @property
    def label(self) -> str:
        """What exactly the score is."""
        known = self.model.architecture
        return f"{self.name}/{known if isinstance(known, str) else 'own'}"

    def deviations(self) -> list[str]:
        """Whether other weights than the published ones were used."""
        file = self.model.file
        known = not file.facts.sha256 or file.verified(file.path())
        return [] if known else [f"{file.path().name} is not the published file {file.facts.files[0]}"]

    def iterate_missing(self) -> Iterator[str]:
        """The weights, if they aren't there."""
        return self.model.file.iterate_missing()

    def facts(self) -> dict[str, Any]:
        """The model, for the card."""
        return self.model.facts()


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines (B,) of embeddings (B, D) of length 1."""
    return (images * texts).sum(1)


def _spread(scores: Tensor, size: int) -> float:
    """Standard deviation of the means of consecutive groups."""
    means = torch.stack([part.mean() for part in scores.split(size)])
    return float(means.std(correction=0))
