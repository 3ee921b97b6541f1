"""How well a tokenizer rebuilds pictures: PSNR, SSIM and the use of its codebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from star.metrics.base import bootstrap, check, concatenated

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_LEAST_MSE = 1e-10  # identical pictures would have an infinite PSNR; this is 100 dB


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB (B,) of images (B, 3, H, W) in [0, 1], each by its own error."""
    error = (images.double() - reference.double()).square().mean((1, 2, 3))
    return -10 * error.clamp_min(_LEAST_MSE).log10()


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (B,) of images (B, 3, H, W) in [0, 1] (Wang et al., 2004).

    Gaussian window 11 x 11 with sigma 1.5, each channel by itself, only where the window lies within the picture.

    Raises:
        ValueError: for pictures smaller than the window.

    """
    if min(images.shape[2:]) < _WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {_WINDOW} pixels a side, got {tuple(images.shape[2:])}")
    offsets = torch.arange(_WINDOW, dtype=torch.float64, device=images.device) - _WINDOW // 2
    line = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    line = line / line.sum()

    def average(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)[:, None]
        smooth = F.conv2d(F.conv2d(flat, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))
        return smooth[:, 0].unflatten(0, x.shape[:2])  # (B, 3, H - 10, W - 10)

    x, y = images.double(), reference.double()
    mean_x, mean_y = average(x), average(y)
    variance_x, variance_y = average(x * x) - mean_x.square(), average(y * y) - mean_y.square()
    covariance = average(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return (luminance * (2 * covariance + _C2) / (variance_x + variance_y + _C2)).mean((1, 2, 3))


class Reconstruction(Metric):
    """PSNR and SSIM, each the mean over pictures with a bootstrap interval."""

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    psnrs: list[Tensor]
    ssims: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("psnrs", "ssims"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, reference: Tensor) -> None:
        """Compare reconstructions (B, 3, H, W) in [0, 1] with the pictures they were made from; B may be 0."""
        check(images)
        if images.shape != reference.shape:
            raise ValueError(
                f"reconstructions {tuple(images.shape)} and pictures {tuple(reference.shape)} differ in shape"
            )
        empty = torch.zeros(0, dtype=torch.float64)
        self.psnrs.append(psnr(images, reference).to(self.device) if len(images) else empty)
        self.ssims.append(ssim(images, reference).to(self.device) if len(images) else empty)

    def compute(self) -> dict[str, Any]:
        """`value` (PSNR in dB), `psnr`, `ssim`, their intervals and `num_images`.

        Raises:
            ValueError: when nothing was compared.

        """
        psnrs, ssims = concatenated(self.psnrs), concatenated(self.ssims)
        if not len(psnrs):
            raise ValueError("no picture was reconstructed")
        return {
            "value": float(psnrs.mean()),
            "interval": bootstrap(psnrs),
            "psnr": float(psnrs.mean()),
            "ssim": float(ssims.mean()),
            "ssim_interval": bootstrap(ssims),
            "num_images": len(psnrs),
        }


class CodebookUse(Metric):
    """Which codes a tokenizer uses, at every scale and over all.

    Args:
        codebook_size: `V`.
        num_scales: `K`.

    """

    full_state_update = False
    is_differentiable = False
    counts: Tensor

    def __init__(self, *, codebook_size: int, num_scales: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(num_scales, codebook_size, dtype=torch.long)
        self.add_state("counts", default=zeros, dist_reduce_fx="sum")

    def update(self, codes: Sequence[Tensor]) -> None:
        """Count codes of each scale, (B, L_k) long."""
        for k, drawn in enumerate(codes):
            self.counts[k] += torch.bincount(drawn.flatten().to(self.device), minlength=self.counts.shape[1])

    def compute(self) -> dict[str, Any]:
        """`usage` (share of codes that occur) and `perplexity`, overall and as lists over the scales."""
        total = self.counts.sum(0)
        return {
            "usage": usage(total),
            "perplexity": perplexity(total),
            "usage_per_scale": [usage(counts) for counts in self.counts],
            "perplexity_per_scale": [perplexity(counts) for counts in self.counts],
            "codes_per_scale": [int((counts > 0).sum()) for counts in self.counts],
        }


def usage(counts: Tensor, margin: float = 0.0) -> float:
    """Share of the codes (V,) that occur; with a margin, more often than that share of an even distribution.

    A margin of 0.08 is what VAR's training logs.
    """
    least = margin * float(counts.sum()) / len(counts)
    used = counts >= least if margin else counts > 0
    return float(used.double().mean())


def perplexity(counts: Tensor) -> float:
    """Exp of the entropy of codes counted (V,): how many equally likely codes would be as varied."""
    shares = counts.double() / counts.sum().clamp_min(1)
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))
