"""Which caption of an image is used, and how it is cleaned."""

from __future__ import annotations

import html
import math
import random
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from star.data.skips import SkipSample

# A tag starts with a letter right after the bracket: "a < b" and "I <3 you" stay.
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<!--.*?-->", re.DOTALL)
_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"]+", re.IGNORECASE)
# Format characters that no caption needs; the joiners U+200C and U+200D, which spell words and emoji, stay.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
# Lone surrogates come from broken json escapes; no tokenizer can encode them.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def clean_caption(text: str) -> str:
    """Make a web caption plain text, conservatively.

    HTML entities are resolved; tags, addresses, control characters, invisible format characters and lone surrogates go;
    white space collapses; the rest is Unicode NFC. Case, punctuation, numbers, emoji and every script stay as written.
    """
    if text.isascii() and text.isprintable() and not any(mark in text for mark in "&<") and not _URL.search(text):
        return " ".join(text.split())
    # Twice, because crawled pages often escape what was escaped already (&amp;amp;).
    text = html.unescape(html.unescape(text))
    text = _URL.sub(" ", _TAG.sub(" ", text))
    text = _CONTROL.sub(" ", _INVISIBLE.sub("", text))
    return " ".join(unicodedata.normalize("NFC", text).split())


@dataclass(frozen=True)
class Captions:
    """Which fields of a sample hold captions.

    Args:
        fields: field -> weight; `txt` is the sample's text file, every other name a field of its json, which may hold a
            string or a list of strings (the field's weight is then shared by them).

    Raises:
        ValueError: for no field, a weight that is no number or below 0, or no weight above 0.

    """

    fields: Mapping[str, float] = field(default_factory=lambda: {"txt": 1.0})

    def __post_init__(self) -> None:
        """Normalise what YAML gives, then validate."""
        if not isinstance(self.fields, Mapping) or not self.fields:
            raise ValueError(f"captions must map fields to weights, e.g. {{txt: 1.0}}, got {self.fields!r}")
        for name, weight in self.fields.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight) or weight < 0:
                raise ValueError(f"the weight of caption field '{name}' must be 0 or more, got {weight!r}")
        used = {str(name): float(weight) for name, weight in self.fields.items() if weight > 0}
        if not used:
            raise ValueError(f"no caption field has a weight above 0: {dict(self.fields)!r}")
        object.__setattr__(self, "fields", used)

    def choose(self, text: str | None, metadata: Mapping[str, Any], rng: random.Random) -> str:
        """Draw a caption by weight among those the sample has, cleaned and never empty.

        Args:
            text: the sample's text file, None when it has none.
            metadata: the sample's json.
            rng: the sample's own random numbers.

        Raises:
            SkipSample: `caption: missing` when no field is there, `caption: empty` when cleaning leaves nothing of any.

        """
        candidates = list(self._candidates(text, metadata))
        if not candidates:
            raise SkipSample("caption", "missing")
        while candidates:
            index = rng.choices(range(len(candidates)), [weight for _, weight in candidates])[0]
            if caption := clean_caption(candidates.pop(index)[0]):
                return caption
        raise SkipSample("caption", "empty")

    def all(self, text: str | None, metadata: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Every caption that `choose` can draw, cleaned, with its weight, in the order in which it looks at them.

        Raises:
            SkipSample: as `choose` does.

        """
        candidates = list(self._candidates(text, metadata))
        if not candidates:
            raise SkipSample("caption", "missing")
        usable = [(caption, weight) for raw, weight in candidates if (caption := clean_caption(raw))]
        if not usable:
            raise SkipSample("caption", "empty")
        return usable

    def present(self, text: str | None, metadata: Mapping[str, Any]) -> list[str]:
        """Which of the fields a sample has."""
        return [name for name in self.fields if any(Captions({name: 1.0})._candidates(text, metadata))]

    def _candidates(self, text: str | None, metadata: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        for name, weight in self.fields.items():
            value = text if name == "txt" else metadata.get(name)
            values = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
            yield from ((item, weight / len(values)) for item in values)
