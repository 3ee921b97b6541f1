"""From the files of a sample to pixels and a caption."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from star.data.captions import Captions
from star.data.filters import Filters
from star.data.shards import RawSample
from star.data.skips import SkipSample
from star.data.transforms import MAX_PIXELS, ImageTransform, open_picture

T = TypeVar("T")

PICTURE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Sample:
    """One training pair.

    Attributes:
        key: unique name, `source/shard/key`.
        image: (3, H, W) uint8.
        caption: never empty.

    """

    key: str
    image: Tensor
    caption: str


@dataclass(frozen=True)
class WholeSample:
    """All that training can make of one pair.

    Attributes:
        images: (N, 3, H, W) uint8, N draws of the transform.
        captions: every caption that may be drawn.
        weights: how often each is, relative to the others.
        fields: which of the caption fields the pair has.

    """

    images: Tensor
    captions: list[str]
    weights: list[float]
    fields: list[str]


@dataclass(frozen=True)
class SampleReader:
    """Checks, decodes and captions raw samples; cheap checks come first, pixels last.

    Args:
        captions: which fields hold captions.
        filters: bounds on sizes and json fields.
        transform: what happens to the picture.
        max_pixels: larger pictures are skipped before they are decoded.

    """

    captions: Captions
    filters: Filters
    transform: ImageTransform
    max_pixels: int = MAX_PIXELS

    def __call__(self, raw: RawSample, *, key: str, rng: random.Random) -> Sample:
        """The pair in a raw sample; `rng` draws its caption and crop.

        Raises:
            SkipSample: when the sample can't be used, with the cause.

        """
        data, metadata, text = self._check(raw)
        caption = _guard("caption", lambda: self.captions.choose(text, metadata, rng))
        return Sample(key, self._read(data, rng), caption)

    def whole(self, raw: RawSample, *, rngs: Sequence[random.Random]) -> WholeSample:
        """Every caption of a raw sample, and a picture for each of the random numbers.

        Raises:
            SkipSample: when the sample can't be used, with the cause.

        """
        data, metadata, text = self._check(raw)
        captions, weights = zip(*_guard("caption", lambda: self.captions.all(text, metadata)), strict=True)
        images = torch.stack([self._read(data, rng) for rng in rngs])
        return WholeSample(images, list(captions), list(weights), self.captions.present(text, metadata))

    def _check(self, raw: RawSample) -> tuple[bytes, Mapping[str, Any], str | None]:
        """The picture's bytes, the json and the text of a sample that passes the filters on its json."""
        data = next((raw.files[extension] for extension in PICTURE_EXTENSIONS if extension in raw.files), None)
        if data is None:
            raise SkipSample("image", "missing")
        metadata = _guard("json", lambda: _parse_json(raw.files.get("json")))
        self.filters.check_metadata(metadata)
        text = _guard("caption", lambda: raw.files["txt"].decode("utf-8-sig") if "txt" in raw.files else None)
        return data, metadata, text

    def _read(self, data: bytes, rng: random.Random) -> Tensor:
        picture = _guard("decode", lambda: open_picture(data, self.max_pixels))
        self.filters.check_size(*picture.size)
        return _guard("decode", lambda: self._decode(picture, rng))

    def _decode(self, picture: Image.Image, rng: random.Random) -> Tensor:
        with picture:
            return self.transform(picture, rng)


def _parse_json(data: bytes | None) -> Mapping[str, Any]:
    metadata = {} if data is None else json.loads(data)
    if not isinstance(metadata, dict):
        raise TypeError(f"a sample's json must be an object, got {type(metadata).__name__}")
    return metadata


def _guard(stage: str, read: Callable[[], T]) -> T:
    """Run one stage; whatever damaged or hostile bytes make it raise becomes the cause of a skip."""
    try:
        return read()
    except SkipSample:
        raise
    except Exception as error:
        # Decoders raise a dozen kinds of exceptions on damaged files; the counts by cause keep every one visible.
        raise SkipSample(stage, type(error).__name__) from error
