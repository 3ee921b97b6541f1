"""phi: the convolution that smooths each upsampled token map (VAR algorithm 1)."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn


class ResidualConv(nn.Module):
    """phi(h) = (1 - r) h + r conv3x3(h), with the convolution shared over all, some or no scales.

    Args:
        width: channels `D` of a code.
        count: how many convolutions. 1: shared by all scales. n: partially shared, scale k of K takes the one whose
            tick is nearest to k / (K - 1), so the convolution of a resolution changes with K. As many as the schedule
            has scales: one each.
        ratio: `r`; 0 leaves the map as it is.
        zero_init: start with convolutions of zeros, which trains faster in small budgets; off, as PyTorch starts them.

    Raises:
        ValueError: for a count below 1 or a ratio outside [0, 1].

    """

    def __init__(self, width: int, *, count: int = 4, ratio: float = 0.5, zero_init: bool = False) -> None:
        super().__init__()
        if count < 1 or not 0 <= ratio <= 1:
            raise ValueError(
                f"phi needs at least one convolution and a ratio in [0, 1], got count {count}, ratio {ratio}"
            )
        self.width = width
        self.ratio = ratio
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(count))
        if zero_init:
            for parameter in self.convs.parameters():
                nn.init.zeros_(parameter)

    def index(self, k: int, num_scales: int) -> int:
        """Which convolution scale `k` of `num_scales` uses."""
        count = len(self.convs)
        # VAR's ticks: the outer ones lie a third (count 4) or half of a cell away from the ends
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        # NumPy's rounding decides exact ties as in VAR
        ticks = np.linspace(margin, 1 - margin, count)
        where = k / (num_scales - 1) if num_scales > 1 else 1.0
        return int(np.argmin(np.abs(ticks - where)))

    def forward(self, h: Tensor, k: int, num_scales: int) -> Tensor:
        """Smooth the map (B, D, h, w) of scale `k` of `num_scales`."""
        if self.ratio == 0:
            return h
        conv = self.convs[self.index(k, num_scales)]
        return h.mul(1 - self.ratio) + conv(h).mul(self.ratio)
