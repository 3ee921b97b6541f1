"""How much known tokens help: masked tokens of held-out pairs, by the refiner and by the generator alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from star.evaluation.context import Context
from star.evaluation.shards import RealPictures
from star.objectives.masked_refinement import MaskedRefinement
from star.utils.cli import compose, plain

SHARES = (0.0, 0.25, 0.5, 0.75)


@torch.inference_mode()
def measure_accuracy(
    overrides: Sequence[str], *, shares: Sequence[float] = SHARES, first_scale: int | None = None, count: int = 512
) -> list[dict[str, float]]:
    """Accuracy on the unknown tokens of refined scales for every share of known ones.

    Args:
        overrides: of evaluate.yaml: `ckpt`, `refiner`, perhaps `shards`.
        shares: of known tokens.
        first_scale: the first refined scale, see `MaskedRefinement`.
        count: how many held-out pairs.

    Raises:
        ValueError: when there are no held-out pairs.

    """
    context = Context(plain(compose("evaluate", [*overrides, "sampling=causal_driven", "speed.weights=as_is"])))
    pipeline = context.pipeline
    side = [length * pipeline.tokenizer.factor for length in pipeline.schedule.sizes[-1]]
    batches = list(RealPictures(context.config["shards"], max_images=count).batches(context, (side[0], side[1])))
    if not batches:
        raise ValueError("no held-out pair could be read: set shards=ADDRESS")
    objective = MaskedRefinement(first_scale=first_scale)
    rows = []
    for share in shares:
        torch.manual_seed(0)
        sums: dict[str, float] = {}
        for batch in batches:
            found = _score(context, objective, batch, share)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value * len(batch)
        total = sum(len(batch) for batch in batches)
        rows.append({"known": share} | {name: value / total for name, value in sums.items()})
    return rows


def _score(context: Context, objective: MaskedRefinement, batch: Any, share: float) -> Mapping[str, float]:
    pipeline: Any = context.pipeline
    codes = pipeline.tokenizer.encode(batch.images.to(context.device), pipeline.schedule)
    condition = pipeline.text_encoder(batch.captions).to(context.device)
    report = objective(
        pipeline.refiner,
        pipeline.transformer,
        pipeline.tokenizer,
        codes,
        condition,
        pipeline.schedule,
        known_share=share,
    )
    return {
        "refiner": float(report.scalars["accuracy"]),
        "generator": float(report.scalars["generator_accuracy"]),
        "loss": float(report.total),
    }
