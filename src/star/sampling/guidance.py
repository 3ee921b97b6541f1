"""Classifier-free guidance, and how its strength changes from scale to scale."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from star.schedule import ScaleSchedule
from star.types import Guidance


class ClassifierFreeGuidance:
    """logits = (1 + t) conditional - t unconditional (VAR's form: t = 0 is the plain conditional model).

    Args:
        scale: the strength `cfg`.
        ramp: `linear`: t = cfg k / (K - 1), none at the first scale and all of it at the last (the release);
            `constant`: t = cfg everywhere.
        off_after: no guidance on scales behind this one, e.g. K - 3 to leave the last two alone (a different image,
            and half of the work there); negative counts from the end, -3 being K - 3; None never switches it off.
        on_from: no guidance on scales before this one, counted likewise; None: from the first one on, as published. The
            first maps of a briefly trained model stand little of it.

    Raises:
        ValueError: for another ramp, or a scale that is negative or no number.

    """

    def __init__(
        self, scale: float = 4.0, *, ramp: str = "linear", off_after: int | None = None, on_from: int | None = None
    ) -> None:
        if ramp not in ("linear", "constant"):
            raise ValueError(f"guidance ramp is 'linear' or 'constant', got {ramp!r}")
        if not isinstance(scale, int | float) or not 0 <= scale < math.inf:
            raise ValueError(f"guidance scale can't be negative and must be a number, got {scale!r}")
        self.scale = scale
        self.ramp = ramp
        self.off_after = off_after
        self.on_from = on_from

    def strength(self, k: int, schedule: ScaleSchedule) -> float:
        """`t` of scale `k`.

        Raises:
            ValueError: when `off_after` or `on_from` is no scale of the schedule, or no scale is left between them.

        """
        num_scales = len(schedule)
        last = num_scales - 1 if self.off_after is None else schedule.place(self.off_after, "guidance's off_after")
        first = 0 if self.on_from is None else schedule.place(self.on_from, "guidance's on_from")
        if last < first:
            raise ValueError(f"guidance with on_from {first} and off_after {last} is nowhere: scale=0 says so plainly")
        if not first <= k <= last:
            return 0.0
        if self.ramp == "constant":
            return self.scale
        return self.scale * k / (num_scales - 1) if num_scales > 1 else self.scale

    def __call__(self, conditional: Tensor, unconditional: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
        """Guided logits (B, L_k, V)."""
        strength = self.strength(k, schedule)
        return (1 + strength) * conditional - strength * unconditional


def is_guided(guidance: Guidance | None, k: int, schedule: ScaleSchedule) -> bool:
    """Whether scale `k`'s prediction takes anything from the unconditional one."""
    return guidance is not None and guidance.strength(k, schedule) != 0


class Guide:
    """Guidance as a token sampler sees it: it halves the rows and knows which scale it is.

    Args:
        guidance: how two predictions become one; None when the decoder runs conditional rows alone.
        schedule: all scales.

    """

    def __init__(self, guidance: Callable[..., Tensor] | None, schedule: ScaleSchedule) -> None:
        self.guidance = guidance
        self.schedule = schedule

    def __call__(self, logits: Tensor, k: int) -> Tensor:
        """From logits (R, L_k, V), the unconditional rows behind the conditional ones, to (B, L_k, V)."""
        if self.guidance is None:
            return logits
        conditional, unconditional = logits.chunk(2)
        return self.guidance(conditional, unconditional, k, self.schedule)

    def strongest(self, k: int) -> int:
        """The scale that is guided most; `k` itself where `k` isn't guided."""
        strength = getattr(self.guidance, "strength", None)
        if strength is None or not strength(k, self.schedule):
            return k
        return max(range(len(self.schedule)), key=lambda scale: strength(scale, self.schedule))
