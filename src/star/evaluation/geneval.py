"""metric=geneval: draw GenEval's prompts into its folders, detect objects, apply its rules; each step alone, too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from star.evaluation.cards import Result
from star.evaluation.context import Context, Drawn
from star.evaluation.items import some
from star.evaluation.pictures import Picture
from star.evaluation.prompts import PromptSet
from star.metrics.base import bootstrap_tasks
from star.metrics.geneval import build_prompts, read_results, result_line
from star.metrics.geneval_rules import Detection, GenEvalRules, summarize
from star.utils.files import write_atomically

log = logging.getLogger(__name__)

Detector = Callable[..., list[Detection]]
Row = dict[str, Any]

HOW = (
    "GenEval needs a detector: set metric.items.geneval.detector (see star.metrics.detectors), or draw with "
    "metric.items.geneval.export=true, use the official scorer, and set metric.items.geneval.results=FILE"
)


class GenEvalItem:
    """553 prompts, four pictures each.

    Args:
        results: the official scorer's result file (or ours): it is only summarised, no picture is needed.
        export: only draw the folders that the official scorer reads.
        detector: finds objects and their colours: (image, metadata) -> detections; see `star.metrics.detectors`.
        num_images: pictures per prompt.
        seed: of the noise.
        sampling: a preset; None is the checkpoint's own.

    """

    def __init__(
        self,
        *,
        results: str | None = None,
        export: bool = False,
        detector: Any | None = None,
        num_images: int = 4,
        seed: int = 42,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        self.results = None if results is None else Path(results)
        self.export = export
        self.detector: Any = detector
        self.num_images = num_images
        self.seed = seed
        self.sampling = sampling
        self.rules = GenEvalRules()

    @property
    def prompts(self) -> PromptSet | None:
        """What is drawn; nothing when results are given."""
        if self.results is not None:
            return None
        records = tuple({**entry, "index": i} for i, entry in enumerate(build_prompts()))
        return PromptSet("geneval", records, num_images=self.num_images, seed=self.seed, layout="geneval")

    def missing(self, context: Context) -> Iterator[str]:
        """Results, or a model and a detector."""
        if self.results is not None:
            if not self.results.is_file():
                yield f"no result file {self.results}"
            return
        yield from context.missing_pictures("metric=geneval")
        if self.prompts is not None:
            yield from context.wrong_images(self.prompts)
        if not self.export:
            yield from [HOW] if self.detector is None else self.detector.iterate_missing()

    def run(self, context: Context) -> Result:
        """Summarise a file, export, or detect and judge."""
        if self.results is not None:
            return self._result(read_results(self.results), name="given", facts={"results": str(self.results)})
        prompts = self.prompts
        assert prompts is not None
        drawn = context.pictures(prompts, self.sampling)
        if self.export:
            log.info("GenEval's folders are in %s", drawn.folder)
            facts = {**drawn.facts(), "next": f"score {drawn.folder}, then set metric.items.geneval.results=FILE"}
            return Result(None, "geneval/export", len(drawn.pictures), facts=facts, pictures=some(drawn.pictures))
        rows = sorted(context.ranks.gather(self._judge(context, drawn)), key=lambda row: row["filename"])
        if context.ranks.rank == 0:
            text = "".join(result_line(row["filename"], row["metadata"], row["correct"], row["reason"]) for row in rows)
            write_atomically(Path(context.config["out"]) / "geneval_results.jsonl", lambda path: _write(path, text))
        facts = {**drawn.facts(), **self.detector.facts()}
        return self._result(rows, name=self.detector.name, facts=facts, pictures=drawn.pictures)

    def _judge(self, context: Context, drawn: Drawn) -> list[Row]:
        rows = []
        for picture in context.ranks.share(drawn.pictures):
            metadata = picture.record
            verdict = self.rules.judge(metadata, self.detector(picture.open(), metadata))
            row = {"filename": picture.name, "tag": metadata["tag"], "prompt": metadata["prompt"], "metadata": metadata}
            rows.append({**row, "correct": verdict.correct, "reason": verdict.reason})
        return rows

    def _result(
        self, rows: list[Row], *, name: str, facts: Mapping[str, Any], pictures: list[Picture] | None = None
    ) -> Result:
        summary = summarize(rows)
        tasks = {tag.removeprefix("tag/"): share for tag, share in summary.items() if tag.startswith("tag/")}
        expected = 553 * self.num_images
        return Result(
            value=summary["overall"],
            label=f"geneval/{name}",
            count=len(rows),
            interval=bootstrap_tasks(rows),
            results={"tasks": tasks, "images": summary["images"], "prompts": summary["prompts"]},
            facts=facts,
            deviations=[] if len(rows) == expected else [f"{len(rows)} pictures instead of {expected}"],
            pictures=some(pictures or []),
        )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
