"""Training from a cache of tokens and text features that `python -m star.data.cache` wrote."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from star.data.cache_header import CacheHeader, read_header
from star.data.cache_samples import CachedReader, CachedSample, stack_texts
from star.data.datamodule import StreamDataModule, check_counts
from star.data.loader import RepeatedBatches, StreamLoader
from star.data.sources import ShardSource, expand_urls
from star.data.stream import SampleStream, Text, WorkerBatch

_MEND = {
    "tokenizer": "set paths.tokenizer to the one of the cache",
    "schedule": "choose the stage of the cache",
    "text_encoder": "choose the text_encoder of the cache, or data.text=captions to encode the captions in training",
}
TEXTS = ("auto", "features", "captions")
Identify = Callable[[Any, str], str | None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedStream(SampleStream):
    """Codes or features with captions.

    Args:
        read: draws from a sample.
        empty: the empty caption's features, where the cache has features of texts.

    """

    read: CachedReader = field(kw_only=True)
    empty: Text | None = field(default=None, kw_only=True)

    def reader(self, source: ShardSource) -> CachedReader:
        """The same for every source."""
        return self.read

    def stack(self, samples: Sequence[CachedSample]) -> WorkerBatch:
        """Codes or features in the place of pictures."""
        codes = [sample.codes for sample in samples if sample.codes is not None]
        features = [sample.features for sample in samples if sample.features is not None]
        texts = [sample.text for sample in samples if sample.text is not None]
        return WorkerBatch(
            images=torch.empty(len(samples), 3, 0, 0),
            captions=[sample.caption for sample in samples],
            keys=[sample.key for sample in samples],
            skipped={},
            state={},
            codes=torch.stack(codes) if codes else None,
            features=torch.stack(features) if features else None,
            text=stack_texts(texts) if texts else None,
            empty=self.empty,
        )


class CachedDataModule(StreamDataModule):
    """A cache in the place of pictures: the same samples in the same order, without tokenizer or text encoder at work.

    Args:
        directory: the cache.
        identify: names `tokenizer`, `text_encoder` or `schedule` of a module (`star.checkpoints.identity.identify`).
        batch_size: samples per batch and device.
        sources: name -> {weight, urls}: another weight than the cache's own, or another place of the train shards.
            Names that the cache doesn't have are left out, since stages set weights for the sources of one data set.
        text: `features` of the captions, the `captions` themselves, which the module then encodes, or `auto`: features
            where the cache has them.
        noise: deviation of Gaussian noise on features (latents) in training: codes of fine scales change with
            differences that nobody sees, so a model shouldn't learn one draw of them by heart.
        num_workers, shuffle_buffer, seed, epoch_size, validation_size, prefetch, max_consecutive_skips, pin_memory:
            as for `ShardDataModule`.

    Raises:
        ValueError: for settings that can't work, and in `setup` when the cache was made with another tokenizer, text
            encoder or schedule than the module has.
        FileNotFoundError: when there is no cache.

    """

    def __init__(
        self,
        directory: str | Path | None,
        *,
        identify: Identify,
        batch_size: int,
        sources: Mapping[str, Mapping[str, Any]] | None = None,
        text: str = "auto",
        noise: float = 0.0,
        num_workers: int = 4,
        shuffle_buffer: int = 1024,
        seed: int = 0,
        epoch_size: int | None = None,
        validation_size: int | None = None,
        prefetch: int = 2,
        max_consecutive_skips: int = 1000,
        pin_memory: bool = True,
    ) -> None:
        check_counts({"batch_size": batch_size, "shuffle_buffer": shuffle_buffer, "prefetch": prefetch}, minimum=1)
        check_counts({"epoch_size": epoch_size, "validation_size": validation_size}, minimum=1, optional=True)
        check_counts({"num_workers": num_workers, "max_consecutive_skips": max_consecutive_skips}, minimum=0)
        header = read_header(directory)
        self.directory = Path(str(directory))
        self.header = header
        self.identify = identify
        self.holds_text = _holds_text(header, text, self.directory)
        _check_noise(header, noise)
        stream = CachedStream(
            self._sources("train", sources or {}),
            batch_size=batch_size,
            seed=seed,
            shuffle_buffer=shuffle_buffer,
            max_consecutive_skips=max_consecutive_skips,
            read=CachedReader(header.kind, noise=noise, augment=True, text=self.holds_text),
            empty=stack_texts([header.empty]) if self.holds_text and header.empty is not None else None,
        )
        super().__init__(
            stream,
            self._for_validation(stream, endless=validation_size is not None),
            epoch_size=epoch_size,
            validation_size=validation_size,
            num_workers=num_workers,
            prefetch=prefetch,
            pin_memory=pin_memory,
        )

    def setup(self, stage: str) -> None:
        """Check that the cache is the module's."""
        super().setup(stage)
        self._check("tokenizer", "schedule", "text_encoder")

    def train_dataloader(self) -> StreamLoader | RepeatedBatches:
        """Training batches; a checkpoint may have brought another tokenizer, so that is checked again."""
        self._check("tokenizer")
        return super().train_dataloader()

    def _check(self, *parts: str) -> None:
        if self.trainer is None:
            return
        for part in parts:
            wanted = getattr(self.header, part)
            if (part == "text_encoder" and not self.holds_text) or (part == "schedule" and self.header.kind != "codes"):
                continue
            found = self.identify(self.trainer.lightning_module, part)
            if found is None:
                logger.warning("features of %s are used without knowing whether they are this run's", wanted)
            elif found != wanted:
                raise ValueError(
                    f"the cache {self.directory} was made with {part} {wanted}, this run has {found}: {_MEND[part]}, "
                    "or write the cache anew"
                )

    def _for_validation(self, stream: CachedStream, *, endless: bool) -> CachedStream:
        """The held-out shards, without anything random."""
        read = replace(stream.read, noise=0.0, augment=False)
        sources = self._sources("validation", {})
        return replace(stream, sources=sources, shuffle_buffer=1, endless=endless, read=read)

    def _sources(self, split: str, changes: Mapping[str, Mapping[str, Any]]) -> tuple[ShardSource, ...]:
        found = []
        for name, weight in self.header.sources.get(split, {}).items():
            change = changes.get(name) or {}
            source = ShardSource(None, weight=change.get("weight", weight), name=name)
            urls = change.get("urls") or str(self.directory / split / name / "*.tar")
            if source.weight > 0:
                found.append(replace(source, urls=expand_urls(urls, f"data.sources.{name}.urls")))
        if not found and split == "train":
            raise ValueError(
                f"the cache {self.directory} has no source with a weight above 0 (it has "
                f"{', '.join(self.header.sources.get(split, {})) or 'none'}): set data.sources.NAME.weight"
            )
        return tuple(found)


def _holds_text(header: CacheHeader, text: str, directory: Path) -> bool:
    """Whether batches carry features of texts."""
    if text not in TEXTS:
        raise ValueError(f"data.text must be one of {', '.join(TEXTS)}, got {text!r}")
    if text == "features" and header.text_encoder is None:
        raise ValueError(f"data.text=features, but the cache {directory} has captions alone: set data.text=captions")
    return text != "captions" and header.text_encoder is not None


def _check_noise(header: CacheHeader, noise: float) -> None:
    if noise < 0:
        raise ValueError(f"data.noise is a deviation and can't be negative, got {noise}")
    if noise > 0 and header.kind == "codes":
        raise ValueError(
            f"data.noise={noise} needs a cache of latents, this one holds codes: kind=latents writes those"
        )
