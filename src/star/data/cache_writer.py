"""Writes the shards of a cache: pictures and captions in, codes (or features) and text features out."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from star.data.cache_header import Features
from star.data.cache_samples import MAX_CODE, pack
from star.data.samples import SampleReader, WholeSample
from star.data.shards import ShardError, read_shard, shard_name
from star.data.skips import SkipSample
from star.data.sources import ShardSource
from star.data.transforms import to_unit_range
from star.types import Condition

# What a shard is called when it can't be opened at all: a later run may find it.
_UNREACHABLE = ("FileNotFoundError", "OSError", "PermissionError", "IsADirectoryError", "TimeoutError")


@dataclass(frozen=True)
class CacheTask:
    """One shard to be written.

    Attributes:
        source: name of its source.
        url: the shard of pictures.
        target: the shard of tokens.

    """

    source: str
    url: str
    target: Path


@dataclass(frozen=True)
class CacheReport:
    """What became of a shard.

    Attributes:
        samples: how many were written.
        skipped: how many were not, by cause.
        seconds: how long it took.
        missing: why the shard could not be opened, None when it was read.

    """

    samples: int
    skipped: dict[str, int]
    seconds: float
    missing: str | None = None


def tasks_of(sources: Sequence[ShardSource], directory: Path) -> list[CacheTask]:
    """The shards of a split, each with a name of its own in its source's folder.

    A shard keeps its name, so that a sample's key, and with it its place in the shuffled order, stays the same.
    """
    tasks = []
    for source in sources:
        urls = list(source.urls or ())
        names = [shard_name(url) for url in urls]
        counts = Counter(names)
        for number, (url, name) in enumerate(zip(urls, names, strict=True)):
            file = f"{name}.tar" if counts[name] == 1 else f"{name}_{number:05d}.tar"
            tasks.append(CacheTask(source.name, url, directory / source.name / file))
    return tasks


@dataclass(frozen=True)
class ShardCacher:
    """Turns shards of pictures into shards of tokens.

    Args:
        reader: checks and decodes; its transform is drawn `copies` times.
        encode: pictures (N, 3, H, W) in [-1, 1] to codes (N, L) long, or to features (N, D, h_K, w_K) float.
        describe: captions to their features; None keeps captions alone.
        batch_size: pictures that are encoded together.
        copies: draws of each picture.
        seed: of the draws.

    """

    reader: SampleReader
    encode: Callable[[Tensor], Tensor]
    describe: Callable[[Sequence[str]], Condition] | None
    batch_size: int
    copies: int = 1
    seed: int = 0

    def write(self, task: CacheTask, *, alive: Callable[[], bool] = lambda: True) -> CacheReport:
        """Write one shard, whole or not at all, and `NAME.json` with its report beside it.

        Args:
            task: which one.
            alive: asked before every batch; when it says no, the work ends with a SystemExit.

        Raises:
            ValueError: for codes or features that don't fit the format.

        """
        begun = time.monotonic()
        task.target.parent.mkdir(parents=True, exist_ok=True)
        partial = task.target.with_name(f".{task.target.name}.{os.getpid()}.partial")
        skipped: Counter[str] = Counter()
        samples = 0
        try:
            with partial.open("wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
                    for key, files in self._encode_all(self._read(task, skipped), alive):
                        for extension, content in files.items():
                            _add(tar, f"{key}.{extension}", content)
                        samples += 1
                file.flush()
                os.fsync(file.fileno())
            missing = next((cause for cause in skipped if cause.removeprefix("shard: ") in _UNREACHABLE), None)
            report = CacheReport(samples, dict(skipped), time.monotonic() - begun, missing)
            if missing is None:
                record = {"samples": samples, "skipped": report.skipped, "seconds": round(report.seconds, 3)}
                task.target.with_suffix(".json").write_text(json.dumps(record) + "\n", encoding="utf-8")
                partial.replace(task.target)
        finally:
            partial.unlink(missing_ok=True)
        return report

    def _read(self, task: CacheTask, skipped: Counter[str]) -> Iterator[tuple[str, WholeSample]]:
        name = shard_name(task.url)
        try:
            for raw in read_shard(task.url):
                key = f"{task.source}/{name}/{raw.key}"
                rngs = [random.Random(f"{self.seed}/{copy}/{key}") for copy in range(self.copies)]
                try:
                    yield raw.key, self.reader.whole(raw, rngs=rngs)
                except SkipSample as skip:
                    skipped[skip.cause] += 1
        except ShardError as error:
            skipped[f"shard: {error.reason}"] += 1

    def _encode_all(
        self, samples: Iterator[tuple[str, WholeSample]], alive: Callable[[], bool]
    ) -> Iterator[tuple[str, dict[str, bytes]]]:
        """The files of every sample, encoded in batches."""
        while chunk := list(islice(samples, max(1, self.batch_size // self.copies))):
            if not alive():
                raise SystemExit(1)
            tokens = self._tokens(torch.cat([sample.images for _, sample in chunk]))
            texts = self._texts([caption for _, sample in chunk for caption in sample.captions])
            for (key, sample), own in zip(
                chunk, tokens.reshape(len(chunk), self.copies, *tokens.shape[1:]), strict=True
            ):
                said = None if texts is None else [texts[caption] for caption in sample.captions]
                yield key, pack(own, sample.captions, sample.weights, said)

    def _tokens(self, pixels: Tensor) -> np.ndarray[Any, Any]:
        found = [self.encode(to_unit_range(part)).cpu() for part in pixels.split(self.batch_size)]
        tokens = torch.cat(found).numpy()
        if np.issubdtype(tokens.dtype, np.integer):
            if tokens.max() > MAX_CODE:
                raise ValueError(
                    f"code {tokens.max()} doesn't fit 16 bits: a cache of codes takes {MAX_CODE + 1} of them"
                )
            return tokens.astype(np.uint16)
        return _half(tokens, "features of pictures")

    def _texts(self, captions: Sequence[str]) -> dict[str, Features] | None:
        return None if self.describe is None else describe_all(self.describe, captions)


def describe_all(describe: Callable[[Sequence[str]], Condition], captions: Sequence[str]) -> dict[str, Features]:
    """The features of every different caption, real tokens alone, in fp16.

    Raises:
        ValueError: for an encoder without hidden states, or features beyond fp16.

    """
    different = list(dict.fromkeys(captions))
    condition = describe(different)
    if condition.context is None or condition.context_mask is None:
        raise ValueError(
            "this text encoder gives no hidden states: leave text features out of the cache (text=captions)"
        )
    pooled = _half(condition.pooled.float().cpu().numpy(), "features of texts")
    context = _half(condition.context.float().cpu().numpy(), "features of texts")
    mask = condition.context_mask.cpu().numpy()
    return {caption: Features(pooled[row], context[row][mask[row]]) for row, caption in enumerate(different)}


def _half(values: np.ndarray[Any, Any], what: str) -> np.ndarray[Any, Any]:
    largest = float(np.abs(values).max())
    if not largest <= float(np.finfo(np.float16).max):
        raise ValueError(f"{what} reach {largest:.3g}, which fp16 can't hold")
    return values.astype(np.float16)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # its time stays 0, so that equal input gives equal bytes
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
