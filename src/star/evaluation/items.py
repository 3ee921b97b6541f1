"""Metrics of pictures: draw or find the pictures, show them to the metric, read its result."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from star.evaluation.cards import Result
from star.evaluation.context import Context, Drawn
from star.evaluation.pictures import Picture, batches, check_kind, list_pictures, read_index
from star.evaluation.prompts import PromptSet, PromptSource
from star.evaluation.references import Reference, pictures_of_shards

log = logging.getLogger(__name__)


class Item(Protocol):
    """One entry of `metric.items`.

    Attributes:
        sampling: the preset its pictures are drawn with, in words; None is the checkpoint's own.

    """

    sampling: Mapping[str, Any] | None

    def missing(self, context: Context) -> Iterator[str]:
        """What it lacks, one sentence each; nothing when it can run."""
        ...

    def run(self, context: Context) -> Result:
        """Compute it."""
        ...


class ImageItem:
    """A metric that looks at pictures, and perhaps at prompts or real pictures.

    Args:
        metric: scores pictures; see `star.types.ImageMetric`.
        prompts: what is drawn; None follows the first metric of the command that has prompts, or `prompts=FILE`, or
            the captions of a reference that was given, or `fallback`.
        fallback: what is drawn when there is nothing to follow.
        reference: what pictures are compared with; None for metrics that compare with nothing.
        sampling: the protocol's preset; None is the checkpoint's own.
        count: how many pictures the protocol has; another count is a deviation.
        needs_prompts: whether the metric reads captions.
        export: only draw the pictures, for another program to score.

    """

    def __init__(
        self,
        *,
        metric: Any,
        prompts: PromptSource | None = None,
        fallback: PromptSource | None = None,
        reference: Reference | None = None,
        sampling: Mapping[str, Any] | None = None,
        count: int | None = None,
        needs_prompts: bool = False,
        export: bool = False,
    ) -> None:
        self.metric = metric
        self.prompts = prompts
        self.fallback = fallback
        self.reference = reference
        self.sampling = sampling
        self.count = count
        self.needs_prompts = needs_prompts
        self.export = export

    def missing(self, context: Context) -> Iterator[str]:
        """Weights, prompts, reference, and a model or pictures."""
        if not self.export:
            yield from self.metric.iterate_missing()
        reference = self.comparison(context)
        if reference is not None:
            yield from reference.missing(context)
            yield from reference.uncategorized(getattr(self.metric, "categories", ()))
        yield from context.missing_pictures("pictures")
        source, _ = self._source(context)
        if source is not None:
            lacking = list(source.iterate_missing())
            yield from lacking
            if not lacking:
                yield from self._too_few(len(source.load()))
                yield from context.trouble(lambda: self._drawn(context))
        elif context.images is None:
            if reference is None or not reference.has_captions:
                yield "no prompts to draw pictures for: set prompts=FILE, or name a metric with prompts before this one"
        elif self.needs_prompts and not context.are_shards and not (context.images / "index.jsonl").is_file():
            yield f"no captions for images={context.images}: give it an index.jsonl (file, prompt), or prompts=FILE"
        else:
            yield from context.trouble(lambda: self._drawn(context))

    def _too_few(self, count: int) -> Iterator[str]:
        """Said before hours are spent on drawing them."""
        least = 0 if self.export else getattr(self.metric, "least", 0)
        if count < least:
            yield f"{self.metric.label} needs at least {least} pictures, the prompts make {count}: {self.metric.fewer}"

    def run(self, context: Context) -> Result:
        """Show the reference, then the pictures."""
        drawn = self._drawn(context)
        if self.export:
            log.info("pictures for another program to score: %s", drawn.folder)
            return Result(None, "export", len(drawn.pictures), facts=drawn.facts(), pictures=some(drawn.pictures))
        metric = self.metric.to(context.device)
        first = drawn.pictures[0].open()
        reference = self.comparison(context)
        if reference is not None:
            reference.show(metric, context, drawn.pictures[0])
        for images, records in batches(context.ranks.share(drawn.pictures), context.batch, like=drawn.pictures[0]):
            metric.update(images.to(context.device), records)
        # a rank without pictures has to take part in the gathering, too
        metric.update(torch.zeros(0, 3, 1, 1, device=context.device), [])
        results = dict(metric.compute())
        side = f"{first.width}" if first.width == first.height else f"{first.width}x{first.height}"
        facts = {**drawn.facts(), **(metric.facts() if hasattr(metric, "facts") else {})}
        facts |= {} if reference is None else reference.facts()
        return Result(
            value=results.pop("value"),
            label=f"{metric.label}@{side}",
            count=results["num_images"],
            interval=results.pop("interval", None),
            results=results,
            facts=facts,
            deviations=self._deviations(drawn, results["num_images"], first.size),
            pictures=some(drawn.pictures),
        )

    def _deviations(self, drawn: Drawn, count: int, size: tuple[int, int]) -> list[str]:
        found = list(self.metric.deviations()) if hasattr(self.metric, "deviations") else []
        if self.count is not None and count != self.count:
            found.append(f"{count} pictures instead of {self.count}")
        fixed = None if self.reference is None else self.reference.fit.sized(*size)
        if fixed not in (None, size):
            found.append(f"pictures of {size[0]}x{size[1]} pixels, compared with real ones of {fixed[0]}x{fixed[1]}")
        if self.sampling is not None and drawn.sampling is not None and _words(drawn.sampling) != _words(self.sampling):
            found.append("drawn with another preset than the protocol's")
        if self.reference is not None and self.reference.source is not None and self.reference.dataset is not None:
            found.append(f"compared with {self.reference.source} instead of {type(self.reference.dataset).__name__}")
        return found

    def _source(self, context: Context) -> tuple[PromptSource | None, Mapping[str, Any] | None]:
        """The prompts, and the preset that belongs to them."""
        if self.prompts is not None:
            return self.prompts, self.sampling
        if context.followed is not None:
            return context.followed.prompts, context.followed.sampling
        if context.prompt_file is not None:
            return context.prompt_file, self.sampling
        given = self.reference is not None and self.reference.source is not None and self.reference.has_captions
        return (self.fallback, self.sampling) if context.images is None and not given else (None, None)

    def _drawn(self, context: Context) -> Drawn:
        source, preset = self._source(context)
        if source is not None:
            return context.pictures(source.load(), preset)
        if context.images is None:
            return context.pictures(self._reference_captions(context), self.sampling)
        if context.are_shards:
            found = list(pictures_of_shards(str(context.images), key="images", only=context.config["format"]))
            if self.needs_prompts:
                _require_captions(found)
            return Drawn(context.images, found)
        return Drawn(context.images, loose_pictures(context.images, only=context.config["format"]))

    def comparison(self, context: Context) -> Reference | None:
        """The reference; without one of its own, that of the pictures which are followed, or of the fallback."""
        reference = self.reference
        if reference is None or reference.source is not None or reference.dataset is not None:
            return reference
        if context.followed is not None:
            return reference.of(context.followed.dataset)
        return reference.of(self.fallback) if self._source(context)[0] is self.fallback else reference

    def _reference_captions(self, context: Context) -> PromptSet:
        reference = self.comparison(context)
        if reference is None:
            raise ValueError("no prompts to draw pictures for: set prompts=FILE")
        pictures = list(reference.pictures(context))
        _require_captions(pictures)
        captions = [str(picture.record["prompt"]) for picture in pictures]
        return PromptSet("captions", tuple({"prompt": text, "index": i} for i, text in enumerate(captions)))


def _require_captions(pictures: Sequence[Picture]) -> None:
    """Raise a ValueError that names the first picture without a caption: an empty one would score all the same."""
    bare = next((picture for picture in pictures if not picture.record.get("prompt")), None)
    if bare is not None:
        raise ValueError(f"{bare.name} has no caption: a shard holds it as a .txt file beside the picture")


def _words(preset: Mapping[str, Any]) -> dict[str, Any]:
    """A preset without what Hydra adds to it, and without what is null, as that is the default of all that may be."""
    nested = {name: _words(value) if isinstance(value, Mapping) else value for name, value in preset.items()}
    return {name: value for name, value in nested.items() if name != "_partial_" and value is not None}


def loose_pictures(folder: Path, *, only: str | None) -> list[Picture]:
    """All pictures of a folder, with the prompts of its `index.jsonl` if it has one.

    Raises:
        ValueError: for none, one of another kind than `only`, or one that the index lists and that isn't there.

    """
    index = folder / "index.jsonl"
    if not index.is_file():
        files = list_pictures(folder, only=only)
        return [Picture(str(file), {"index": i, "file": str(file.relative_to(folder))}) for i, file in enumerate(files)]
    rows = read_index(index)
    for row in rows:
        if not (folder / row["file"]).is_file():
            raise ValueError(f"{index} lists {folder / row['file']}, which isn't there")
        if only is not None:
            check_kind(folder / row["file"], only)
    return [Picture(str(folder / row["file"]), {**row, "index": i, "place": i}) for i, row in enumerate(rows)]


def some(pictures: Sequence[Picture], number: int = 16) -> list[tuple[Picture, str]]:
    """A few pictures, evenly spread, with their captions."""
    step = max(1, len(pictures) // number)
    return [(picture, str(picture.record.get("prompt", ""))) for picture in pictures[::step][:number]]
