"""The samples of a cache: how they lie in a tar, and how training reads them."""

from __future__ import annotations

import io
import json
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from star.data.cache_header import Features
from star.data.shards import RawSample
from star.data.skips import SkipSample

Array = np.ndarray[Any, Any]
MAX_CODE = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class CachedSample:
    """One sample as training takes it.

    Attributes:
        key: unique name, that of the picture.
        caption: never empty.
        codes: (L,) int64, or None.
        features: (D, h_K, w_K) float32, noise included, or None.
        text: the caption's features, or None.

    """

    key: str
    caption: str
    codes: Tensor | None = None
    features: Tensor | None = None
    text: Features | None = None


def pack(
    tokens: Array, captions: Sequence[str], weights: Sequence[float], texts: Sequence[Features] | None
) -> dict[str, bytes]:
    """The files of a sample by extension.

    Args:
        tokens: codes (copies, L) uint16 or features (copies, D, h_K, w_K) fp16.
        captions: every caption that may be drawn.
        weights: how often each is.
        texts: the captions' features, each with its real tokens alone.

    """
    kind = "codes" if tokens.dtype == np.uint16 else "latents"
    record: dict[str, Any] = {"captions": list(captions), "weights": list(weights)}
    files = {f"{kind}.npy": _to_bytes(tokens)}
    if texts is not None:
        record["lengths"] = [len(text.context) for text in texts]
        files["pooled.npy"] = _to_bytes(np.stack([text.pooled for text in texts]))
        files["context.npy"] = _to_bytes(np.concatenate([text.context for text in texts]))
    record["crc32"] = {name: zlib.crc32(content) for name, content in files.items()}
    return {"json": json.dumps(record).encode()} | files


@dataclass(frozen=True)
class CachedReader:
    """Draws a copy and a caption of a cached sample, as the random numbers say.

    Args:
        kind: `codes` or `latents`.
        noise: deviation of the Gaussian noise that is added to features.
        augment: draw any copy; off, the first one.
        text: read features of the captions.

    """

    kind: str
    noise: float
    augment: bool
    text: bool

    def __call__(self, raw: RawSample, *, key: str, rng: random.Random) -> CachedSample:
        """The sample; the caption is drawn first, and so is the one that training on pictures would draw.

        Raises:
            SkipSample: `cache: NAME` when the files are damaged.

        """
        try:
            record = json.loads(raw.files["json"])
            # like Captions.choose, which draws an index with the same numbers
            place = rng.choices(range(len(record["captions"])), record["weights"])[0]
            tokens = _load(raw, record, f"{self.kind}.npy")
            drawn = torch.from_numpy(tokens[rng.randrange(len(tokens)) if self.augment and len(tokens) > 1 else 0])
            text = _text(raw, record, place) if self.text else None
        except (KeyError, IndexError, TypeError, ValueError, EOFError, OSError) as error:
            raise SkipSample("cache", type(error).__name__) from error
        caption = record["captions"][place]
        if self.kind == "codes":
            return CachedSample(key, caption, codes=drawn.long(), text=text)
        return CachedSample(key, caption, features=self._disturb(drawn.float(), rng), text=text)

    def _disturb(self, features: Tensor, rng: random.Random) -> Tensor:
        if self.noise == 0:
            return features
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        return features + self.noise * torch.randn(features.shape, generator=generator)


def _load(raw: RawSample, record: Mapping[str, Any], name: str) -> Array:
    content = raw.files[name]
    # a code that a flipped bit made would be looked up outside of the codebook
    if zlib.crc32(content) != record["crc32"][name]:
        raise SkipSample("cache", "checksum")
    return np.load(io.BytesIO(content), allow_pickle=False)


def _text(raw: RawSample, record: Mapping[str, Any], place: int) -> Features:
    pooled, context = _load(raw, record, "pooled.npy"), _load(raw, record, "context.npy")
    lengths = record["lengths"]
    first = sum(lengths[:place])
    return Features(pooled[place], context[first : first + lengths[place]])


def stack_texts(texts: Sequence[Features]) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled (B, D), context (B, T, D_text), both fp16, and its mask (B, T); the longest text decides T."""
    length = max(len(text.context) for text in texts)
    context = np.zeros((len(texts), length, texts[0].context.shape[1]), np.float16)
    mask = np.zeros((len(texts), length), np.bool_)
    for row, text in enumerate(texts):
        context[row, : len(text.context)] = text.context
        mask[row, : len(text.context)] = True
    pooled = torch.from_numpy(np.stack([text.pooled for text in texts]))
    return pooled, torch.from_numpy(context), torch.from_numpy(mask)


def _to_bytes(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
