"""metric=dpg: draw DPG-Bench's prompts as grids of four, and score answers to its questions about them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from star.evaluation.cards import Result
from star.evaluation.context import Context, Drawn
from star.evaluation.datasets import DatasetFolder
from star.evaluation.items import some
from star.evaluation.pictures import Picture
from star.evaluation.prompts import PromptSet
from star.metrics import dpg
from star.metrics.base import bootstrap
from star.utils.files import write_atomically

log = logging.getLogger(__name__)

_SOURCE = "https://github.com/TencentQQGYLab/ELLA (dpg_bench/prompts and dpg_bench/dpg_bench.csv)"
_NUM_PROMPTS = 1065
_NUM_IMAGES = 4


class DPGItem(DatasetFolder):
    """1,065 long prompts, four pictures each.

    Args:
        root: the folder `dpg_bench` with `prompts/` and `dpg_bench.csv`; None looks in `$STAR_ASSETS/dpg_bench`.
        answers: JSON lines (item_id, image_index, proposition_id, answer) from a VQA model; no picture is needed then.
        vqa: answers here: (image, question) -> `yes` or anything else; has `name` and `iterate_missing`.
        export: only draw the grids.
        mode: `official` keeps the published scorer's faults, `fixed` mends them; see `star.metrics.dpg`.
        seed: of the noise.
        sampling: a preset; None is the checkpoint's own.

    """

    def __init__(
        self,
        *,
        root: str | None = None,
        answers: str | None = None,
        vqa: Callable[..., str] | None = None,
        export: bool = False,
        mode: str = "official",
        seed: int = 42,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(root, name="dpg_bench", key="paths.dpg")
        dpg.check_mode(mode)
        self.answers = None if answers is None else Path(answers)
        self.vqa: Any = vqa
        self.export = export
        self.mode = mode
        self.seed = seed
        self.sampling = sampling

    @property
    def prompts(self) -> DPGItem | None:
        """A source of prompts, unless answers are given."""
        return self if self.answers is None else None

    def iterate_missing(self) -> Iterator[str]:
        """The prompts."""
        if not list((self.root / "prompts").glob("*.txt")):
            yield self.message("DPG-Bench's prompts (prompts/*.txt)", _SOURCE)

    def missing(self, context: Context) -> Iterator[str]:
        """Questions, and answers or a model and somebody who answers."""
        if not self.export and not (self.root / "dpg_bench.csv").is_file():
            yield self.message("DPG-Bench's questions (dpg_bench.csv)", _SOURCE)
        if self.answers is not None:
            if not self.answers.is_file():
                yield f"no file of answers {self.answers}"
            return
        lacking = list(self.iterate_missing())
        yield from lacking
        yield from context.missing_pictures("metric=dpg")
        if not lacking:
            yield from context.wrong_images(self.load())
        if not self.export and self.vqa is None:
            yield (
                "DPG-Bench needs a VQA model (mPLUG-large of modelscope): export the grids with "
                "metric.items.dpg.export=true, let it answer, and set metric.items.dpg.answers=FILE"
            )

    def load(self) -> PromptSet:
        """The prompts in the order of their ids."""
        files = sorted((self.root / "prompts").glob("*.txt"))
        records = tuple(
            {"prompt": file.read_text(encoding="utf-8").strip(), "index": i, "stem": file.stem}
            for i, file in enumerate(files)
        )
        return PromptSet("dpg", records, num_images=_NUM_IMAGES, seed=self.seed, layout="named")

    def run(self, context: Context) -> Result:
        """Score answers; draw and ask first where there are none."""
        if self.answers is not None:
            return self._result(dpg.read_answers(self.answers), "given", {"answers": str(self.answers)})
        drawn = context.pictures(self.load(), self.sampling)
        grids = self._grids(context, drawn)
        facts = {**drawn.facts(), "grids": str(grids)}
        if self.export:
            facts["next"] = "let a VQA model answer, then set metric.items.dpg.answers=FILE"
            return Result(None, "dpg/export", len(drawn.pictures), facts=facts, pictures=some(drawn.pictures))
        return self._result(self._ask(context, drawn), self.vqa.name, facts, drawn.pictures)

    def _grids(self, context: Context, drawn: Drawn) -> Path:
        """Each prompt's four pictures as one, row by row: what the official scorer reads."""
        folder = Path(context.config["out"]) / "dpg_grids"
        folder.mkdir(parents=True, exist_ok=True)
        groups = [drawn.pictures[i : i + _NUM_IMAGES] for i in range(0, len(drawn.pictures), _NUM_IMAGES)]
        for group in context.ranks.share(groups):
            # made anew: one that is there may be another model's
            whole = grid([picture.open() for picture in group])
            target = folder / f"{group[0].record['stem']}.png"
            write_atomically(target, partial(whole.save, format="PNG", compress_level=1))
        context.ranks.wait()
        return folder

    def _ask(self, context: Context, drawn: Drawn) -> dict[str, list[dict[int, float]]]:
        questions = dpg.read_questions(self.root / "dpg_bench.csv", mode=self.mode)
        rows = []
        for picture in context.ranks.share(drawn.pictures):
            item = picture.record["stem"]
            image = picture.open()
            asked = questions[item].questions if item in questions else ()
            given = {question.number: float(self.vqa(image, question.text) == "yes") for question in asked}
            rows.append((item, picture.record["image"], given))
        answers: dict[str, list[dict[int, float]]] = {}
        for item, _, given in sorted(context.ranks.gather(rows), key=lambda row: (row[0], row[1])):
            answers.setdefault(item, []).append(given)
        if context.ranks.rank == 0:
            (Path(context.config["out"]) / "dpg_answers.json").write_text(json.dumps(answers))
        return answers

    def _result(
        self,
        answers: Mapping[str, Sequence[Mapping[int, float]]],
        name: str,
        facts: Mapping[str, Any],
        pictures: Sequence[Picture] = (),
    ) -> Result:
        questions = dpg.read_questions(self.root / "dpg_bench.csv", mode=self.mode)
        scores = dpg.score(questions, answers, mode=self.mode)
        if scores["dropped"]:
            log.warning("%d prompts have no complete answers, e.g. %s", len(scores["dropped"]), scores["dropped"][0])
        by_prompt = list(scores.pop("prompts").values())
        answered = len(by_prompt)
        deviations = [] if answered >= _NUM_PROMPTS - 1 else [f"{answered} prompts instead of {_NUM_PROMPTS}"]
        value = scores.pop("value")
        return Result(
            value,
            label=f"dpg/{name}/{self.mode}",
            count=answered,
            interval=bootstrap(torch.tensor(by_prompt)),
            results=scores,
            facts=facts,
            deviations=deviations,
            pictures=some(list(pictures)),
        )


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Four pictures of one size as two rows of two."""
    width, height = images[0].size
    canvas = Image.new("RGB", (2 * width, 2 * height))
    for i, image in enumerate(images):
        canvas.paste(image, ((i % 2) * width, (i // 2) * height))
    return canvas
