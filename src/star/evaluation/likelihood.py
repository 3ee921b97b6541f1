"""metric=likelihood: loss and accuracy of every scale on pictures that training never saw."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from star.checkpoints.parts import WITH_GENERATOR
from star.evaluation.cards import Result
from star.evaluation.context import Context
from star.evaluation.shards import RealPictures
from star.metrics.base import bootstrap
from star.models.likelihood import token_losses
from star.objectives.teacher_forcing import scale_means
from star.types import Batch

log = logging.getLogger(__name__)


class LikelihoodItem:
    """Cross-entropy of true codes given the true coarser maps, as in training, without caption dropout.

    Args:
        real: held-out pairs.

    """

    sampling: Mapping[str, Any] | None = None

    def __init__(self, *, real: RealPictures) -> None:
        self.real = real

    def missing(self, context: Context) -> Iterator[str]:
        """A generator, and held-out shards."""
        found = list(context.missing_checkpoint("metric=likelihood", *WITH_GENERATOR))
        yield from found or self.real.missing(context)

    @torch.no_grad()  # in inference mode, a weight that is held for fast drawing refuses to be what it is already
    def run(self, context: Context) -> Result:
        """Every pair once."""
        pipeline = context.pipeline
        side = tuple(length * pipeline.tokenizer.factor for length in pipeline.schedule.sizes[-1])
        rows = [row for batch in self.real.batches(context, (side[0], side[1])) for row in self._rows(context, batch)]
        gathered = context.ranks.gather(rows)
        if not gathered:
            raise ValueError("no held-out pair could be read")
        # sorted, so that the sums don't depend on how many ranks shared the pairs
        gathered.sort(key=lambda row: row[0])
        losses = torch.tensor([row[1] for row in gathered], dtype=torch.float64)
        accuracies = torch.tensor([row[2] for row in gathered], dtype=torch.float64)
        lengths = torch.tensor(pipeline.schedule.lengths, dtype=torch.float64)
        per_picture = losses @ lengths / lengths.sum()
        return Result(
            value=float(per_picture.mean()),
            label=f"loss@{side[0]}",
            count=len(gathered),
            interval=bootstrap(per_picture),
            results={
                "accuracy": float((accuracies @ lengths / lengths.sum()).mean()),
                "perplexity": math.exp(float(per_picture.mean())),
                "bits_per_picture": float(per_picture.mean()) * float(lengths.sum()) / math.log(2),
                "loss_per_scale": losses.mean(0).tolist(),
                "accuracy_per_scale": accuracies.mean(0).tolist(),
            },
            facts={**self.real.describe(context), "scales": str(pipeline.schedule)},
        )

    def _rows(self, context: Context, batch: Batch) -> list[tuple[str, list[float], list[float]]]:
        """Of each pair its key, and loss and accuracy of each scale."""
        pipeline = context.pipeline
        codes = pipeline.tokenizer.encode(batch.images.to(context.device), pipeline.schedule)
        loss, right = losses(context, codes, batch.captions)
        scales = pipeline.schedule.scale_ids().to(context.device)

        def means(values: Tensor) -> list[float]:
            return scale_means(values, scales, len(pipeline.schedule)).double().tolist()

        return [(key, means(a), means(b)) for key, a, b in zip(batch.keys, loss, right, strict=True)]


def losses(context: Context, codes: Sequence[Tensor], captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, and whether the likeliest code is the true one, both (B, L), of codes by scale."""
    pipeline = context.pipeline
    condition = pipeline.text_encoder(captions).to(context.device)
    with context.autocast():
        return token_losses(pipeline.transformer, pipeline.tokenizer, codes, condition, pipeline.schedule)
