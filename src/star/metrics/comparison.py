"""Metrics that keep the features of both sides: drawn pictures and real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torchmetrics import Metric

from star.metrics.base import Prompts, check, concatenated, ordered, places_of
from star.metrics.features import FeatureNetwork


class FeatureComparison(Metric):
    """Gathers features; subclasses say what their distance is.

    Args:
        features: pictures to features.

    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    name = "comparison"
    images: list[Tensor]
    reference: list[Tensor]
    images_places: list[Tensor]
    reference_places: list[Tensor]

    def __init__(self, *, features: FeatureNetwork, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = features
        # concatenated before they are gathered, so ranks may have made different numbers of updates
        for side in ("images", "reference"):
            self.add_state(side, default=[], dist_reduce_fx="cat")
            # a subset is drawn by place: it must not depend on which rank saw which picture
            self.add_state(f"{side}_places", default=[], dist_reduce_fx="cat")

    def embed(self, images: Tensor) -> Tensor:
        """What is kept of pictures (B, 3, H, W) in [0, 1]: (B, width)."""
        return self.features(images)

    def update(self, images: Tensor, prompts: Prompts) -> None:
        """Add scored pictures (B, 3, H, W) in [0, 1]; prompts with an `index` give them their place among all."""
        self._add("images", images, prompts)

    def update_reference(self, images: Tensor, prompts: Prompts) -> None:
        """Add real pictures (B, 3, H, W) in [0, 1]."""
        self._add("reference", images, prompts)

    def reference_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The features of the real pictures."""
        return {"features": self._side("reference").cpu().numpy()}

    def set_reference_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Use features that were kept; with several ranks each takes its share.

        Raises:
            ValueError: without them.

        """
        if "features" not in arrays or arrays["features"].shape[1:] != (self.features.width,):
            raise ValueError(
                f"{self.name} needs the reference's features, (N, {self.features.width}) under the name 'features': "
                f"got the arrays {', '.join(arrays)}. Statistics (mu, sigma) serve the FID alone."
            )
        shared = distributed.is_available() and distributed.is_initialized()
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if shared else (0, 1)
        features = torch.from_numpy(arrays["features"])
        self.reference = [features[rank::world].to(self.device)]
        self.reference_places = [torch.arange(len(features), device=self.device)[rank::world]]

    def sides(self) -> tuple[Tensor, Tensor]:
        """Features of drawn and real pictures.

        Raises:
            ValueError: when a side has none.

        """
        images, reference = self._side("images"), self._side("reference")
        if not len(images) or not len(reference):
            raise ValueError(f"{self.name} needs pictures on both sides, got {len(images)} and {len(reference)}")
        return images, reference

    @property
    def label(self) -> str:
        """What exactly the distance is."""
        return f"{self.name}/{self.features.name}"

    def deviations(self) -> list[str]:
        """In what the features aren't the protocol's."""
        return self.features.deviations()

    def iterate_missing(self) -> Iterator[str]:
        """What the feature network lacks."""
        return self.features.iterate_missing()

    def facts(self) -> dict[str, Any]:
        """The feature network, for the card."""
        return self.features.facts()

    def _add(self, side: str, images: Tensor, prompts: Prompts) -> None:
        check(images, prompts)
        places = getattr(self, f"{side}_places")
        before = sum(len(part) for part in places)
        places.append(torch.tensor(places_of(prompts, before), dtype=torch.long, device=self.device))
        getattr(self, side).append(self.embed(images).to(self.device))

    def _side(self, side: str) -> Tensor:
        """Features (N, width) of a side, in the order of its pictures."""
        return ordered(concatenated(getattr(self, side)), concatenated(getattr(self, f"{side}_places")))
