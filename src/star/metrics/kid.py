"""Kernel distance between two sets of pictures (Binkowski et al., 2018): unbiased MMD with a cubic kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from star.metrics.comparison import FeatureComparison
from star.metrics.features import FeatureNetwork

_SUBSET_SEED = 2020


class KernelDistance(FeatureComparison):
    """KID: the mean over random subsets, or one estimate from all pictures.

    Args:
        features: pictures to features.
        subset_size: pictures of a subset; None takes all at once.
        subsets: how many subsets.

    Raises:
        ValueError: for subsets of fewer than two pictures, or none.

    """

    name = "kid"
    fewer = "metric.items.kid.metric.subset_size=null makes one estimate from all"

    def __init__(
        self, *, features: FeatureNetwork, subset_size: int | None = 1000, subsets: int = 100, **kwargs: Any
    ) -> None:
        super().__init__(features=features, **kwargs)
        if (subset_size is not None and subset_size < 2) or subsets < 1:
            raise ValueError(f"KID needs subsets of at least 2 pictures, got {subsets} subsets of {subset_size}")
        self.subset_size = subset_size
        self.subsets = subsets

    @property
    def least(self) -> int:
        """How many pictures each side needs."""
        return self.subset_size or 2

    def compute(self) -> dict[str, Any]:
        """`value`, `std` over the subsets, `num_images` and `num_reference`.

        Raises:
            ValueError: for fewer pictures than a subset has, or than two.

        """
        images, reference = self.sides()
        counts = {"num_images": len(images), "num_reference": len(reference)}
        if min(counts.values()) < self.least:
            raise ValueError(
                f"KID needs at least {self.least} pictures on each side, got {len(images)} and {len(reference)}: "
                f"{self.fewer}"
            )
        if self.subset_size is None:
            return {"value": kernel_distance(images, reference), **counts}
        values = torch.tensor(subset_distances(images, reference, self.subset_size, self.subsets))
        return {"value": float(values.mean()), "std": float(values.std(correction=0)), **counts}


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 of features (N, d) and (M, d) with the kernel (x.y / d + 1)^3."""
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    return float(within[0] + within[1] - 2 * kernel(x, y).mean())


def subset_distances(x: Tensor, y: Tensor, size: int, subsets: int) -> list[float]:
    """The distances of random subsets, drawn as torch-fidelity draws them."""
    rng = np.random.RandomState(_SUBSET_SEED)
    values = []
    for _ in range(subsets):
        rows = [torch.from_numpy(rng.choice(len(each), size, replace=False)) for each in (x, y)]
        values.append(kernel_distance(x[rows[0]], y[rows[1]]))
    return values
