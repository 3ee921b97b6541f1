"""Training fewer tokens of the last scale, preferably those whose codes say something.

Of a picture with a plain background most tokens of the finest map have the same few codes, which a generator predicts
after some hundred steps; but each costs as much as a token that draws an edge. Here a token is the likelier to be left
out, the more tokens of its map have its code. Those that stay of the others weigh more, so that the loss is that of all
tokens in expectation (importance sampling).
"""

from __future__ import annotations

import torch
from torch import Tensor

from star.objectives.train_tokens import RandomTail
from star.schedule import ScaleSchedule


class RareTail(RandomTail):
    """Part of the last scale is left out; tokens with a rare code mostly stay.

    Args:
        share: tokens that stay over all tokens; of any schedule.
        length: tokens that stay, if they should be counted; then `share` is None.
        power: how much rarity counts: chances are proportional to `count ** -power`, where `count` tokens of the map
            have the token's code. 0 is a random tail; the larger, the more a token weighs that stays against the odds.

    Raises:
        ValueError: unless exactly one of `share` and `length` is given, in range; for a negative power.

    """

    def __init__(self, *, share: float | None = 0.75, length: int | None = None, power: float = 0.5) -> None:
        super().__init__(share=share, length=length, per_sample=True)
        if power < 0:
            raise ValueError(f"power is at least 0, got {power}")
        self.power = power

    def by_codes(self, target: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor] | None:
        """What stays of sequences whose codes are known.

        Args:
            target: codes of all scales, (B, L) long.
            schedule: the scales.

        Returns:
            Kept positions (B, L') long, ascending, and weights (B, L') with which the mean over the kept tokens is, in
            expectation, the mean over all; None when all stay.

        """
        first, count = schedule.offsets[-2], self.count(schedule)
        if count == schedule.total:
            return None
        last = target[:, first:]
        alike = (last[:, :, None] == last[:, None]).sum(2)
        chances = inclusion(alike.double() ** -self.power, count - first)
        stays = systematic(chances)
        before = torch.arange(first, device=target.device).expand(len(target), -1)
        weights = torch.cat([torch.ones_like(before, dtype=torch.double), 1 / chances.gather(1, stays)], 1)
        return torch.cat([before, stays + first], 1), (weights * count / schedule.total).float()


def inclusion(wanted: Tensor, count: int) -> Tensor:
    """Chances (B, N), at most 1, that add up to `count` and are in proportion to `wanted` (B, N) where below 1."""
    sorted_ = wanted.sort(1, descending=True).values
    rest = sorted_.flip(1).cumsum(1).flip(1)  # of an element and all smaller ones
    certain = torch.arange(count, device=wanted.device)  # so many might be certain to stay
    factors = (count - certain) / rest[:, :count]
    fits = factors * sorted_[:, :count] <= 1 + 1e-12
    factor = factors.gather(1, fits.int().argmax(1, keepdim=True))
    return (wanted * factor).clamp(max=1.0)


def systematic(chances: Tensor) -> Tensor:
    """As many different positions of each row (B, N) as its chances add up to, (B, n) long, ascending.

    Each is drawn with its chance: a random order is laid out along a line, each with its chance as length, and cut at
    equal distances. Chance is torch's global generator of the CPU.
    """
    count = round(float(chances[0].sum()))
    order = torch.rand(chances.shape).argsort(1).to(chances.device)
    ends = chances.gather(1, order).cumsum(1)
    ends = ends * (count / ends[:, -1:])  # rounding
    begin = torch.rand(len(chances), 1, dtype=torch.double).to(chances.device)
    ticks = begin + torch.arange(count, device=chances.device)
    found = torch.searchsorted(ends, ticks, right=True).clamp(max=chances.shape[1] - 1)
    return order.gather(1, found).sort(1).values
