"""metric=latency: how long a picture takes, cold and warm, part by part, at several batch sizes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from star.checkpoints.parts import WITH_GENERATOR
from star.evaluation.cards import Result
from star.evaluation.context import Context

log = logging.getLogger(__name__)

PARTS = ("text_encoder", "transformer", "sampler", "decoder", "total")
PROMPTS = (
    "a red circle above a blue square",
    "a lighthouse on a cliff in a storm, oil painting",
    "three bowls of soup on a wooden table",
    "a cat asleep on a warm keyboard, soft light",
    "an old map of an island that does not exist",
    "a street market after the rain at night",
    "a portrait of a woman in a green coat",
    "two boats left of a pier",
)


class LatencyItem:
    """Times the whole way from captions to pixels; files and PNG are left out.

    Args:
        batches: batch sizes; the value is the latency of the first.
        warmup: runs before measuring.
        runs: measured runs.
        sampling: a preset; None is the checkpoint's own.

    Raises:
        ValueError: for no batch size, or a run that doesn't happen.

    """

    needs_cold_model = True

    def __init__(
        self,
        *,
        batches: Sequence[int] = (1, 8),
        warmup: int = 5,
        runs: int = 20,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        if not batches or min(batches) < 1 or runs < 1 or warmup < 0:
            raise ValueError(
                f"latency needs batch sizes and at least one run, got {list(batches)}, {runs} and {warmup}"
            )
        self.batches = tuple(batches)
        self.warmup = warmup
        self.runs = runs
        self.sampling = sampling

    def missing(self, context: Context) -> Iterator[str]:
        """A generator."""
        return context.missing_checkpoint("metric=latency", *WITH_GENERATOR)

    def run(self, context: Context) -> Result:
        """Measure on rank 0 alone; the others wait."""
        preset = context.settings(self.sampling)["sampling"]
        timer = Timer(context)
        by_batch: dict[str, Any] = {}
        cold = None
        if context.ranks.rank == 0:
            for size in self.batches:
                first = timer.run(size)
                cold = cold or first
                for _ in range(self.warmup):
                    timer.run(size)
                by_batch[str(size)] = summarize([timer.run(size) for _ in range(self.runs)], size)
                log.info("batch %d: %.4f s", size, by_batch[str(size)]["total"]["median"])
        context.ranks.wait()
        everything = context.ranks.gather([by_batch] if by_batch else [])[0]
        first_size = str(self.batches[0])
        return Result(
            value=everything[first_size]["total"]["median"],
            label=f"seconds/batch{first_size}",
            count=self.runs,
            results={"cold": cold, "parts": _medians(everything[first_size]), "batch": everything},
            facts={"sampling": preset, "warmup": self.warmup, "prompts": len(PROMPTS), **_machine(context.device)},
        )


class Timer:
    """One run from captions to pixels, timed by part.

    Args:
        context: has the pipeline.

    """

    def __init__(self, context: Context) -> None:
        self.pipeline = context.pipeline
        self.device = context.device
        self._seconds: dict[str, float] = {}

    def run(self, batch: int) -> dict[str, float]:
        """Seconds of each of `PARTS`; `transformer` is the loop over scales without the sampler.

        Where a preset draws several candidates, judging them is part of that loop.
        """
        prompts = [PROMPTS[i % len(PROMPTS)] for i in range(batch)]
        self._seconds = {"text_encoder": 0.0, "sampler": 0.0}
        with self._watched():
            start = self._now()
            *_, state = self.pipeline.scales(prompts, list(range(batch)))
            drawn = self._now() - start
            start = self._now()
            self.pipeline.paint(state)
            decoded = self._now() - start
        texts, sampling = self._seconds["text_encoder"], self._seconds["sampler"]
        parts = (texts, max(drawn - texts - sampling, 0.0), sampling, decoded, drawn + decoded)
        return dict(zip(PARTS, parts, strict=True))

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Time text encoder and sampler wherever they are called; remembered captions don't count as encoded ones."""
        pipeline: Any = self.pipeline
        encoder, sampler = pipeline.text_encoder, pipeline.decoder.sampler
        memo = getattr(encoder, "memo", None)
        for method in ("forward", "to"):  # an offloaded one is moved whenever it reads
            setattr(encoder, method, self._timed("text_encoder", getattr(encoder, method)))
        pipeline.decoder.sampler = self._timed("sampler", sampler)
        if memo is not None:
            encoder.memo = None
        try:
            yield
        finally:
            del encoder.forward, encoder.to
            pipeline.decoder.sampler = sampler
            if memo is not None:
                encoder.memo = memo

    def _timed(self, part: str, call: Any) -> _Timed:
        def measure(work: Callable[..., Any], *arguments: Any) -> Any:
            start = self._now()
            result = work(*arguments)
            self._seconds[part] += self._now() - start
            return result

        return _Timed(call, measure)

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class _Timed:
    """A part of a pipeline whose calls are measured, and its moves: `speed.offload_text_encoder` makes some."""

    def __init__(self, part: Any, measure: Callable[..., Any]) -> None:
        self.part = part
        self.measure = measure

    def __call__(self, *arguments: Any) -> Any:
        return self.measure(self.part, *arguments)

    def to(self, device: Any) -> _Timed:
        self.measure(self.part.to, device)
        return self


def summarize(runs: Sequence[Mapping[str, float]], batch: int) -> dict[str, Any]:
    """Median, 10th and 90th percentile of each part, and pictures per second."""
    found: dict[str, Any] = {}
    for part in PARTS:
        low, median, high = np.quantile([run[part] for run in runs], (0.1, 0.5, 0.9))
        found[part] = {"median": float(median), "p10": float(low), "p90": float(high)}
    found["pictures_per_second"] = batch / found["total"]["median"]
    return found


def _medians(parts: Mapping[str, Any]) -> dict[str, float]:
    return {part: parts[part]["median"] for part in PARTS}


def _machine(device: str) -> dict[str, Any]:
    if not device.startswith("cuda"):
        return {"threads": torch.get_num_threads()}
    return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device)}
