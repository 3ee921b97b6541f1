"""Looks at a sample exactly as training will, and counts it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from star.data.captions import Captions
from star.data.filters import Filters
from star.data.samples import PICTURE_EXTENSIONS, SampleReader
from star.data.shards import RawSample
from star.data.skips import SkipSample
from star.data.summary import Summary
from star.data.transforms import ImageTransform, open_picture

THUMBNAIL = 128


@dataclass(frozen=True)
class Checker:
    """Decodes samples with training's own reader and tells a summary.

    Args:
        summary: counts.
        captions: which fields hold captions.

    """

    summary: Summary
    captions: Captions

    def __call__(self, raw: RawSample) -> tuple[int, int] | None:
        """Width and height in pixels of a usable sample's picture; None for one that is skipped, which is counted."""
        reader = SampleReader(self.captions, Filters(), ImageTransform((THUMBNAIL, THUMBNAIL)))
        try:
            whole = reader.whole(raw, rngs=[random.Random(0)])
        except SkipSample as error:
            self.summary.skip(error.cause)
            return None
        data = picture_of(raw.files)
        with open_picture(data) as picture:
            size = picture.size
        self.summary.add(whole.images[0], whole.captions, size=size, num_bytes=len(data), fields=whole.fields)
        return size


def picture_of(files: Mapping[str, bytes]) -> bytes:
    """The picture's bytes among the files of a usable sample."""
    return next(files[extension] for extension in PICTURE_EXTENSIONS if extension in files)
