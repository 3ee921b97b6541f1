"""How far a training is, for everything that starts, ends or grows at a given moment."""

from __future__ import annotations

from dataclasses import dataclass

Moment = int | float
"""When something happens: an int is a step, a float in [0, 1] a share of all steps."""


@dataclass(frozen=True)
class Progress:
    """A step of a training.

    Args:
        step: steps done so far.
        total: steps of the whole training; None when nobody knows.

    Raises:
        ValueError: for a negative step or a training without steps.

    """

    step: int
    total: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.step < 0 or (self.total is not None and self.total < 1):
            raise ValueError(f"progress needs step >= 0 of at least one step, got step {self.step} of {self.total}")

    def steps(self, moment: Moment) -> int:
        """The step that a moment stands for.

        Raises:
            ValueError: for a negative moment, a share above 1, or a share of an endless training.

        """
        if moment < 0 or (isinstance(moment, float) and moment > 1):
            raise ValueError(
                f"a moment is a step (an int >= 0) or a share of the training (a float in [0, 1]), got {moment!r}"
            )
        if isinstance(moment, int):
            return moment
        if self.total is None:
            raise ValueError(
                f"{moment} is a share of a training of unknown length: "
                "set trainer.max_steps or trainer.max_epochs, or give a step (an int)"
            )
        return round(moment * self.total)

    def reached(self, moment: Moment) -> bool:
        """Whether the moment has come."""
        return self.step >= self.steps(moment)

    def ramp(self, start: Moment, length: Moment) -> float:
        """0 before `start`, then a straight line to 1 over `length`."""
        since = self.step - self.steps(start)
        if since < 0:
            return 0.0
        return min(1.0, (since + 1) / (self.steps(length) + 1))
