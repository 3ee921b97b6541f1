"""metric=shapes: do pictures of coloured figures show what their captions say? Needs no weights but the model's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from star.evaluation.cards import Result
from star.evaluation.context import Context
from star.evaluation.pictures import Picture, batches
from star.evaluation.prompts import PromptSet
from star.metrics.base import as_uint8, bootstrap_tasks
from star.metrics.geneval_rules import GenEvalRules, summarize
from star.metrics.shapes import TASKS, is_strict, load_suite, render_suite
from star.metrics.shapes_detector import ShapeDetector

Row = dict[str, Any]
Record = Mapping[str, Any]


class ShapesItem:
    """Draws the frozen suite (264 held-out prompts, four images each) and judges every picture.

    Args:
        seed: the protocol's; each prompt's seed is derived from it and the prompt's index.
        num_images: pictures per prompt.
        seen: also draw and judge the suite of colour pairs that training may show.
        ceiling: also judge what the tokenizer makes of true pictures of the same prompts.
        renders: also judge the true pictures themselves.
        shuffled: also judge the drawn pictures against other prompts.
        sampling: a preset; None is the checkpoint's own.

    """

    def __init__(
        self,
        *,
        seed: int = 0,
        num_images: int = 4,
        seen: bool = True,
        ceiling: bool = True,
        renders: bool = True,
        shuffled: bool = True,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        self.seed = seed
        self.num_images = num_images
        self.seen = seen
        self.ceiling = ceiling
        self.renders = renders
        self.shuffled = shuffled
        self.sampling = sampling
        self.detector = ShapeDetector()
        self.rules = GenEvalRules()
        self.suite = load_suite("shapes")
        known = {record["prompt"] for record in self.suite}
        # The two suites share the prompts that name no pair of colour and shape: their pictures are drawn once.
        others = [record for record in load_suite("shapes_seen") if record["prompt"] not in known] if seen else []
        self.extra = [{**record, "index": len(self.suite) + i} for i, record in enumerate(others)]

    @property
    def prompts(self) -> PromptSet:
        """What is drawn: the suite, then the prompts that only the suite of seen pairs has."""
        return PromptSet("shapes", (*self.suite, *self.extra), num_images=self.num_images, seed=self.seed)

    def missing(self, context: Context) -> Iterator[str]:
        """A model or a folder of pictures."""
        yield from context.missing_pictures("metric=shapes")
        yield from context.wrong_images(self.prompts)

    def run(self, context: Context) -> Result:
        """Draw, detect, judge, and judge what bounds the result from above and below."""
        drawn = context.pictures(self.prompts, self.sampling)
        rows = self._judge(context, drawn.pictures)
        main = [row for row in rows if row["index"] < len(self.suite)]
        results: dict[str, Any] = _scores(main)
        if self.seen:
            results["seen"] = _scores(self._seen(rows))
        if self.shuffled:
            results["shuffled"] = _scores(row["shuffled"] for row in main)
        results |= self._bounds(context)
        return Result(
            value=results.pop("value"),
            label=f"shapes/{self.num_images}x{len(self.suite)}",
            count=len(main),
            interval=bootstrap_tasks(main),
            results=results,
            facts={**drawn.facts(), "seed": self.seed},
            pictures=self._shown(drawn.pictures, main),
        )

    def _judge(self, context: Context, pictures: Sequence[Picture]) -> list[Row]:
        """A verdict per picture of all ranks, in order, with one against another prompt."""
        others = _derangement(len(self.suite), self.seed)
        rows = []
        for images, records in batches(context.ranks.share(pictures), context.batch):
            for image, record in zip(images, records, strict=True):
                detections = self.detector(_pixels(image))
                row = _row(record, self.rules.judge(record, detections))
                if record["index"] < len(others):
                    other = {**self.suite[others[record["index"]]], "image": record["image"]}
                    row["shuffled"] = _row(other, self.rules.judge(other, detections))
                rows.append(row)
        return sorted(context.ranks.gather(rows), key=lambda row: (row["index"], row["image"]))

    def _seen(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows of the suite of seen pairs."""
        prompts = {record["prompt"] for record in load_suite("shapes_seen")}
        return (row for row in rows if row["prompt"] in prompts)

    def _bounds(self, context: Context) -> dict[str, Any]:
        """Scores of true pictures, and of what the tokenizer leaves of them."""
        ceiling = self.ceiling and context.model_name is not None
        if not (self.renders or ceiling):
            return {}
        size = _resolution(context) if ceiling else 64
        true, rebuilt = [], []
        for images, record in render_suite(self.suite, num_images=self.num_images, size=size, seed=self.seed + 1):
            if record["index"] % context.ranks.world != context.ranks.rank:
                continue
            if self.renders:
                true += self._verdicts(images, record)
            if ceiling:
                rebuilt += self._verdicts(_reconstruct(context, images), record)
        found = {"renders": true, "ceiling": rebuilt}
        gathered = {name: context.ranks.gather(rows) for name, rows in found.items()}
        return {name: _scores(rows) for name, rows in gathered.items() if rows}

    def _verdicts(self, images: Tensor, record: Record) -> list[Row]:
        judged = (self.rules.judge(record, self.detector(_pixels(image))) for image in images)
        return [_row({**record, "image": j}, verdict) for j, verdict in enumerate(judged)]

    def _shown(self, pictures: Sequence[Picture], rows: Sequence[Row]) -> list[tuple[Picture, str]]:
        """The first picture of some prompts of every task, with its verdict."""
        first = {(picture.record["index"], picture.record["image"]): picture for picture in pictures}
        shown = []
        for task in TASKS:
            of_task = [row for row in rows if row["tag"] == task and row["image"] == 0]
            for row in of_task[:: max(1, len(of_task) // 4)][:4]:
                mark = "right" if row["correct"] else "wrong"
                shown.append((first[row["index"], 0], f"{row['prompt']} ({mark})"))
        return shown


def _row(record: Record, verdict: Any) -> Row:
    strict = is_strict(verdict, record)
    names = ("index", "image", "tag", "prompt")
    return {**{name: record[name] for name in names}, "correct": verdict.correct, "strict": strict}


def _scores(rows: Iterable[Row]) -> dict[str, Any]:
    """Shares of right pictures: `value` (mean of the tasks), `tasks`, `images`, `prompts`, `strict`, `num_images`."""
    listed = list(rows)
    summary = summarize(listed)
    strict = summarize({**row, "correct": row["strict"]} for row in listed)
    return {
        "value": summary["overall"],
        "tasks": {task: summary[f"tag/{task}"] for task in TASKS if f"tag/{task}" in summary},
        "images": summary["images"],
        "prompts": summary["prompts"],
        "strict": strict["overall"],
        "num_images": len(listed),
    }


def _derangement(count: int, seed: int) -> list[int]:
    """For every prompt another one, each once."""
    order = np.random.default_rng(seed).permutation(count)
    others = np.empty(count, int)
    others[order] = np.roll(order, 1)
    return [int(other) for other in others]


def _pixels(image: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return as_uint8(image).permute(1, 2, 0).numpy()


def _resolution(context: Context) -> int:
    tokenizer, schedule = context.tokenizer
    return schedule.sizes[-1][0] * tokenizer.factor


@torch.inference_mode()
def _reconstruct(context: Context, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] through the tokenizer and back."""
    tokenizer, schedule = context.tokenizer
    codes = tokenizer.encode(images.to(context.device) * 2 - 1, schedule)
    return tokenizer.decode_codes(codes, schedule).add(1).div(2).cpu()
