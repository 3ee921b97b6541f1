"""Which samples are good enough: bounds on the picture's size and on any number in its json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from star.data.skips import SkipSample

SIZE_MEASURES = ("short_side", "long_side", "aspect_ratio")
_MISSING = ("skip", "keep")


@dataclass(frozen=True)
class Bounds:
    """The range a number must lie in, both ends included.

    Args:
        min: smallest accepted value, None for no limit.
        max: largest accepted value, None for no limit.
        missing: what happens to a sample without the number: `skip` (counted) or `keep`.

    Raises:
        ValueError: for no limit at all, an empty range, or another word for `missing`.

    """

    min: float | None = None
    max: float | None = None
    missing: str = "skip"

    def __post_init__(self) -> None:
        """Validate."""
        for limit in (self.min, self.max):
            number = isinstance(limit, int | float) and not isinstance(limit, bool) and limit == limit  # not nan
            if limit is not None and not number:
                raise ValueError(f"a filter's min and max must be numbers, got {limit!r}")
        if self.min is None and self.max is None:
            raise ValueError("a filter needs min, max or both")
        if self.min is not None and self.max is not None and not self.min <= self.max:
            raise ValueError(f"a filter's min {self.min} is above its max {self.max}")
        if self.missing not in _MISSING:
            raise ValueError(f"a filter's missing must be one of {', '.join(_MISSING)}, got {self.missing!r}")

    def contains(self, value: float) -> bool:
        """Whether the value lies in the range."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


@dataclass(frozen=True)
class Filters:
    """Bounds by name.

    Args:
        bounds: `short_side`, `long_side` (pixels of the stored picture) and `aspect_ratio` (long side / short side, at
            least 1) are measured; every other name is a numeric field of the sample's json, such as `aesthetic`,
            `similarity` or `original_width`.

    """

    bounds: Mapping[str, Bounds] = field(default_factory=dict)

    def check_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Check every bound on a json field.

        Raises:
            SkipSample: `filter: NAME` outside the bounds, `filter: NAME missing` without a number.

        """
        for name, bounds in self.bounds.items():
            if name not in SIZE_MEASURES:
                _check(name, bounds, _number(metadata.get(name)))

    def check_size(self, width: int, height: int) -> None:
        """Check every bound on the picture's size in pixels.

        Raises:
            SkipSample: `filter: NAME` outside the bounds.

        """
        short_side, long_side = sorted((width, height))
        measures = {"short_side": short_side, "long_side": long_side, "aspect_ratio": long_side / max(short_side, 1)}
        for name, value in measures.items():
            if name in self.bounds:
                _check(name, self.bounds[name], value)


def parse_filters(entries: Mapping[str, Any] | None) -> Filters:
    """Filters from a mapping name -> {min, max, missing}; None means no filter.

    Raises:
        ValueError: for an entry that is no filter; the message names it.

    """
    if entries is not None and not isinstance(entries, Mapping):
        raise ValueError(f"filters must map names to bounds, e.g. {{short_side: {{min: 256}}}}, got {entries!r}")
    return Filters({str(name): _parse_bounds(name, bounds) for name, bounds in (entries or {}).items()})


def _check(name: str, bounds: Bounds, value: float | None) -> None:
    if value is None:
        if bounds.missing == "skip":
            raise SkipSample("filter", f"{name} missing")
    elif not bounds.contains(value):
        raise SkipSample("filter", name)


def _parse_bounds(name: str, bounds: Any) -> Bounds:
    if isinstance(bounds, Bounds):
        return bounds
    known = [argument.name for argument in fields(Bounds)]
    if not isinstance(bounds, Mapping) or any(argument not in known for argument in bounds):
        raise ValueError(f"filters.{name} must be a mapping of {', '.join(known)}, got {bounds!r}")
    try:
        return Bounds(**bounds)
    except ValueError as error:
        raise ValueError(f"filters.{name}: {error}") from error


def _number(value: Any) -> float | None:
    """A json value as a number; None, NaN, booleans, and text or numbers that are no float count as missing."""
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # json has whole numbers of any length
        return None
    return None if math.isnan(number) else number
