"""Who may look at whom: one object for the training mask and for what a cache may drop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from star.schedule import ScaleSchedule

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True)
class Visibility:
    """What each scale of a (possibly thinned) sequence sees: always a contiguous run of keys.

    Attributes:
        offsets: where each scale begins in the sequence, and where the sequence ends: K + 1 numbers.
        first: for each scale the first scale that it sees.

    """

    offsets: tuple[int, ...]
    first: tuple[int, ...]

    def spans(self) -> Iterator[tuple[slice, slice | Tensor]]:
        """For each scale its queries and the keys they see, as slices of the sequence (a subclass: positions)."""
        for k, first in enumerate(self.first):
            if self.offsets[k] < self.offsets[k + 1]:
                yield slice(self.offsets[k], self.offsets[k + 1]), slice(self.offsets[first], self.offsets[k + 1])

    def bias(self, device: torch.device | str = "cpu") -> Tensor:
        """The same as an additive mask (L, L): 0 where a query may look, -inf elsewhere."""
        bias = torch.full((self.offsets[-1], self.offsets[-1]), float("-inf"), device=device)
        for queries, keys in self.spans():
            bias[queries, keys] = 0.0
        return bias


@dataclass(frozen=True)
class ScaleMask:
    """Block-causal attention over scales (STAR section 3.1): a token sees every token of its own and of earlier scales.

    Args:
        order: how many earlier scales are seen; None for all of them, 1 for a Markov chain of scales, 0 for each
            scale alone.

    Raises:
        ValueError: for an order that is no whole number from 0.

    """

    order: int | None = None

    def __post_init__(self) -> None:
        """Validate."""
        if self.order is not None and not (isinstance(self.order, int) and self.order >= 0):
            raise ValueError(f"order counts the earlier scales that are seen: 0, 1, ... or null, got {self.order}")

    def first_visible(self, k: int) -> int:
        """The coarsest scale that scale `k` sees; a cache may drop everything before it."""
        return 0 if self.order is None else max(0, k - self.order)

    def visibility(self, schedule: ScaleSchedule, counts: tuple[int, ...] | None = None) -> Visibility:
        """What the tokens of a schedule see.

        Args:
            schedule: the K scales.
            counts: how many tokens of each scale are present; all of them by default.

        """
        offsets = [0]
        for count in counts or schedule.lengths:
            offsets.append(offsets[-1] + count)
        return Visibility(tuple(offsets), tuple(self.first_visible(k) for k in range(len(schedule))))

    def bias(self, schedule: ScaleSchedule) -> Tensor:
        """Additive mask (L, L) of a whole schedule."""
        return self.visibility(schedule).bias()

    def block_mask(self, schedule: ScaleSchedule, device: torch.device | str = "cpu") -> BlockMask:
        """The same for FlexAttention: which blocks of a whole schedule's keys are skipped, without an L x L mask.

        Raises:
            ValueError: for a mask that hides keys inside of a scale.

        """
        from star.nn.flex import block_mask

        return block_mask(self.visibility(schedule), torch.device(device))
