"""Which tokens of a sequence are trained (STAR section 4.4)."""

from __future__ import annotations

from torch import Tensor

from star.schedule import ScaleSchedule


class AllTokens:
    """Every token."""

    def __call__(self, schedule: ScaleSchedule, batch: int) -> Tensor | None:
        """The kept positions (L') or (batch, L'), ascending; None for all of them."""
        return None
