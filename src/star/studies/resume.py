"""`python -m star.studies.resume [kills=10] [out=outputs/resume] [any override of train.py]`.

Trains `experiment=resume_check` once from beginning to end, and then again and again, each time killed (SIGKILL) at a
random moment of a step, of a validation or of the writing of a checkpoint, and started once more. Every resumed
training has to end with the same bits as the uninterrupted one: weights, averages, optimiser, schedules, data. Any
other word goes to train.py: experiment=..., trainer.max_steps=..., paths.data=...
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from star.checkpoints import io
from star.data.shapes import ShapesSettings, write_shards
from star.studies import command

HELP = f"""{__doc__}
Settings, and what they are unless given:
  kills=10             trainings that are killed and resumed
  seed=0               of the moments
  out=outputs/resume   where everything goes; a new folder
"""
OWN: dict[str, Callable[[str], Any]] = {"kills": command.count, "seed": int, "out": Path}
PHASES = ("step", "validation", "checkpoint")
COMPARED = ("epoch", "global_step", "state_dict", "averaged", "optimizer_states", "lr_schedulers", "ShardDataModule")


class Bomb(Callback):
    """Kills the process without warning.

    Args:
        phase: what has to begin first: `step`, `validation` or `checkpoint`.
        occurrence: for the how many-th time, from 1.
        delay: seconds from there.

    Raises:
        ValueError: for another phase.

    """

    def __init__(self, phase: str, *, occurrence: int, delay: float) -> None:
        if phase not in PHASES:
            raise ValueError(f"a phase is one of {', '.join(PHASES)}, got {phase!r}")
        self.phase = phase
        self.delay = delay
        self._left = occurrence

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step begins."""
        self._begins("step")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation begins."""
        self._begins("validation")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be written."""
        self._begins("checkpoint")

    def _begins(self, phase: str) -> None:
        if phase != self.phase:
            return
        self._left -= 1
        if self._left == 0:
            threading.Thread(target=self._explode, daemon=True).start()

    def _explode(self) -> None:
        time.sleep(self.delay)
        os.kill(os.getpid(), signal.SIGKILL)


def study(arguments: Sequence[str]) -> None:
    """Train, kill, resume, compare.

    Raises:
        FileExistsError: when there are trainings in `out` already.
        SystemExit: when a resumed training ends with other bits.

    """
    given, overrides = command.split_arguments(arguments, OWN)
    settings: dict[str, Any] = {"kills": 10, "seed": 0, "out": Path("outputs/resume")} | given
    out: Path = settings["out"]
    if not any(word.startswith("experiment=") for word in overrides):
        overrides = ["experiment=resume_check", *overrides]
    if not any(word.startswith("paths.data=") for word in overrides):
        overrides.append(f"paths.data={draw_data(out / 'data')}")
    rng = random.Random(settings["seed"])
    straight = out / "straight"
    if straight.exists():
        raise FileExistsError(f"{straight} is there already: choose another out=")
    train(straight, overrides)
    rows = [kill_and_resume(out / f"killed_{i:02d}", straight, overrides, rng, i) for i in range(settings["kills"])]
    command.present("trainings killed and resumed", rows, out / "resume.json", settings)
    if wrong := [row["run"] for row in rows if row["differences"]]:
        raise SystemExit(f"{len(wrong)} of {len(rows)} resumed trainings ended differently: {', '.join(wrong)}")


def kill_and_resume(
    run: Path, straight: Path, overrides: Sequence[str], rng: random.Random, number: int
) -> dict[str, Any]:
    """One training that is killed once and resumed, and how it differs from the uninterrupted one."""
    phase = PHASES[number % len(PHASES)]
    occurrence, delay = rng.randint(1, 8), rng.uniform(0.0, 0.05)
    bomb = f"{{_target_: star.studies.resume.Bomb, phase: {phase}, occurrence: {occurrence}, delay: {delay:.4f}}}"
    code = train(run, [*overrides, f"+callbacks.bomb={bomb}"], expected=(-signal.SIGKILL, 0))
    left = sorted(path.name for path in (run / "checkpoints").glob(".*.partial"))
    reached = saved_step(run)
    train(run, [*overrides, "resume_from=auto"])
    found = list(differences(io.read(straight), io.read(run)))
    return {
        "run": run.name,
        "killed in": phase if code else "nothing: it was over",
        "after": f"{occurrence}. + {delay * 1000:.0f} ms",
        "half-written": ", ".join(left),
        "resumed at": reached,
        "differences": "; ".join(found[:3]),
    }


def train(run: Path, overrides: Sequence[str], *, expected: Sequence[int] = (0,)) -> int:
    """Run train.py and return its code.

    Raises:
        RuntimeError: when it is none of the expected ones, with what it said.

    """
    words = [sys.executable, "train.py", *overrides, f"paths.run_dir={run}"]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ  # steps this small gain nothing from more
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in expected:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.returncode


def draw_data(folder: Path) -> Path:
    """Shapes enough for the check, drawn once."""
    for name, split, seed in (("train", "train", 0), ("validation", "heldout", 1)):
        settings = ShapesSettings(num_images=512 if name == "train" else 64, split=split, seed=seed)
        write_shards(folder / "shapes" / name, settings, workers=1, progress=False)
    return folder


def saved_step(run: Path) -> int:
    """The step of a run's last checkpoint; 0 without one."""
    try:
        return int(io.read(run, mmap=True)["global_step"])
    except FileNotFoundError:
        return 0


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two checkpoints, to the bit, by its path; not what only names the run."""
    for key in COMPARED:
        if key in one or key in other:
            yield from _differences(one.get(key), other.get(key), key)


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted(one.keys() | other.keys(), key=str):
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for place, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(*pair, f"{path}.{place}")
    elif isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype or not torch.equal(one, other):
            yield path
    elif one != other:
        yield path


if __name__ == "__main__":
    command.run(HELP, study, None)
