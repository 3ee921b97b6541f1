"""What the demo does to which pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.demo.steps import Step
from star.utils.cli import compose, plain


@dataclass(frozen=True)
class Recipe:
    """One demo.

    Attributes:
        name: of the recipe, of its experiments in conf/experiment/, and of its folder under outputs/.
        title: for the report.
        out: where everything goes.
        data: name -> arguments for Python that write shards into `out`/data.
        scored: whether metric=shapes can judge its pictures.

    """

    name: str
    title: str
    out: Path
    data: dict[str, list[str]]
    scored: bool

    @property
    def tokenizer_run(self) -> Path:
        """Run directory of the tokenizer."""
        return self.out / "tokenizer"

    @property
    def generator_run(self) -> Path:
        """Run directory of the generator."""
        return self.out / "generator"

    @property
    def tokenizer_checkpoint(self) -> Path:
        """The tokenizer to keep."""
        return self.out / "tokenizer.ckpt"

    @property
    def generator_checkpoint(self) -> Path:
        """The model to keep: what sample.py opens, nothing else needed."""
        return self.out / "star.ckpt"

    @property
    def evaluation(self) -> Path:
        """Scores and the pictures that were scored."""
        return self.out / "evaluation"

    def training(self, task: str) -> list[str]:
        """Overrides of train.py for one of the two trainings."""
        run = self.tokenizer_run if task == "tokenizer" else self.generator_run
        overrides = [
            f"task={task}",
            f"experiment={self.name}",
            f"paths.run_dir={run}",
            f"paths.data={self.out / 'data'}",
            "resume_from=auto",
        ]
        return overrides if task == "tokenizer" else [*overrides, f"paths.tokenizer={self.tokenizer_checkpoint}"]

    def training_step(self, task: str, says: str) -> Step:
        """The training as a step that depends on its whole configuration."""
        overrides = self.training(task)
        run = self.tokenizer_run if task == "tokenizer" else self.generator_run
        return Step(task, says, ["train.py", *overrides], configuration(overrides), owns=[run])


def configuration(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of a training."""
    return plain(compose("train", overrides))


def shapes(out: Path) -> Recipe:
    """Coloured shapes on grey: captions whose combinations were held out can be scored without any network."""
    write = ["-m", "star.data.shapes", "size=64"]
    return Recipe(
        name="demo",
        title="STAR on coloured shapes",
        out=out,
        data={
            "train": [*write, f"out={out / 'data/shapes/train'}", "num_images=16384", "seed=0", "split=train"],
            "validation": [
                *write,
                f"out={out / 'data/shapes/validation'}",
                "num_images=512",
                "seed=1",
                "split=heldout",
            ],
        },
        scored=True,
    )


def emoji(out: Path) -> Recipe:
    """Emoji with the names and keywords that people gave them."""
    return Recipe(
        name="emoji",
        title="STAR on emoji",
        out=out,
        data={"shards": ["data/emoji/make_shards.py", f"out={out / 'data/emoji'}"]},
        scored=False,
    )


RECIPES = {"shapes": shapes, "emoji": emoji}
