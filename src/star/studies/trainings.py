"""Short trainings for the studies: the demo's recipe with some values changed, done once and resumed if interrupted."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from star.checkpoints import io
from star.demo.figures import read_series
from star.demo.recipes import configuration
from star.demo.steps import Step, Steps

log = logging.getLogger("studies")


def train(name: str, overrides: Sequence[str], *, out: Path, steps: int, every: int) -> Path:
    """Train a generator by the demo's recipe, unless that was done before with the same settings.

    Args:
        name: of the run directory in `out`.
        overrides: of train.py; `paths.data` and `paths.tokenizer` among them.
        out: where run directories go.
        steps: length of the training.
        every: steps between validations.

    Returns:
        The run directory.

    Raises:
        FileNotFoundError: away from the project's root.
        ChildProcessError: when the training fails.

    """
    if not Path("train.py").is_file():
        raise FileNotFoundError("no train.py here: run from the project's root")
    run = out / name
    words = [
        "experiment=demo",
        f"length.generator.steps={steps}",
        f"trainer.val_check_interval={min(every, steps)}",
        "callbacks.pictures=null",
        f"paths.run_dir={run}",
        "resume_from=auto",
        *overrides,
    ]
    out.mkdir(parents=True, exist_ok=True)
    step = Step(name, f"{steps} steps", ["train.py", *words], configuration(words), owns=[run])
    record = out / f"{name}.json"
    if outdated(record, words):
        log.info("%s began with another tokenizer or other weights: anew", run)
        shutil.rmtree(run, ignore_errors=True)
        record.unlink()
    Steps(record).run([step])
    return run


def outdated(record: Path, words: Sequence[str]) -> bool:
    """Whether what a training begins with was written after the training was: the same paths then say another thing."""
    given = (word.partition("=")[::2] for word in words)
    begun = [value for key, value in given if key in ("paths.tokenizer", "init_from")]
    written = record.stat().st_mtime if record.is_file() else math.inf
    return any(io.find(value).stat().st_mtime > written for value in begun)


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    """A run's logged values as (step, value); the first step is 1.

    Raises:
        ValueError: when the run has logged no such value.

    """
    series = read_series(run / "metrics.csv")
    if name not in series:
        raise ValueError(f"{run} has logged no {name!r}: it was too short, or nothing was validated")
    return [(step + 1, value) for step, value in series[name]]


def reached(values: Sequence[tuple[int, float]], target: float) -> int | None:
    """The first step at which a falling curve is at `target` or below; None if it never is."""
    return next((step for step, value in values if value <= target), None)
