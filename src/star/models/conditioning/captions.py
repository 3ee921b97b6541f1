"""What every encoder does with a caption before its tokenizer sees it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

# No tokenizer here spends less than a token on this many characters of ordinary text; what lies behind the last
# token is cut before tokenizing, because byte-pair merges take time quadratic in the length of a word.
_CHARACTERS_PER_TOKEN = 32

_warned_about: set[str] = set()


def check_captions(captions: Sequence[str]) -> list[str]:
    """The captions as a list.

    Raises:
        ValueError: for one bare string, an empty sequence, or an element that isn't a string.

    """
    if isinstance(captions, str):
        raise ValueError(f"an encoder takes a sequence of captions, got the single string {captions[:40]!r}")
    if len(captions) == 0:
        raise ValueError("an encoder takes at least one caption, got none")
    for row, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"caption {row} is {caption!r}, not a string; the unconditional caption is ''")
    return list(captions)


def clean_caption(caption: str, max_tokens: int) -> tuple[str, bool]:
    """The caption in one line of valid Unicode, and whether it was too long to be worth tokenizing to its end."""
    # Lone surrogates come out of JSON files and are refused by every tokenizer.
    line = " ".join(caption.encode("utf-8", "replace").decode("utf-8").split())
    limit = max_tokens * _CHARACTERS_PER_TOKEN
    return line[:limit], len(line) > limit


def warn_truncated(caption: str, max_tokens: int) -> None:
    """Say once per process that captions are cut."""
    if "truncated" in _warned_about:
        return
    _warned_about.add("truncated")
    logger.warning(
        "a caption is longer than the text encoder's %d tokens and is cut: %r ... (said once)",
        max_tokens,
        caption[:60],
    )
