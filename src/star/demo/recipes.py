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
        refined: the preset (conf/sampling) whose late scales a refiner reveals in steps; None trains no refiner.
        length: of every training, as a share of the experiment's steps.

    """

    name: str
    title: str
    out: Path
    data: dict[str, list[str]]
    scored: bool
    refined: str | None = None
    length: float = 1.0

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
    def refiner_run(self) -> Path:
        """Run directory of the refiner."""
        return self.out / "refiner"

    @property
    def refiner_checkpoint(self) -> Path:
        """The refiner to keep: beside the model, where sample.py finds it."""
        return self.out / "refiner.ckpt"

    @property
    def preset(self) -> list[str]:
        """What makes sample.py and evaluate.py draw with the refiner; without it they draw as the model's file says."""
        if self.refined is None:
            return []
        guidance = {"scale": 2.0, "ramp": "constant", "on_from": 2}
        return [f"sampling={self.refined}", *(f"sampling.guidance.{name}={value}" for name, value in guidance.items())]

    @property
    def evaluation(self) -> Path:
        """Scores and the pictures that were scored."""
        return self.out / "evaluation"

    @property
    def understanding(self) -> Path:
        """What the model understands of captions, asked without drawing."""
        return self.out / "understanding"

    def training(self, task: str) -> list[str]:
        """Overrides of train.py for one of the trainings: `tokenizer`, `generator` or `sampler`."""
        overrides = [
            f"task={task}",
            f"experiment={self.name}",
            f"paths.run_dir={self._run(task)}",
            f"paths.data={self.out / 'data'}",
            "resume_from=auto",
        ]
        more = {
            "generator": [f"paths.tokenizer={self.tokenizer_checkpoint}"],
            "sampler": [f"init_from={self.generator_checkpoint}", *self.preset],
        }
        return [*overrides, *more.get(task, []), *self._length(task)]

    def training_step(self, task: str, says: str) -> Step:
        """The training as a step that depends on its whole configuration.

        Once its model is kept, the run's folder isn't asked for: nobody who made room wants to train again.
        """
        overrides, run = self.training(task), self._run(task)
        kept = {
            "tokenizer": self.tokenizer_checkpoint,
            "generator": self.generator_checkpoint,
            "sampler": self.refiner_checkpoint,
        }
        makes = [] if kept[task].is_file() else [run / "checkpoints" / "last.ckpt"]
        command, recipe = ["train.py", *overrides], configuration(overrides)
        return Step(run.name, says, command, recipe, owns=[run], makes=makes, repeatable=False)

    def _length(self, task: str) -> list[str]:
        """What makes a training longer or shorter; validated four times, after its last step, too."""
        if self.length == 1:
            return []
        steps = plain(compose("train", [f"task={task}", f"experiment={self.name}"]))["length"][task]["steps"]
        quarter = max(round(steps * self.length / 4), 1)
        return [f"length.{task}.steps={4 * quarter}", f"length.{task}.validate={quarter}"]

    def _run(self, task: str) -> Path:
        runs = {"tokenizer": self.tokenizer_run, "generator": self.generator_run, "sampler": self.refiner_run}
        return runs[task]


def configuration(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of a training."""
    return plain(compose("train", overrides))


# how often captions of the training say what, see star.data.shapes
_CAPTIONS = {
    "single_object": 0.02,
    "two_object": 0.04,
    "counting": 0.15,
    "colors": 0.06,
    "position": 0.15,
    "color_attr": 0.14,
    "color_position": 0.4,
    "color_counting": 0.05,
}


def shapes(out: Path) -> Recipe:
    """Coloured shapes on grey: captions whose combinations were held out can be scored without any network."""
    write = ["-m", "star.data.shapes", "size=64"]
    return Recipe(
        name="demo",
        title="STAR on coloured shapes",
        out=out,
        data={
            # nearly as many as a training sees: on 16,384, seen twice, the loss ended 0.04 to 0.12 nats below that of
            # held-out ones. Captions that say all of a picture teach what words mean soonest, so most do, and nearly
            # all in the suite's own wording.
            "train": [
                *write,
                f"out={out / 'data/shapes/train'}",
                "num_images=65536",
                "seed=0",
                "split=train",
                "exact=0.9",
                *(f"weights.{tag}={weight}" for tag, weight in _CAPTIONS.items()),
            ],
            "validation": [
                *write,
                f"out={out / 'data/shapes/validation'}",
                "num_images=512",
                "seed=1",
                "split=heldout",
            ],
        },
        scored=True,
        refined="demo_refined",
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
