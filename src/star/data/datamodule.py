"""Shards as Lightning wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning

from star.data.filters import parse_filters
from star.data.loader import PassLoader, RepeatedBatches, StreamLoader
from star.data.sources import ShardSource, parse_sources
from star.data.stream import BatchStream, SampleStream
from star.data.transforms import MAX_PIXELS, ImageTransform, parse_colour, parse_resolution


class StreamDataModule(lightning.LightningDataModule):
    """Endless training batches whose place a checkpoint keeps, and validation batches, from two streams.

    Args:
        train_stream: endless.
        validation_stream: finite, or endless with a `validation_size`; without sources there is no validation.
        epoch_size: samples of a training epoch over all devices; None for one endless epoch.
        validation_size: samples of a validation over all devices; None for one pass.
        num_workers: reading processes per device; 0 reads in the training process.
        prefetch: batches that each worker prepares ahead.
        pin_memory: page-locked batches when there is a GPU.

    """

    def __init__(
        self,
        train_stream: SampleStream,
        validation_stream: SampleStream,
        *,
        epoch_size: int | None,
        validation_size: int | None,
        num_workers: int,
        prefetch: int,
        pin_memory: bool,
    ) -> None:
        super().__init__()
        self.train_stream = train_stream
        self.validation_stream = validation_stream
        self.epoch_size = epoch_size
        self.validation_size = validation_size
        self._workers: dict[str, Any] = {"num_workers": num_workers, "prefetch": prefetch, "pin_memory": pin_memory}
        self._train_loader: StreamLoader | None = None
        self._validation_loader: PassLoader | None = None
        self._state: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Switch the trainer's validation off when there is nothing to validate on."""
        if self.trainer is not None and not self.validation_stream.sources:
            self.trainer.limit_val_batches = 0

    def train_dataloader(self) -> StreamLoader | RepeatedBatches:
        """Endless training batches in epochs of `epoch_size`, from where a loaded checkpoint left off.

        With the trainer's `overfit_batches` the first batches, over and over.

        Raises:
            ValueError: for an `overfit_batches` that is a fraction: of an endless stream there is none.

        """
        self._train_loader = StreamLoader(self.train_stream, epoch_size=self.epoch_size, **self._workers)
        if overfit := getattr(self.trainer, "overfit_batches", 0):
            if not isinstance(overfit, int):
                raise ValueError(f"trainer.overfit_batches must be a whole number of batches, got {overfit}")
            return RepeatedBatches(self._train_loader, overfit)
        if self._state is not None:
            self._train_loader.load_state_dict(self._state)
        return self._train_loader

    def val_dataloader(self) -> PassLoader:
        """Validation batches, the same in each iteration.

        Raises:
            ValueError: without validation sources.

        """
        if not self.validation_stream.sources:
            raise ValueError("data.validation_sources is null: set it to the shards to validate on")
        self._validation_loader = PassLoader(
            self.validation_stream, size=self.validation_size, together=self.trainer is not None, **self._workers
        )
        return self._validation_loader

    def state_dict(self) -> dict[str, Any]:
        """Where the training data stands, for the checkpoint; every rank must call it."""
        # Lightning saves a loader's state too, but does not restore it when the last epoch was complete.
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint: now, or when the training loader is made."""
        self._state = state_dict.get("train")
        if self._train_loader is not None and self._state is not None:
            self._train_loader.load_state_dict(self._state)

    def teardown(self, stage: str) -> None:
        """Stop the workers."""
        for loader in (self._train_loader, self._validation_loader):
            if loader is not None:
                loader.close()


class ShardDataModule(StreamDataModule):
    """Image-text pairs from WebDataset shards, as img2dataset writes them, in `star.types.Batch`es.

    What can be checked without reading a shard is checked here, so that a wrong path fails in the first second.

    Args:
        sources: name -> `ShardSource` or mapping of its arguments (`urls`, `weight`, `captions`), mixed by weight.
        validation_sources: the same for validation; None for no validation.
        resolution: side or [height, width] of the pictures in pixels.
        batch_size: pairs per batch and device.
        num_workers: reading processes per device; 0 reads in the training process.
        shuffle_buffer: samples that are shuffled together, per worker and source; 1 for none.
        seed: of order, captions and crops.
        filters: name -> {min, max, missing}, see `star.data.filters.Filters`.
        crop: `center` or `random`, in training; validation always takes the centre.
        flip: mirror half of the pictures in training.
        interpolation: `lanczos`, `bicubic` or `box`.
        background: colour behind transparent pictures.
        epoch_size: samples of a training epoch over all devices; None for one endless epoch.
        validation_size: samples of a validation over all devices, the same number of batches on each; None for one pass
            in which each sample occurs once, where devices may differ by a batch.
        prefetch: batches that each worker prepares ahead.
        max_pixels: larger pictures are skipped before they are decoded.
        max_consecutive_skips: more skipped samples of a source in a row are an error.
        pin_memory: page-locked batches when there is a GPU.

    Raises:
        ValueError: for settings that can't work; the message names the key.

    """

    def __init__(
        self,
        sources: Mapping[str, ShardSource | Mapping[str, Any]],
        *,
        resolution: int | Sequence[int],
        batch_size: int,
        validation_sources: Mapping[str, ShardSource | Mapping[str, Any]] | None = None,
        num_workers: int = 4,
        shuffle_buffer: int = 1024,
        seed: int = 0,
        filters: Mapping[str, Any] | None = None,
        crop: str = "center",
        flip: bool = False,
        interpolation: str = "lanczos",
        background: str | Sequence[int] = "white",
        epoch_size: int | None = None,
        validation_size: int | None = None,
        prefetch: int = 2,
        max_pixels: int = MAX_PIXELS,
        max_consecutive_skips: int = 1000,
        pin_memory: bool = True,
    ) -> None:
        check_counts({"batch_size": batch_size, "shuffle_buffer": shuffle_buffer, "prefetch": prefetch}, minimum=1)
        check_counts({"max_pixels": max_pixels}, minimum=1)
        check_counts({"epoch_size": epoch_size, "validation_size": validation_size}, minimum=1, optional=True)
        check_counts({"num_workers": num_workers, "max_consecutive_skips": max_consecutive_skips}, minimum=0)
        stream = BatchStream(
            _require(parse_sources(sources, "data.sources"), sources),
            batch_size=batch_size,
            transform=_transform(resolution, crop, flip, interpolation, background),
            filters=parse_filters(filters),
            seed=seed,
            shuffle_buffer=shuffle_buffer,
            max_pixels=max_pixels,
            max_consecutive_skips=max_consecutive_skips,
        )
        validation = parse_sources(validation_sources, "data.validation_sources")
        super().__init__(
            stream,
            _for_validation(stream, validation, endless=validation_size is not None),
            num_workers=num_workers,
            prefetch=prefetch,
            pin_memory=pin_memory,
            epoch_size=epoch_size,
            validation_size=validation_size,
        )


def _transform(
    resolution: int | Sequence[int], crop: str, flip: bool, interpolation: str, background: str | Sequence[int]
) -> ImageTransform:
    size, colour = parse_resolution(resolution), parse_colour(background)
    return ImageTransform(size, crop=crop, flip=flip, interpolation=interpolation, background=colour)


def _for_validation(stream: BatchStream, sources: tuple[ShardSource, ...], *, endless: bool) -> BatchStream:
    """The same for other sources, without anything random: in order, centred, not mirrored."""
    transform = replace(stream.transform, crop="center", flip=False)
    return replace(stream, sources=sources, transform=transform, shuffle_buffer=1, endless=endless)


def _require(parsed: tuple[ShardSource, ...], sources: object) -> tuple[ShardSource, ...]:
    if not parsed:
        raise ValueError(
            f"data.sources has no source with a weight above 0: {sources!r}; "
            "set a weight, e.g. data.sources.laion.weight=1"
        )
    return parsed


def check_counts(counts: Mapping[str, Any], minimum: int, *, optional: bool = False) -> None:
    """Raise a ValueError that names a setting which isn't a whole number of at least `minimum` (or None)."""
    for name, value in counts.items():
        if optional and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"data.{name} must be a whole number, at least {minimum}, got {value!r}")
