"""The paper's comparison of samplers (appendix, table 1) in miniature: one generator, one frozen suite of captions."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.checkpoints import io
from star.checkpoints.presets import resolve_sampling
from star.checkpoints.refiner import beside
from star.drawing import open_pipeline
from star.evaluation.run import evaluate
from star.metrics.features import OFFLINE
from star.metrics.shapes import load_suite, render_suite
from star.studies.command import interleaved
from star.utils.cli import compose, plain
from star.utils.files import write_atomically
from star.utils.png import write_png

log = logging.getLogger("studies")

REFERENCE_SEED = 1000  # of the true pictures; far from those of the metric
TIMED = 16  # pictures at a time while the clock runs


@dataclass(frozen=True)
class Comparison:
    """What all samplers have in common.

    Attributes:
        ckpt: the generator.
        refiner: its refiner; None looks beside it.
        out: where everything goes.
        seeds: of the suite's pictures; each sampler draws the suite once per seed.
        images: pictures per caption.
        batch: pictures at a time.
        steps: of refined scales; None leaves it to the presets.
        first_scale: the first refined scale; None leaves it to the presets.

    """

    ckpt: str
    refiner: str | None
    out: Path
    seeds: Sequence[int] = (0, 1)
    images: int = 4
    batch: int = 132
    steps: str | None = None
    first_scale: int | None = None

    @property
    def model(self) -> list[str]:
        """Overrides that name generator and refiner."""
        return [f"ckpt={self.ckpt}", *([] if self.refiner is None else [f"refiner={self.refiner}"])]

    def samplers(self) -> dict[str, list[str]]:
        """Name -> overrides of `sampling=`. Guidance and top-p are those of the checkpoint's own preset."""
        config = io.config(io.read(self.ckpt, mmap=True), self.ckpt)
        own: Mapping[str, Any] = config.get("sampling") or {}
        guidance = (own.get("guidance") or {}).get("scale", 4.0)
        top_p = (own.get("sampler") or {}).get("top_p", 0.8)
        size = int(config["module"]["tokenizer"]["quantizer"]["codebook_size"])
        shared = [f"sampling.guidance.scale={guidance}"]
        refined = [] if self.steps is None else [f"sampling.sampler.steps={self.steps}"]
        refined += [] if self.first_scale is None else [f"sampling.sampler.first_scale={self.first_scale}"]

        def filtered(top_k: int) -> list[str]:
            return [*shared, f"sampling.sampler.top_k={top_k}", f"sampling.sampler.top_p={top_p}"]

        small, large = filtered(max(size // 8, 1)), filtered(size)
        return {
            "topk small": ["sampling=topk600", *small],
            "topk large": ["sampling=topk600", *large],
            "smooth": ["sampling=smooth", *shared],
            "ours small": ["sampling=causal_driven", *small, *refined],
            "ours large": ["sampling=causal_driven", *large, *refined],
            "ours* large": ["sampling=causal_driven_confidence", *large, *refined],
        }

    def reference(self) -> Path:
        """A folder of true pictures of the suite's captions, drawn once."""
        folder = self.out / "reference"
        done = folder / "index.jsonl"
        if not done.is_file():
            lines = []
            for pictures, record in render_suite(
                load_suite("shapes"), num_images=self.images, size=self._side(), seed=REFERENCE_SEED
            ):
                for image, j in zip(pictures, range(self.images), strict=True):
                    name = f"{record['index']:05d}_{j}.png"
                    write_png(image, folder / name, {})
                    lines.append(json.dumps({"file": name, "prompt": record["prompt"]}) + "\n")
            write_atomically(done, lambda path: _write(path, "".join(lines)))
        return folder

    def _side(self) -> int:
        return int(io.config(io.read(self.ckpt, mmap=True), self.ckpt)["resolution"])

    def score(self, name: str, overrides: Sequence[str], seed: int) -> dict[str, float]:
        """Scores of one sampler and seed; computed once, and again when anything it depends on changes."""
        out = self.out / "cards" / f"{name.replace(' ', '_').replace('*', '_star')}-{seed}"
        command = [
            *self.model,
            *overrides,
            "metric=[shapes,fid_folder,cmmd]",
            f"metric.features={OFFLINE}",
            f"metric.items.shapes.seed={seed}",
            f"metric.items.shapes.num_images={self.images}",
            *(f"metric.items.shapes.{part}=false" for part in ("seen", "ceiling", "renders", "shuffled")),
            f"reference={self.reference()}",
            f"paths.pictures={self.out / 'pictures'}",
            f"batch={self.batch}",
            "on_missing=error",
            f"out={out}",
        ]
        held, card = out / "command.json", out / "card.json"
        files = [io.find(path) for path in (self.ckpt, self.refiner or beside(self.ckpt)) if path is not None]
        mark = json.dumps([command, [file.stat().st_mtime for file in files]])
        if not (card.is_file() and held.is_file() and held.read_text() == mark):
            log.info("%s, seed %d", name, seed)
            evaluate(plain(compose("evaluate", command)))
            write_atomically(held, lambda path: _write(path, mark))
        values = json.loads(card.read_text())["values"]
        return {"alignment": values["shapes"], "fid": values["fid_folder"], "cmmd": values["cmmd"]}

    def seconds(self, samplers: Mapping[str, Sequence[str]], *, repeats: int = 3) -> dict[str, float]:
        """Seconds per picture of each sampler, the best of several interleaved runs."""
        records = load_suite("shapes")[:TIMED]
        prompts = [record["prompt"] for record in records]

        pipeline, _ = open_pipeline(plain(compose("sample", [*self.model, "sampling=causal_driven"])))

        def drawing(overrides: Sequence[str]) -> Callable[[], Any]:
            config = plain(compose("sample", [*self.model, *overrides]))
            preset, _ = resolve_sampling(config, config["sampling"])

            def run() -> Any:
                pipeline.set_preset(preset)
                return pipeline.draw(prompts, list(range(len(prompts))))

            return run

        runs = interleaved({name: drawing(overrides) for name, overrides in samplers.items()}, repeats=repeats)
        return {name: min(times) / len(prompts) for name, times in runs.items()}

    def rows(self) -> list[dict[str, Any]]:
        """A row per sampler: means over the seeds, and every seed's values."""
        samplers = self.samplers()
        scores = {name: [self.score(name, given, seed) for seed in self.seeds] for name, given in samplers.items()}
        seconds = self.seconds(samplers)
        return [
            {
                "sampler": name,
                **{metric: sum(each[metric] for each in found) / len(found) for metric in found[0]},
                "seconds": seconds[name],
                "seeds": dict(zip(map(str, self.seeds), found, strict=True)),
            }
            for name, found in scores.items()
        ]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
