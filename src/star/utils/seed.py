"""Randomness that depends on what it is for, not on when it is drawn."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: object) -> int:
    """A seed below 2^63 for one use: the same for the same seed and names, unrelated for others."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
