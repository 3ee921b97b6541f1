"""Short names of what decides tokens and text features, so that a cache knows whose they are."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import Tensor, nn

from star.checkpoints.describe import describe
from star.checkpoints.fingerprint import fingerprint
from star.checkpoints.parts import identity_of
from star.models.tokenizer.tokenizer import MultiScaleTokenizer

_DECODING = ("decoder.", "after.")


def identify(module: Any, part: str) -> str | None:
    """What a generator's module makes tokens or text features with.

    Args:
        module: has `tokenizer`, `text_encoder` and `schedule`.
        part: one of these.

    Returns:
        A name that begins with sixteen hexadecimal digits, or the schedule; None for a text encoder whose files aren't
        here.

    """
    held = getattr(module, part)
    if part == "tokenizer":
        return tokenizer_identity(held)
    return text_identity(held) if part == "text_encoder" else str(held)


def tokenizer_identity(tokenizer: MultiScaleTokenizer) -> str:
    """Names what decides a picture's codes: weights and settings of all but the decoder, which may still be trained."""
    state = {name: _whole(value) for name, value in tokenizer.state_dict().items() if not name.startswith(_DECODING)}
    settings = [describe(part) for part in (tokenizer.encoder, tokenizer.quantizer)]
    settings[0].pop("dropout", None)  # of no effect on a frozen tokenizer
    if settings[0].get("seen_size", 0) is None:
        del settings[0]["seen_size"]  # keeps the names that tokenizers had before there was a choice
    return digest(fingerprint(state) + json.dumps(settings, sort_keys=True))


def text_identity(text_encoder: nn.Module) -> str | None:
    """Names what decides a caption's features: a digest, and what the encoder calls itself.

    Of an encoder that is trained along that is no lasting name: its features are never kept.
    """
    if text_encoder.trainable:
        name: str | None = f"{text_encoder.identity}, trained along"
    else:
        name = identity_of(text_encoder)
    return None if name is None else f"{digest(name)} ({name})"


def digest(text: str) -> str:
    """Sixteen hexadecimal digits that name a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _whole(value: Tensor) -> Tensor:
    """The tensor itself, gathered where FSDP has spread it."""
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()
