"""Which tokens of a sequence are trained: all of them, or fewer of the late scales (STAR section 4.4).

What isn't kept is absent: it is neither predicted nor looked at, so a step takes less time and memory. How many tokens
of each scale stay never depends on chance, so every step and every rank is equally expensive. Positions are drawn from
torch's global generator of the CPU, like everything else that training leaves to chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from star.schedule import ScaleSchedule


def counts(train_tokens: Callable[[ScaleSchedule, int], Tensor | None], schedule: ScaleSchedule) -> tuple[int, ...]:
    """How many tokens of each scale are trained."""
    kept = train_tokens(schedule, 1)
    if kept is None:
        return schedule.lengths
    return tuple(schedule.scale_ids()[kept.flatten()].bincount(minlength=len(schedule)).tolist())


class AllTokens:
    """Every token."""

    def __call__(self, schedule: ScaleSchedule, batch: int) -> Tensor | None:
        """The kept positions (L') or (batch, L'), ascending; None for all of them."""
        return None


class RandomTail:
    """A random part of the last scale is left out, so that the sequence has a fixed length (the release at 1024).

    Every token of the last scale is equally likely to stay.

    Args:
        share: tokens that stay over all tokens; of any schedule.
        length: tokens that stay, if they should be counted; then `share` is None.
        per_sample: each sample loses other tokens; off, the whole batch loses the same (the release).

    Raises:
        ValueError: unless exactly one of `share` and `length` is given, in range.

    """

    def __init__(
        self, *, share: float | None = 8800 / 9451, length: int | None = None, per_sample: bool = False
    ) -> None:
        if (share is None) == (length is None):
            raise ValueError(f"set either share or length, the other null, got share={share} and length={length}")
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"share is the part of all tokens that stays, in (0, 1], got {share}")
        if length is not None and length < 1:
            raise ValueError(f"length counts the tokens that stay, got {length}")
        self.share = share
        self.length = length
        self.per_sample = per_sample

    def count(self, schedule: ScaleSchedule) -> int:
        """How many tokens stay, `L'`.

        Raises:
            ValueError: when the schedule is shorter than that, or would lose its whole last scale.

        """
        length = round((self.share or 0.0) * schedule.total) if self.length is None else self.length
        shortest = schedule.offsets[-2] + 1
        if not shortest <= length <= schedule.total:
            raise ValueError(
                f"the schedule '{schedule}' has {schedule.total} tokens, and only its last scale is thinned: "
                f"{shortest} to {schedule.total} can stay, got {length} "
                f"({f'share={self.share}' if self.length is None else f'length={self.length}'})"
            )
        return length

    def __call__(self, schedule: ScaleSchedule, batch: int) -> Tensor | None:
        """The kept positions (L'), or (batch, L') with `per_sample`, ascending; None when all stay."""
        count = self.count(schedule)
        if count == schedule.total:
            return None
        rows, first = batch if self.per_sample else 1, schedule.offsets[-2]
        tail = torch.rand(rows, schedule.lengths[-1]).argsort(1)[:, : count - first].sort(1).values + first
        kept = torch.cat([torch.arange(first).expand(rows, -1), tail], 1)
        return kept if self.per_sample else kept[0]


class LocalWindow:
    """Random windows of the last scales, each inside the one before: the picture's part that is trained in detail.

    The first window lies anywhere. A later one lies where the centres of all its tokens are inside the window before,
    both in relative coordinates, so that a token finds the coarser tokens of its own place among those that stay.
    Tokens near the border of a map are in fewer windows than those in the middle, and no token learns to look further
    than its window: finish with `train_tokens=all`.

    Args:
        windows: (side, of) for each of the last scales, coarse to fine: (26, 48) is 26x26 tokens of a 48x48 map, and
            the same share of each side of any other map, rounded, at least a token and at most what fits into the
            window before.
        per_sample: each sample has windows of its own; off, the whole batch shares them.

    Raises:
        ValueError: for no window, one that is larger than its map, or than the window before it.

    """

    def __init__(self, windows: Sequence[Sequence[int]] = ((26, 48), (31, 64)), *, per_sample: bool = True) -> None:
        try:
            pairs = tuple((int(side), int(of)) for side, of in windows)
        except (TypeError, ValueError) as error:
            raise ValueError(f"windows are (side, of) pairs such as [[26, 48], [31, 64]], got {windows}") from error
        if not pairs or not all(1 <= side <= of for side, of in pairs):
            raise ValueError(f"a window has 1 to `of` tokens a side, (side, of), got {windows}")
        if any(side * before_of > before * of for (before, before_of), (side, of) in pairwise(pairs)):
            raise ValueError(
                f"a window lies inside the one before, so it can't be a larger share of its map: {windows}"
            )
        self.windows = pairs
        self.per_sample = per_sample

    def sizes(self, schedule: ScaleSchedule) -> tuple[tuple[int, int], ...]:
        """(height, width) of the windows of the last scales, in tokens.

        Raises:
            ValueError: when the schedule has fewer scales than there are windows, or one that is smaller than the
                scale before.

        """
        if len(self.windows) > len(schedule):
            raise ValueError(f"{len(self.windows)} windows need as many scales, the schedule is '{schedule}'")
        maps = schedule.sizes[-len(self.windows) :]
        axes = [self._sides(sides, schedule) for sides in zip(*maps, strict=True)]
        return tuple(zip(*axes, strict=True))

    def _sides(self, counts: Sequence[int], schedule: ScaleSchedule) -> list[int]:
        """Sides of the windows in maps of `counts` tokens along one axis."""
        sides: list[int] = []
        for k, ((side, of), count) in enumerate(zip(self.windows, counts, strict=True)):
            room = count if k == 0 else sides[-1] * count // counts[k - 1]
            if room < 1:
                raise ValueError(f"nested windows need scales that don't shrink, the schedule is '{schedule}'")
            sides.append(min(max(round(count * side / of), 1), room))
        return sides

    def corners(self, schedule: ScaleSchedule, rows: int) -> list[Tensor]:
        """Row and column, (rows, 2) long, of the first token of each window."""
        sizes, maps = self.sizes(schedule), schedule.sizes[-len(self.windows) :]
        drawn = []
        low, high = torch.zeros(2, dtype=torch.long), torch.tensor(maps[0]) - torch.tensor(sizes[0])
        for k, size in enumerate(sizes):
            drawn.append(low + (torch.rand(rows, 2) * (high - low + 1)).long())
            if k + 1 < len(sizes):
                count, after = torch.tensor(maps[k]), torch.tensor(maps[k + 1])
                # The centre of token b of the next map lies in the window if it is between these numbers of its
                # tokens, (2b + 1) / 2; whole numbers, so that no rounding lets a window slip out.
                first, last = 2 * drawn[-1] * after, 2 * (drawn[-1] + torch.tensor(size)) * after
                low = -((count - first) // (2 * count))
                high = (last + count) // (2 * count) - torch.tensor(sizes[k + 1])
        return drawn

    def __call__(self, schedule: ScaleSchedule, batch: int) -> Tensor | None:
        """The kept positions (L'), or (batch, L') with `per_sample`, ascending; None when all stay."""
        sizes, first = self.sizes(schedule), len(schedule) - len(self.windows)
        if sizes == schedule.sizes[first:]:
            return None
        rows = batch if self.per_sample else 1
        parts = [torch.arange(schedule.offsets[first]).expand(rows, -1)]
        for k, (corner, (height, width)) in enumerate(zip(self.corners(schedule, rows), sizes, strict=True), first):
            y = corner[:, :1] + torch.arange(height)  # (rows, height)
            x = corner[:, 1:] + torch.arange(width)
            inside = y[:, :, None] * schedule.sizes[k][1] + x[:, None]
            parts.append(inside.flatten(1) + schedule.offsets[k])
        kept = torch.cat(parts, 1)
        return kept if self.per_sample else kept[0]
