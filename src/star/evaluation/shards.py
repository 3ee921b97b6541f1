"""Real pictures with captions: the shards a model was validated on, or others, prepared as in training."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from star.evaluation.context import Context
from star.types import Batch

log = logging.getLogger(__name__)

_NUM_WORKERS = 0
_PLAIN_PATH = re.compile(r"^(?![a-z0-9+]+:)", re.IGNORECASE)


class RealPictures:
    """Held-out pairs: `shards`, or those that the checkpoint's own training was validated on.

    Args:
        shards: address or addresses of shards; None takes the checkpoint's.
        max_images: stop after so many over all ranks, each of which takes equally many (rounded up); None reads all.

    """

    def __init__(self, shards: str | Sequence[str] | None = None, *, max_images: int | None = None) -> None:
        self.shards = shards
        self.max_images = max_images

    def missing(self, context: Context) -> Iterator[str]:
        """Shards that aren't there."""
        from star.data.sources import expand_urls

        try:
            for name, source in self.sources(context).items():
                expand_urls(source["urls"], f"shards (source {name})")
        except (OSError, ValueError) as error:
            yield str(error)

    def sources(self, context: Context) -> dict[str, dict[str, Any]]:
        """Name -> urls and captions, as `star.data` takes them.

        Raises:
            ValueError: when there are none, or a checkpoint names a command.

        """
        if self.shards is not None:
            return {"shards": {"urls": self.shards}}
        data = context.checkpoint_config.get("data") or {}
        sources = {name: source for name, source in (data.get("validation_sources") or {}).items() if source}
        if not sources:
            raise ValueError(
                "no held-out pictures: the checkpoint's training had no validation shards; set shards=ADDRESS"
            )
        found = {}
        for name, source in sources.items():
            urls = [source["urls"]] if isinstance(source["urls"], str) else list(source["urls"])
            # an address may be a command (pipe:...): a checkpoint that came from somebody else must not choose it
            if not all(_PLAIN_PATH.match(url) for url in urls):
                raise ValueError(
                    f"the checkpoint's validation shards are not local paths ({urls[0]!r}): set shards=ADDRESS"
                )
            found[str(name)] = {
                key: source[key] for key in ("urls", "captions", "weight") if source.get(key) is not None
            }
        return found

    def batches(self, context: Context, resolution: tuple[int, int]) -> Iterator[Batch]:
        """This rank's part of the pairs, images (B, 3, H, W) in [-1, 1]."""
        from star.data.datamodule import ShardDataModule

        sources = self.sources(context)
        module = ShardDataModule(
            sources,
            validation_sources=sources,
            resolution=list(resolution),
            batch_size=context.batch,
            num_workers=_NUM_WORKERS,
            pin_memory=False,
            **_filters(context),
        )
        left = None if self.max_images is None else -(-self.max_images // context.ranks.world)
        for batch in module.val_dataloader():
            if left is not None and len(batch) >= left:
                yield Batch(batch.images[:left], batch.captions[:left], batch.keys[:left])
                return
            yield batch
            left = None if left is None else left - len(batch)

    def describe(self, context: Context) -> dict[str, Any]:
        """For the card."""
        return {"shards": {name: source["urls"] for name, source in self.sources(context).items()}}


def _filters(context: Context) -> dict[str, Any]:
    """How the checkpoint's training prepared pictures; the class's defaults without a checkpoint."""
    data: Mapping[str, Any] = context.checkpoint_config.get("data") or {}
    names = ("filters", "interpolation", "background", "max_pixels")
    return {name: data[name] for name in names if data.get(name) is not None}
