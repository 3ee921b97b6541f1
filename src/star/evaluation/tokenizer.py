"""metric=reconstruction: what a tokenizer makes of real pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from star.checkpoints.parts import WITH_GENERATOR
from star.evaluation.cards import Result
from star.evaluation.context import Context
from star.evaluation.shards import RealPictures
from star.metrics.fid import FrechetDistance
from star.metrics.reconstruction import CodebookUse, Reconstruction
from star.metrics.shapes import load_suite, render_suite


class ReconstructionItem:
    """PSNR, SSIM, use of the codebook at every scale, and if wanted LPIPS and the FID of reconstructions.

    Args:
        real: which pictures: held-out shards.
        suite: render a suite of `star.metrics.shapes` instead.
        num_images: pictures per prompt of the suite.
        seed: of the suite's scenes.
        fid: compares reconstructions with the pictures (rFID); None leaves it out.
        lpips: the perceptual distance; None leaves it out.

    """

    def __init__(
        self,
        *,
        real: RealPictures,
        suite: str | None = None,
        num_images: int = 4,
        seed: int = 1,
        fid: FrechetDistance | None = None,
        lpips: Any | None = None,
    ) -> None:
        self.real = real
        self.suite = suite
        self.num_images = num_images
        self.seed = seed
        self.fid = fid
        self.lpips = lpips

    def missing(self, context: Context) -> Iterator[str]:
        """A checkpoint of either task, pictures, and what the parts need."""
        found = list(context.missing_checkpoint("metric=reconstruction", "tokenizer", *WITH_GENERATOR))
        if not found and self.suite is None:
            found += self.real.missing(context)
        for part in (self.fid, self.lpips):
            found += [] if part is None else part.iterate_missing()
        return iter(found)

    @torch.inference_mode()
    def run(self, context: Context) -> Result:
        """Rebuild all pictures and compare."""
        tokenizer, schedule = context.tokenizer
        side = tuple(length * tokenizer.factor for length in schedule.sizes[-1])
        quality = Reconstruction()
        codebook = CodebookUse(codebook_size=tokenizer.quantizer.codebook_size, num_scales=len(schedule))
        parts = [part for part in (self.fid, self.lpips) if part is not None]
        for images in self._images(context, (side[0], side[1])):
            codes = tokenizer.encode(images.to(context.device) * 2 - 1, schedule)
            rebuilt = tokenizer.decode_codes(codes, schedule).add(1).div(2).cpu()
            quality.update(rebuilt, images)
            codebook.update(codes)
            self._compare(rebuilt, images)
        quality.update(*[torch.zeros(0, 3, *side)] * 2)
        codebook.update([])
        self._compare(*[torch.zeros(0, 3, *side)] * 2)
        results = quality.compute() | {"codebook": codebook.compute()}
        for name, part in (("rfid", self.fid), ("lpips", self.lpips)):
            results |= {} if part is None else {name: part.compute()["value"]}
        facts = {
            "source": f"suite {self.suite}" if self.suite else self.real.describe(context),
            "scales": str(schedule),
        }
        for part in parts:
            facts |= part.facts()
        measured = (("rFID", self.fid), ("LPIPS", self.lpips))
        deviations = [f"{name}: {line}" for name, part in measured if part is not None for line in part.deviations()]
        return Result(
            value=results.pop("value"),
            label=f"psnr@{side[0]}",
            count=results["num_images"],
            interval=results.pop("interval"),
            results=results,
            facts=facts,
            deviations=deviations,
        )

    def _compare(self, rebuilt: Tensor, images: Tensor) -> None:
        if self.fid is not None:
            self.fid.update(rebuilt, [{}] * len(rebuilt))
            self.fid.update_reference(images, [{}] * len(images))
        if self.lpips is not None:
            self.lpips.update(rebuilt, images)

    def _images(self, context: Context, side: tuple[int, int]) -> Iterator[Tensor]:
        """Real pictures (B, 3, H, W) in [0, 1] of this rank."""
        if self.suite is None:
            for batch in self.real.batches(context, side):
                yield batch.images.add(1).div(2)
            return
        waiting: list[Tensor] = []
        for images, record in render_suite(
            load_suite(self.suite), num_images=self.num_images, size=side[0], seed=self.seed
        ):
            if record["index"] % context.ranks.world == context.ranks.rank:
                waiting.append(images)
            if len(waiting) * self.num_images >= context.batch:
                yield torch.cat(waiting)
                waiting = []
        if waiting:
            yield torch.cat(waiting)
