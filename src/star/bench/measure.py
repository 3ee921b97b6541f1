"""One or two kinds of work, in turns, measured in time and memory."""

from __future__ import annotations

import logging
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from star.bench.memory import PeakMemory
from star.bench.peak import Peak, scale_flops
from star.bench.products import PRODUCTS
from star.bench.reference import REFERENCE
from star.bench.settings import Request, Settings
from star.bench.stopwatch import Stopwatch, Times, stamp
from star.bench.work import BLOCKS, WORK, Sample, Work, halves, text_tokens

log = logging.getLogger(__name__)
Record = dict[str, Any]


class Run:
    """One setting's repetitions.

    Args:
        settings: what is measured.

    """

    def __init__(self, settings: Settings) -> None:
        log.info("building %s", settings)
        self.settings = settings
        known = {"star": WORK, "reference": REFERENCE, "products": PRODUCTS}[settings.implementation]
        self.work: Work = known[settings.kind](settings)
        self.watch = Stopwatch(self.work.device)
        self.memory = PeakMemory(self.work.device)
        self.cpu: list[dict[str, float]] = []
        self.wall: list[dict[str, float]] = []
        self.scales: list[Times] = []
        self.memories: tuple[float, float] | None = None  # GiB before a repetition, and at most during it

    def weigh(self, work: Callable[[], Any]) -> Any:
        """Do some work and note its memory, which takes time: pages that were given back are fetched again."""
        before = self.memory.reset()
        result = work()
        self.memories = before, self.memory.peak()
        return result

    def repeat(self) -> None:
        """Measure once. On a GPU the parts are measured in a repetition of their own, since each waits for it."""
        gpu = self.work.device.type == "cuda"
        total = self._total() if gpu else None
        with self.work.watched(self.watch):
            watched = self._total() if self.memories else self.weigh(self._total)
        own, whole = self.watch.times()
        self.scales.append({name: times for name, times in whole.items() if name.startswith("blocks/")})
        for place, held in ((0, self.cpu), (1, self.wall)):
            held.append(_parts({name: times[place] for name, times in own.items()}, (total or watched)[place]))

    def _total(self) -> tuple[float, float]:
        start = stamp(self.work.device)
        self.work.run()
        end = stamp(self.work.device)
        return end[0] - start[0], end[1] - start[1]

    def record(self) -> Record:
        """Everything that was found, in plain words."""
        cpu, wall = _medians(self.cpu), _medians(self.wall)
        flops = self.work.flops()
        assert self.memories is not None
        before, peak = self.memories
        record: Record = {
            "settings": asdict(self.settings),
            "repeats": len(self.cpu),
            "cpu_seconds": cpu,
            "wall_seconds": wall,
            "spread": {"cpu_seconds": _spread(self.cpu), "wall_seconds": _spread(self.wall)},
            "peak_memory_gib": peak,
            "memory_before_gib": before,
            "peak_above_before_gib": peak - before,
        }
        if flops:
            record |= {"gflop": flops / 1e9, "gflops_per_second": flops / wall["total"] / 1e9}
        if isinstance(self.work, Sample) and self.settings.kind == "sample" and self.settings.implementation == "star":
            record["matmul"] = self._matmul(self.work)
        return record

    def _matmul(self, work: Sample) -> Record:
        """How near the blocks come to what products alone reach: in large, and in the blocks' own shapes."""
        pipeline = work.pipeline
        model, schedule = pipeline.transformer, pipeline.schedule
        peak = Peak(model, self.settings.dtype, work.device)
        place = 1 if work.device.type == "cuda" else 0
        threads = 1 if place else torch.get_num_threads()
        scales = []
        for k, size in enumerate(schedule.sizes):
            rows = halves(pipeline, k) * self.settings.batch
            seconds = statistics.median(times[f"blocks/{k}"][place] for times in self.scales) / threads
            reached = rows * scale_flops(model, schedule, k, text_tokens(model)) / seconds / 1e9
            alone = peak.scale(rows * schedule.lengths[k])
            scales.append({"size": size, "gflops": reached, "matmul_gflops": alone, "share": reached / alone})
        return {"large_gflops": peak.large(), "scales": scales}


def measure(request: Request) -> Record:
    """Build, warm up, measure in turns, so that a machine's moods meet both settings alike."""
    runs = [Run(settings) for settings in (request.first, request.second) if settings is not None]
    for run in runs:
        for _ in range(request.warmup):
            run.work.run()
        if request.warmup:
            run.weigh(run.work.run)
    for repetition in range(request.repeats):
        for run in runs:
            run.repeat()
        log.info("%d of %d", repetition + 1, request.repeats)
    record = {"kind": request.first.kind, **runs[0].record(), "machine": machine(runs[0].work.device)}
    if len(runs) > 1:
        record["versus"] = runs[1].record()
        record["ratio"] = ratio(record, record["versus"])
    return record


def ratio(one: Mapping[str, Any], other: Mapping[str, Any]) -> Record:
    """One run's figures over another's, wherever both have them."""
    found: Record = {}
    for name in ("cpu_seconds", "wall_seconds"):
        theirs = other.get(name, {})
        found[name] = {part: value / theirs[part] for part, value in one[name].items() if theirs.get(part)}
    for name in ("peak_memory_gib", "peak_above_before_gib"):
        if other.get(name):
            found[name] = one[name] / other[name]
    return found


def machine(device: torch.device) -> Record:
    """What it was measured on."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.processor() or platform.machine())
    family: Record = {key: facts[key] for key in ("cpu family", "model") if key in facts}
    return {"device": name, **family, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _parts(own: Mapping[str, float], total: float) -> dict[str, float]:
    """Seconds of the total and of every part; reading the text isn't part of the total, and blocks are a whole."""
    merged: dict[str, float] = {}
    for name, seconds in own.items():
        part = name.partition("/")[0]
        merged[part] = merged.get(part, 0.0) + seconds
    if "blocks" in merged:
        merged["blocks"] = sum(merged.get(name, 0.0) for name in BLOCKS)
    text = merged.get("text", 0.0)
    inside = sum(seconds for name, seconds in merged.items() if name not in BLOCKS[1:])
    return {"total": total - text, **merged, **({"other": max(total - inside, 0.0)} if merged else {})}


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {part: statistics.median(run[part] for run in runs) for part in runs[0]}


def _spread(runs: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Least and most."""
    return {part: [min(run[part] for run in runs), max(run[part] for run in runs)] for part in runs[0]}
