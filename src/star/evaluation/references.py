"""Real pictures that drawn ones are compared with, and how they are brought to the drawn ones' size."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from star.data.shards import RawSample, ShardError, read_shard
from star.data.sources import expand_urls
from star.evaluation.context import Context
from star.evaluation.pictures import SUFFIXES, Picture, batches, check_content, list_pictures
from star.evaluation.shards import RealPictures

log = logging.getLogger(__name__)

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
DRAWN = "drawn"


class Comparison(Protocol):
    """A metric that compares with a reference."""

    def update_reference(self, images: torch.Tensor, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Take real pictures (B, 3, H, W) in [0, 1]."""
        ...

    def reference_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """What is worth keeping of them."""
        ...

    def set_reference_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Use what was kept."""
        ...


@dataclass(frozen=True)
class Fit:
    """Resize the shorter side (Pillow, antialiased) and crop to a square.

    Attributes:
        size: in pixels; `drawn` is the size of the scored pictures; None leaves pictures as they are.
        filter: `bilinear`, `bicubic`, `lanczos` or `box`.
        crop: `center` or `random` (with a fixed seed, each picture its own).

    Raises:
        ValueError: for an unknown word.

    """

    size: int | str | None = DRAWN
    filter: str = "bilinear"
    crop: str = "center"

    def __post_init__(self) -> None:
        """Check the words."""
        if self.filter not in FILTERS or self.crop not in ("center", "random"):
            raise ValueError(
                f"filter is one of {', '.join(FILTERS)}, crop center or random: got {self.filter!r}, {self.crop!r}"
            )
        if isinstance(self.size, str) and self.size != DRAWN:
            raise ValueError(f"size is a number of pixels, {DRAWN} or null, got {self.size!r}")

    def sized(self, width: int, height: int) -> tuple[int, int] | None:
        """(width, height) of the result for scored pictures of that size."""
        if self.size is None:
            return None
        return (width, height) if self.size == DRAWN else (int(self.size), int(self.size))

    def __call__(self, image: Image.Image, to: tuple[int, int]) -> Image.Image:
        """The picture at `to` (width, height); one that has that size already stays as it is."""
        if image.size == to:
            return image
        scale = max(to[0] / image.width, to[1] / image.height)
        sides = (max(to[0], int(scale * image.width)), max(to[1], int(scale * image.height)))
        resized = image.resize(sides, FILTERS[self.filter])
        spare = (sides[0] - to[0], sides[1] - to[1])
        if self.crop == "center":
            left, top = round(spare[0] / 2), round(spare[1] / 2)
        else:
            rng = random.Random(f"{image.size} {image.getpixel((0, 0))}")
            left, top = rng.randint(0, spare[0]), rng.randint(0, spare[1])
        return resized.crop((left, top, left + to[0], top + to[1]))


class Reference:
    """The real pictures of one comparison.

    Args:
        source: a folder, shards (`*.tar`) or statistics (`.npz`); None takes the prompts' own pictures, or the
            shards that the checkpoint's training was validated on.
        dataset: has the pictures of the prompts (`reference()`, `reference_missing()`), e.g. MJHQ.
        fit: how pictures are brought to size.
        cache: folder for what metrics keep of a reference; None keeps nothing.
        max_images: of shards.

    """

    def __init__(
        self,
        *,
        source: str | None = None,
        dataset: Any | None = None,
        fit: Fit | None = None,
        cache: str | Path | None = None,
        max_images: int | None = None,
    ) -> None:
        self.source = source
        self.dataset = dataset
        self.fit = fit or Fit()
        self.cache = None if cache is None else Path(cache)
        self.max_images = max_images

    def of(self, dataset: Any | None) -> Reference:
        """The same for the pictures of other prompts."""
        found = copy(self)
        found.dataset = dataset if hasattr(dataset, "reference") else None
        return found

    def missing(self, context: Context) -> Iterator[str]:
        """Pictures that aren't there."""
        if self.source is None and self.dataset is not None:
            yield from self.dataset.reference_missing()
        elif self.source is None:
            if context.model_name is None:
                yield "nothing to compare with: set reference=DIR, reference='SHARDS/*.tar' or reference=STATISTICS.npz"
            else:
                yield from RealPictures().missing(context)
        elif not Path(self.source).is_dir() and not (self.source.endswith(".npz") and Path(self.source).is_file()):
            if not self._names_shards:
                there = "is neither of them" if Path(self.source).exists() else "isn't there"
                yield f"reference={self.source} {there}: give a folder, shards (*.tar) or statistics (*.npz)"
                return
            try:
                expand_urls(self.source, "reference")
            except ValueError as error:
                yield str(error)

    def uncategorized(self, categories: Sequence[str]) -> Iterator[str]:
        """Why other pictures than the prompts' own can't be compared category by category."""
        if self.source is None or not categories or self.source.endswith(".npz"):
            return
        lacking = [name for name in categories if not (Path(self.source) / name).is_dir()]
        if lacking:
            yield (
                f"reference={self.source} is compared by category and has no folder of {', '.join(lacking)}: "
                "sort it into such folders, or compare all at once with metric=fid_folder"
            )

    @property
    def _names_shards(self) -> bool:
        return self.source is not None and (self.source.endswith(".tar") or any(c in self.source for c in "*?{:"))

    @property
    def has_captions(self) -> bool:
        """Whether its pictures come with captions: those of shards do."""
        if self.source is None:
            return self.dataset is None
        return self.source.endswith(".tar") or bool(list(Path(self.source).glob("*.tar")))

    def show(self, metric: Any, context: Context, drawn: Picture) -> None:
        """Let a metric see the reference, or give it what it kept the last time."""
        if self.source is not None and self.source.endswith(".npz"):
            metric.set_reference_arrays(read_arrays(Path(self.source)))
            return
        pictures = list(self.pictures(context))
        size = self.fit.sized(*drawn.open().size)
        kept = self._kept(pictures, size, metric)
        if kept is not None and kept.is_file():
            log.info("reference: %s", kept)
            metric.set_reference_arrays(read_arrays(kept))
            return
        prepare = None if size is None else (lambda image: self.fit(image, size))
        like = pictures[0] if size is None and pictures else None
        for images, records in batches(context.ranks.share(pictures), context.batch, prepare=prepare, like=like):
            metric.update_reference(images.to(context.device), records)
        metric.update_reference(torch.zeros(0, 3, 1, 1, device=context.device), [])
        if kept is not None:
            with metric.sync_context(should_sync=context.ranks.world > 1, should_unsync=True):
                arrays = metric.reference_arrays()
            if context.ranks.rank == 0:
                kept.parent.mkdir(parents=True, exist_ok=True)
                partial = kept.with_suffix(".partial.npz")
                np.savez(partial, **arrays)
                partial.replace(kept)

    def facts(self) -> dict[str, Any]:
        """For the card."""
        named = self.source or (type(self.dataset).__name__ if self.dataset is not None else "held-out shards")
        return {
            "reference": named,
            "reference_size": self.fit.size,
            "reference_filter": self.fit.filter,
            "reference_crop": self.fit.crop,
        }

    def pictures(self, context: Context) -> Iterator[Picture]:
        """All of them, in order."""
        if self.source is None and self.dataset is not None:
            yield from self.dataset.reference()
        elif self.source is not None and Path(self.source).is_dir() and not list(Path(self.source).glob("*.tar")):
            files = list_pictures(Path(self.source))
            yield from (Picture(str(file), {"index": i, "category": file.parent.name}) for i, file in enumerate(files))
        else:
            urls = self.source or [
                url for each in RealPictures().sources(context).values() for url in _listed(each["urls"])
            ]
            yield from pictures_of_shards(urls, self.max_images)

    def _kept(self, pictures: Sequence[Picture], size: tuple[int, int] | None, metric: Any) -> Path | None:
        """The file for what a metric keeps: named by pictures, their size, and the metric's features."""
        if self.cache is None or not hasattr(metric, "reference_arrays"):
            return None
        listed = [_stamp(picture) for picture in pictures]
        categories = list(getattr(metric, "categories", ()))
        key = json.dumps([listed, size, self.fit.filter, self.fit.crop, metric.label, categories, metric.facts()])
        return self.cache / f"{type(metric).__name__.lower()}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an `.npz` file.

    Raises:
        ValueError: when it is none.

    """
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no file of arrays (.npz) that numpy.savez wrote") from error


def pictures_of_shards(
    urls: str | Sequence[str], max_images: int | None = None, *, key: str = "reference", only: str | None = None
) -> Iterator[Picture]:
    """Every picture of shards, in order, with its caption as `prompt`.

    Args:
        urls: the shards, or a folder that holds them.
        max_images: stop after so many; None reads all.
        key: the setting that errors name.
        only: the kind that all must be, e.g. `png`; None takes any.

    Raises:
        ValueError: for a shard that isn't there or is damaged, or a picture of another kind; names it.

    """
    count = 0
    for url in expand_urls(urls, key):
        for name, kind, data, sample in _read(url):
            if max_images is not None and count >= max_images:
                return
            if only is not None:
                check_content(name, kind, data, only)
            text = sample.files["txt"].decode("utf-8", "replace").strip() if "txt" in sample.files else None
            yield Picture(name, {"index": count} | ({} if text is None else {"prompt": text}), data)
            count += 1


def _read(url: str) -> Iterator[tuple[str, str, bytes, RawSample]]:
    """The pictures of a shard: name, suffix, content, and the sample they belong to."""
    try:
        for sample in read_shard(url):
            for kind, data in sample.files.items():
                if f".{kind}" in SUFFIXES:
                    yield f"{url}:{sample.key}.{kind}", kind, data, sample
                    break
    except ShardError as error:
        raise ValueError(f"{url} can't be read as a shard: {error} ({error.reason})") from error


def _listed(urls: str | Sequence[str]) -> list[str]:
    return [urls] if isinstance(urls, str) else list(urls)


def _stamp(picture: Picture) -> list[Any]:
    if picture.data is not None:
        return [picture.name, hashlib.sha256(picture.data).hexdigest()[:16]]
    path = Path(picture.name)
    if not path.is_file():
        raise ValueError(f"there is no picture {path}")
    stat = path.stat()
    return [picture.name, stat.st_size, stat.st_mtime_ns]
