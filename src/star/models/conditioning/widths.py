"""An encoder's sizes as a configuration states them, so that the generator's can be interpolated from it."""

from __future__ import annotations


def check_widths(width: int, *, pooled_width: int | None, context_width: int | None, owner: str) -> None:
    """Compare stated sizes, None where nothing is stated, with the encoder's own.

    Raises:
        ValueError: when they differ.

    """
    for name, stated in (("pooled_width", pooled_width), ("context_width", context_width)):
        if stated is not None and stated != width:
            raise ValueError(f"text_encoder.{name}={stated}, but {owner} has {width}; set text_encoder.{name}={width}")
