"""`python -m star.demo [recipe=shapes|emoji] [length=0.5] [out=DIR] [fresh=true]`, from the project's root."""

from __future__ import annotations

import logging
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from star.demo.recipes import RECIPES, Recipe
from star.demo.show import draw_figures, drawings, export, keep_refiner, write_report
from star.demo.steps import Step, Steps
from star.utils.cli import readable_errors

HELP = f"""{__doc__}

Writes shards, trains a tokenizer, a generator and (shapes alone) a refiner on them, draws captions, scores the pictures
where they can be scored, and leaves tokenizer.ckpt, star.ckpt, refiner.ckpt, samples.png, scales.png, report.json and
report.html in OUT (outputs/demo, or outputs/RECIPE). What is finished is used again, what was interrupted goes on, and
of these files what was deleted is made anew; fresh=true starts over. length=0.5 halves every training (in
outputs/demo_0.5), at the cost of what the pictures show.
"""
log = logging.getLogger("demo")


def parse(arguments: Sequence[str]) -> tuple[Recipe, bool]:
    """The recipe that the arguments ask for, and whether to start over.

    Raises:
        ValueError: names an argument that isn't understood.

    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if unknown := sorted(given.keys() - {"recipe", "length", "out", "fresh"}):
        raise ValueError(f"unknown argument {unknown[0]!r}: expected recipe=, length=, out= or fresh=true")
    name = given.get("recipe", "shapes")
    if name not in RECIPES:
        raise ValueError(f"recipe is one of {', '.join(RECIPES)}, got {name!r}")
    if given.get("fresh", "false") not in ("true", "false"):
        raise ValueError(f"fresh is true or false, got {given['fresh']!r}")
    length = share(given.get("length", "1"))
    folder = ("demo" if name == "shapes" else name) + ("" if length == 1 else f"_{length:g}")
    recipe = RECIPES[name](Path(given.get("out", f"outputs/{folder}")))
    return replace(recipe, length=length), given.get("fresh") == "true"


def share(word: str) -> float:
    """A length of trainings: a positive number.

    Raises:
        ValueError: for anything else.

    """
    try:
        length = float(word)
    except ValueError:
        length = math.nan
    if not 0 < length < math.inf:
        raise ValueError(f"length is a share of the recipe's steps, such as 0.5, got {word!r}")
    return length


def steps_of(recipe: Recipe) -> list[Step]:
    """Everything from shards to report."""
    steps = [
        Step(
            f"data/{name}",
            "writing shards",
            command,
            command,
            makes=[Path(word[4:]) for word in command if word.startswith("out=")],
        )
        for name, command in recipe.data.items()
    ]
    steps += [
        recipe.training_step("tokenizer", "learning to write images as token maps"),
        keeping(
            "the tokenizer",
            recipe.tokenizer_checkpoint,
            lambda: export(recipe.tokenizer_run, recipe.tokenizer_checkpoint),
        ),
        recipe.training_step("generator", "learning to draw token maps from captions"),
        keeping(
            "the model", recipe.generator_checkpoint, lambda: export(recipe.generator_run, recipe.generator_checkpoint)
        ),
    ]
    if recipe.refined is not None:
        steps += [
            recipe.training_step("sampler", "learning to reveal late token maps in steps"),
            keeping("the refiner", recipe.refiner_checkpoint, lambda: keep_refiner(recipe)),
        ]
    if recipe.scored:
        steps += [
            scoring(
                recipe,
                "scores",
                "drawing the evaluation's captions and scoring them",
                "shapes",
                "batch=132",
                "precision=auto",
            ),
            scoring(recipe, "understanding", "telling true captions from wrong ones", "minimal_pairs", "batch=66"),
        ]
    drawn = [path for _, path in drawings(recipe)]
    steps.append(Step("figures", "samples.png, scales.png, training curves", lambda: draw_figures(recipe), makes=drawn))
    return steps


def keeping(what: str, to: Path, keep: Callable[[], None]) -> Step:
    """Writing one of the files that a finished demo leaves."""
    return Step(to.name, f"keeping {what}", keep, makes=[to])


def scoring(recipe: Recipe, name: str, says: str, metric: str, *more: str) -> Step:
    """One metric of the finished model as a step, shared by processes; only rounding depends on how many."""
    out = recipe.evaluation if metric == "shapes" else recipe.understanding
    command = ["evaluate.py", f"metric={metric}", f"ckpt={recipe.generator_checkpoint}", f"out={out}", *more]
    processes, threads = helpers()
    return Step(
        name, says, command, command, owns=[out], makes=[out / "card.json"], threads=threads, processes=processes
    )


def helpers() -> tuple[int, int | None]:
    """How many processes should draw, and the threads of each: a small model keeps several busier than one.

    A GPU has one; None leaves the threads to PyTorch.
    """
    import torch

    from star.utils.devices import choose_device

    cores = torch.get_num_threads()
    if choose_device("auto") != "cpu" or cores == 1:
        return 1, None
    processes = max(count for count in (1, 2, 3, 4) if cores % count == 0)
    return processes, cores // processes


def start_over(out: Path) -> None:
    """Remove what an earlier demo left.

    Raises:
        ValueError: for a folder of something else.

    """
    if out.is_dir() and any(out.iterdir()) and not (out / "steps.json").is_file():
        raise ValueError(f"out={out} holds something, but no demo that could start over: choose another out=")
    shutil.rmtree(out, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if {"-h", "--help", "help"} & set(arguments):
        sys.stdout.write(HELP)
        return
    with readable_errors():
        if not Path("train.py").is_file():
            raise FileNotFoundError("no train.py here: run from the project's root")
        recipe, fresh = parse(arguments)
        if fresh:
            start_over(recipe.out)
        recipe.out.mkdir(parents=True, exist_ok=True)
        steps = Steps(recipe.out / "steps.json")
        steps.run(steps_of(recipe))
        write_report(recipe, steps)
        log.info("look at %s", recipe.out / "report.html")


if __name__ == "__main__":
    main()
