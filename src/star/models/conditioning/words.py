"""Words as tokens without a vocabulary file."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PAD, BEGIN, END = 0, 1, 2
_NUM_SPECIAL = 3

# A run of letters and digits (with inner apostrophes: painter's), or one character that is neither nor space.
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


class WordTokenizer:
    """Captions as rows of embedding-table indices.

    A word of `words` has a row of its own. Any other is the sum of `num_hashes` rows among `num_buckets`, chosen by a
    stable hash of the lower-cased word. Two given words are confused only if they have the same rows, with probability
    num_hashes! / num_buckets ** num_hashes: that happens to some pair of 26 words in 4096 buckets 4 times in 100,000
    with two hashes, 8 times in 100 with one.

    Args:
        num_buckets: rows for words that aren't listed.
        num_hashes: how many of them make a word.
        words: words with rows of their own.

    Raises:
        ValueError: for sizes below 1, or a listed word that isn't one word.

    """

    def __init__(self, *, num_buckets: int, num_hashes: int, words: Sequence[str] = ()) -> None:
        if num_buckets < 1 or num_hashes < 1:
            raise ValueError(f"num_buckets and num_hashes must be positive, got {num_buckets} and {num_hashes}")
        if isinstance(words, str):
            raise ValueError(f"words is a list of words such as [red, blue], got {words!r}")
        for word in words:
            if split_words(word) != [word.lower()]:
                raise ValueError(f"words: {word!r} is not one word, but {split_words(word)}")
        self.num_buckets = num_buckets
        self.num_hashes = num_hashes
        self._listed = {
            word: _NUM_SPECIAL + row for row, word in enumerate(dict.fromkeys(word.lower() for word in words))
        }
        self.size = _NUM_SPECIAL + len(self._listed) + num_buckets

    @property
    def words(self) -> tuple[str, ...]:
        """Words with rows of their own, lower-cased."""
        return tuple(self._listed)

    @property
    def identity(self) -> str:
        """Names the mapping from words to rows."""
        listed = hashlib.sha256(" ".join(self._listed).encode()).hexdigest()[:8] if self._listed else "none"
        return f"buckets{self.num_buckets}x{self.num_hashes}/words-{listed}"

    def encode(self, caption: str, max_tokens: int) -> tuple[list[tuple[int, ...]], bool]:
        """Rows of begin, words and end: at most `max_tokens` tuples of `num_hashes`; and whether words were cut."""
        words = split_words(caption)
        kept = words[: max_tokens - 2]
        return [self._own(BEGIN), *map(self._rows, kept), self._own(END)], len(kept) < len(words)

    def _rows(self, word: str) -> tuple[int, ...]:
        row = self._listed.get(word)
        if row is not None:
            return self._own(row)
        first = _NUM_SPECIAL + len(self._listed)
        return tuple(first + value % self.num_buckets for value in _hashes(word, self.num_hashes))

    def _own(self, row: int) -> tuple[int, ...]:
        return (row, *(PAD,) * (self.num_hashes - 1))


def split_words(caption: str) -> list[str]:
    """Lower-cased words and punctuation marks."""
    return _WORD.findall(caption.lower())


@lru_cache(maxsize=65_536)
def _hashes(word: str, count: int) -> tuple[int, ...]:
    """Independent 64-bit numbers; Python's own `hash` would differ from run to run."""
    return tuple(
        int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8, salt=bytes([which])).digest(), "little")
        for which in range(count)
    )
