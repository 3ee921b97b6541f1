"""metric=minimal_pairs: what the model understood of its captions, asked without drawing anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from star.checkpoints.parts import WITH_GENERATOR
from star.evaluation.cards import Result
from star.evaluation.context import Context
from star.evaluation.likelihood import losses
from star.metrics.base import bootstrap_tasks
from star.metrics.geneval_rules import summarize
from star.metrics.minimal_pairs import KINDS, wrong_prompts
from star.metrics.shapes import load_suite, render_suite

Row = dict[str, Any]
Pair = tuple[Row, torch.Tensor, str]  # what is asked, the picture (3, H, W) in [0, 1], the wrong caption


class MinimalPairsItem:
    """Is a true picture likelier under its own caption than under one that differs in a single fact?

    Of two captions the model should prefer the true one: 1 is perfect, 0.5 chance. Unlike the score of drawn pictures
    this doesn't depend on sampler, guidance or luck, takes seconds, and tells what is missing: a model for which
    captions are bags of words gets 0.5 in `binding` and `relation`, whatever its pictures look like.

    Args:
        seed: of the pictures and of the wrong words.
        num_images: pictures per prompt of the frozen suite of shapes (264 prompts).

    """

    sampling: Mapping[str, Any] | None = None

    def __init__(self, *, seed: int = 0, num_images: int = 1) -> None:
        self.seed = seed
        self.num_images = num_images

    def missing(self, context: Context) -> Iterator[str]:
        """A generator."""
        yield from context.missing_checkpoint("metric=minimal_pairs", *WITH_GENERATOR)

    @torch.no_grad()  # as metric=likelihood
    def run(self, context: Context) -> Result:
        """Every pair once."""
        pairs = self._pairs(context)
        rows: list[Row] = []
        while some := list(islice(pairs, context.batch)):  # never all pictures at once: large ones take gigabytes
            rows += self._judge(context, some)
        gathered = sorted(context.ranks.gather(rows), key=lambda row: (row["tag"], row["index"], row["image"]))
        summary = summarize(gathered)
        margins = {kind: np.array([row["nats"] for row in gathered if row["tag"] == kind]) for kind in KINDS}
        return Result(
            value=summary["overall"],
            label=f"minimal_pairs/{self.num_images}x{len(load_suite('shapes'))}",
            count=len(gathered),
            interval=bootstrap_tasks(gathered),
            results={
                "kinds": {kind: summary[f"tag/{kind}"] for kind in KINDS},
                "nats": {kind: float(nats.sum(1).mean()) for kind, nats in margins.items()},
                "nats_per_scale": {kind: nats.mean(0).tolist() for kind, nats in margins.items()},
            },
            facts={"seed": self.seed, "scales": str(context.pipeline.schedule)},
        )

    def _pairs(self, context: Context) -> Iterator[Pair]:
        """Every picture of this rank's prompts with every kind of wrong caption."""
        height, width = (side * context.pipeline.tokenizer.factor for side in context.pipeline.schedule.sizes[-1])
        if height != width:
            raise ValueError(f"metric=minimal_pairs has square pictures, this model draws {height}x{width}")
        suite = load_suite("shapes")
        for images, record in render_suite(suite, num_images=self.num_images, size=height, seed=self.seed + 1):
            if record["index"] % context.ranks.world != context.ranks.rank:
                continue
            for number, image in enumerate(images):
                rng = np.random.default_rng((self.seed, record["index"], number))
                for kind, wrong in wrong_prompts(record, rng):
                    row = {"tag": kind, "index": record["index"], "image": number, "prompt": record["prompt"]}
                    yield row, image, wrong

    def _judge(self, context: Context, pairs: Sequence[Pair]) -> list[Row]:
        """The rows with how many nats each scale prefers the true caption by, and whether all of them together do."""
        pipeline = context.pipeline
        images = torch.stack([image for _, image, _ in pairs]).to(context.device)
        codes = pipeline.tokenizer.encode(images * 2 - 1, pipeline.schedule)
        true, _ = losses(context, codes, [row["prompt"] for row, _, _ in pairs])
        false, _ = losses(context, codes, [wrong for _, _, wrong in pairs])
        parts = [part.double().sum(1) for part in pipeline.schedule.split(false - true)]
        nats = torch.stack(parts, 1).tolist()  # (B, K)
        return [{**row, "nats": by, "correct": sum(by) > 0} for (row, _, _), by in zip(pairs, nats, strict=True)]
