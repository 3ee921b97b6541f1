"""CLIP maximum mean discrepancy (Jayasumana et al., 2024) between two sets of pictures."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from star.metrics.comparison import FeatureComparison

_SIGMA = 10.0
_SCALE = 1000.0
_ROWS = 1024


class CMMD(FeatureComparison):
    """1000 (mean k(x, x) + mean k(y, y) - 2 mean k(x, y)) with a Gaussian kernel, the diagonal included.

    Args:
        features: pictures to embeddings, which are brought to length 1.

    """

    name = "cmmd"

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (B, width), float32, of length 1."""
        return F.normalize(self.features(images), dim=1).float()

    def compute(self) -> dict[str, Any]:
        """`value`, `num_images` and `num_reference`."""
        images, reference = self.sides()
        return {"value": cmmd(images, reference), "num_images": len(images), "num_reference": len(reference)}


def cmmd(x: Tensor, y: Tensor) -> float:
    """The distance of embeddings (N, d) and (M, d) of length 1."""
    within = [_kernel_mean(each, each) for each in (x, y)]
    return _SCALE * (within[0] + within[1] - 2 * _kernel_mean(x, y))


def _kernel_mean(a: Tensor, b: Tensor) -> float:
    """Mean of k - 1: the ones cancel in the sum of the three means, and with them the rounding of numbers near 1."""
    total = a.new_zeros((), dtype=torch.float64)
    other = b.double()
    lengths = other.square().sum(1)
    for rows in a.split(_ROWS):  # 30,000 x 30,000 numbers at once would be 7 GB
        part = rows.double()
        distances = part.square().sum(1)[:, None] + lengths - 2 * part @ other.T
        total += torch.expm1(-distances.clamp_min(0) / (2 * _SIGMA**2)).sum()
    return float(total) / (len(a) * len(b))
