"""Frechet distance between two sets of pictures (Heusel et al., 2017), from running sums in float64."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from star.metrics.base import Prompts, category_ids, check
from star.metrics.features import FeatureNetwork

log = logging.getLogger(__name__)

Moments = tuple[Tensor, Tensor]


class FrechetDistance(Metric):
    """|mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2), overall and for each category.

    Args:
        features: pictures to features.
        categories: names that prompts carry as `category`; sums are kept for each, and the overall distance is that
            of their total.

    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    images_count: Tensor
    images_sum: Tensor
    images_outer: Tensor
    reference_count: Tensor
    reference_sum: Tensor
    reference_outer: Tensor

    def __init__(self, *, features: FeatureNetwork, categories: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = features
        self.categories = tuple(categories)
        groups, width = max(1, len(self.categories)), features.width
        for name in ("images", "reference"):
            self.add_state(f"{name}_count", torch.zeros(groups, dtype=torch.long), dist_reduce_fx="sum")
            self.add_state(f"{name}_sum", torch.zeros(groups, width, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(
                f"{name}_outer", torch.zeros(groups, width, width, dtype=torch.float64), dist_reduce_fx="sum"
            )
        self._known: dict[int | None, Moments] = {}
        self._known_count: int | None = None

    def update(self, images: Tensor, prompts: Prompts) -> None:
        """Add scored pictures (B, 3, H, W) in [0, 1]."""
        self._add("images", images, prompts)

    def update_reference(self, images: Tensor, prompts: Prompts) -> None:
        """Add real pictures (B, 3, H, W) in [0, 1]."""
        self._add("reference", images, prompts)

    def update_features(self, name: str, features: Tensor, groups: Tensor | None = None) -> None:
        """Add features (B, width) of `images` or `reference`, with the category (B,) long of each."""
        features = features.double()
        rows = torch.zeros(len(features), dtype=torch.long) if groups is None else groups.cpu()
        for group in rows.unique().tolist():
            part = features[rows == group]
            getattr(self, f"{name}_count")[group] += len(part)
            getattr(self, f"{name}_sum")[group] += part.sum(0)
            getattr(self, f"{name}_outer")[group].addmm_(part.T, part)

    def set_reference(self, moments: Mapping[int | None, Moments]) -> None:
        """Use known statistics: category (None: overall) -> mean (width,) and covariance (width, width).

        Raises:
            ValueError: for statistics of another width.

        """
        for mean, covariance in moments.values():
            if tuple(mean.shape) != (self.features.width,) or covariance.shape != (self.features.width,) * 2:
                raise ValueError(
                    f"reference statistics of width {mean.shape[0]} don't belong to {self.features.name} features, "
                    f"whose width is {self.features.width}"
                )
        self._known = {name: (mean.double(), covariance.double()) for name, (mean, covariance) in moments.items()}

    def moments(self, name: str, group: int | None = None) -> Moments:
        """Mean (width,) and unbiased covariance (width, width) of `images` or `reference`, of a category or all.

        Raises:
            ValueError: for fewer than two pictures.

        """
        if name == "reference" and group in self._known:
            return tuple(part.to(self.device) for part in self._known[group])  # type: ignore[return-value]
        rows = slice(None) if group is None else slice(group, group + 1)
        count = int(getattr(self, f"{name}_count")[rows].sum())
        if count < 2:
            raise ValueError(f"a Frechet distance needs at least two pictures on each side, {name} has {count}")
        mean = getattr(self, f"{name}_sum")[rows].sum(0) / count
        outer = getattr(self, f"{name}_outer")[rows].sum(0)
        return mean, (outer - count * torch.outer(mean, mean)) / (count - 1)

    def compute(self) -> dict[str, Any]:
        """`value`, `num_images`, `num_reference` (None when statistics were given), and `categories`.

        Raises:
            ValueError: for fewer than two pictures on a side.

        """
        count = int(self.images_count.sum())
        if count <= self.features.width:
            log.warning(
                "FID of %d pictures in %d dimensions: fewer pictures than dimensions bias it upwards; compare it only "
                "with values of the same count",
                count,
                self.features.width,
            )
        result: dict[str, Any] = {
            "value": frechet_distance(self.moments("images"), self.moments("reference")),
            "num_images": count,
            "num_reference": self._known_count if self._known else int(self.reference_count.sum()),
        }
        if self.categories:
            result["categories"] = {
                name: frechet_distance(self.moments("images", i), self.moments("reference", i))
                for i, name in enumerate(self.categories)
                if int(self.images_count[i]) > 1 and (i in self._known or int(self.reference_count[i]) > 1)
            }
        return result

    @property
    def label(self) -> str:
        """What exactly the distance is."""
        return f"fid/{self.features.name}"

    def deviations(self) -> list[str]:
        """In what the features aren't the protocol's."""
        return self.features.deviations()

    def reference_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """`mu`, `sigma` (as pytorch-fid names them) and `n` of the reference, and `mu/NAME` ... of every category."""
        groups: dict[str, int | None] = {"": None, **{f"/{name}": i for i, name in enumerate(self.categories)}}
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for suffix, group in groups.items():
            rows = slice(None) if group is None else slice(group, group + 1)
            count = int(self.reference_count[rows].sum())
            if count > 1:
                mean, covariance = self.moments("reference", group)
                arrays |= {f"mu{suffix}": mean.cpu().numpy(), f"sigma{suffix}": covariance.cpu().numpy()}
                arrays[f"n{suffix}"] = np.array(count)
        return arrays

    def set_reference_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Use statistics as `reference_arrays` or pytorch-fid saved them.

        Raises:
            ValueError: without `mu` and `sigma`, or of another width.

        """
        if "mu" not in arrays or "sigma" not in arrays:
            raise ValueError(f"reference statistics need the arrays mu and sigma, got {', '.join(arrays) or 'none'}")
        groups: dict[int | None, str] = {None: "", **{i: f"/{name}" for i, name in enumerate(self.categories)}}
        there = {group: suffix for group, suffix in groups.items() if f"mu{suffix}" in arrays}
        self.set_reference(
            {
                group: (torch.from_numpy(arrays[f"mu{s}"]), torch.from_numpy(arrays[f"sigma{s}"]))
                for group, s in there.items()
            }
        )
        self._known_count = int(arrays["n"]) if "n" in arrays else None

    def iterate_missing(self) -> Iterator[str]:
        """What the feature network lacks."""
        return self.features.iterate_missing()

    def facts(self) -> dict[str, Any]:
        """The feature network, for the card."""
        return self.features.facts()

    def _add(self, name: str, images: Tensor, prompts: Prompts) -> None:
        check(images, prompts)
        groups = torch.tensor(category_ids(prompts, self.categories), dtype=torch.long)
        self.update_features(name, self.features(images).to(self.device), groups)


def frechet_distance(first: Moments, second: Moments) -> float:
    """The distance of two Gaussians, each a mean (d,) and a covariance (d, d), in float64."""
    (mean_1, covariance_1), (mean_2, covariance_2) = first, second
    # tr (S_1 S_2)^(1/2) by the symmetric root S_1^(1/2) S_2 S_1^(1/2), whose eigenvalues are real and not negative
    values, vectors = torch.linalg.eigh(covariance_1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ covariance_2 @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * trace
    return max(float(distance), 0.0)
