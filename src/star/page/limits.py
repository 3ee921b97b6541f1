"""How much one visitor may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds of the page.

    Args:
        prompt: characters of a prompt or negative prompt.
        images: pictures of one drawing.
        queue: drawings that wait; more are refused with a message.
        history: pictures that a visitor's history keeps.

    Raises:
        ValueError: for a bound below 1.

    """

    prompt: int = 1000
    images: int = 4
    queue: int = 32
    history: int = 48

    def __post_init__(self) -> None:
        """Validate."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"limits.{field.name} is a whole number of at least 1, got {value!r}")
