"""`python -m star.studies.progressive tokenizer=RUN [positions=normalized,absolute] [steps=800] ...`.

The paper's Fig. 8 in miniature: a generator for 128-pixel shapes is trained from scratch, and one that begins with a
64-pixel generator; how many steps does the second need to reach the first one's last validation loss? Once for each
kind of position. What is finished is used again, what was interrupted goes on. From the project's root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from star.demo.figures import read_series
from star.demo.recipes import configuration
from star.demo.steps import Step, Steps
from star.studies import command

HELP = f"""{__doc__}
Settings, and what they are unless given:
  tokenizer=           run directory or checkpoint of the tokenizer that all generators use (needed)
  before=              a 64-pixel generator for all kinds of position, instead of training one for each
  positions=normalized,absolute
  steps=800            of the training from scratch
  steps_after=400      of the one that begins with the 64-pixel generator: its schedule ends there
  steps_before=1400    of the 64-pixel generator
  every=50             steps between two validations
  images=8192          drawn for training at each size
  out=outputs/progressive
Any other word is one of train.py's, for all trainings (length.generator.batch=16 init_rule=index ...).
"""
OWN: dict[str, Callable[[str], Any]] = {"tokenizer": Path, "before": Path, "positions": command.words, "out": Path}
OWN |= dict.fromkeys(("steps", "steps_after", "steps_before", "every", "images"), command.count)
DEFAULTS: dict[str, Any] = {"before": None, "positions": ["normalized", "absolute"], "steps": 800, "steps_after": 400}
DEFAULTS |= {"steps_before": 1400, "every": 50, "images": 8192, "out": Path("outputs/progressive")}


def study(arguments: Sequence[str]) -> None:
    """Train what isn't trained yet, and compare."""
    given, overrides = command.split_arguments(arguments, OWN)
    settings = DEFAULTS | given
    if "tokenizer" not in settings:
        raise ValueError("set tokenizer= to a run directory or checkpoint of task=tokenizer")
    if not Path("train.py").is_file():
        raise FileNotFoundError("no train.py here: run from the project's root")
    Steps(settings["out"] / "steps.json").run(steps_of(settings, overrides))
    rows = []
    for position in settings["positions"]:
        scratch, grown = (
            read_series(settings["out"] / f"{name}_{position}" / "metrics.csv")["val/loss"]
            for name in ("scratch", "grown")
        )
        rows.append({"position": position, **compare(scratch, grown)})
    command.present("128 pixels, from scratch and from 64", rows, settings["out"] / "progressive.json", settings)


def compare(scratch: Sequence[tuple[int, float]], grown: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """How soon one curve of (step, loss) reaches the last value of another; a logger counts steps from 0."""
    last, target = scratch[-1]
    reached = next((step + 1 for step, value in grown if value <= target), None)
    return {
        "target loss": target,
        "steps from scratch": last + 1,
        "steps from 64": "never" if reached is None else reached,
        "share of steps": "-" if reached is None else reached / (last + 1),
        "last loss from 64": grown[-1][1],
    }


def steps_of(settings: Mapping[str, Any], overrides: Sequence[str]) -> list[Step]:
    """Shards of both sizes, then the trainings."""
    steps = [_shards(settings, size, split) for size in (64, 128) for split in ("train", "validation")]
    for position in settings["positions"]:
        before = settings["before"]
        if before is None:
            before = settings["out"] / f"before_{position}"
            count = settings["steps_before"]
            steps.append(_training(settings, f"before_{position}", 64, count, [f"position={position}", *overrides]))
        more = [f"position={position}", *overrides]
        steps.append(_training(settings, f"scratch_{position}", 128, settings["steps"], more))
        more = [f"init_from={before}", *more]
        steps.append(_training(settings, f"grown_{position}", 128, settings["steps_after"], more))
    return steps


def _shards(settings: Mapping[str, Any], size: int, split: str) -> Step:
    """As in the demo: validated on what training never shows."""
    training = split == "train"
    words = ["-m", "star.data.shapes", f"size={size}", f"out={settings['out'] / f'data_{size}' / 'shapes' / split}"]
    words += [f"num_images={settings['images'] if training else 512}", f"seed={0 if training else 1}"]
    words += [f"split={'train' if training else 'heldout'}", "overwrite=true"]
    return Step(f"{split} shards of {size} pixels", "writing shards", words, words)


def _training(settings: Mapping[str, Any], name: str, size: int, count: int, more: Sequence[str]) -> Step:
    overrides = [
        "experiment=demo",
        f"stage={size}",
        f"paths.data={settings['out'] / f'data_{size}'}",
        f"paths.tokenizer={settings['tokenizer']}",
        f"paths.run_dir={settings['out'] / name}",
        f"length.generator.steps={count}",
        f"trainer.val_check_interval={min(settings['every'], count)}",
        "resume_from=auto",
        *more,
    ]
    says = f"{count} steps at {size} pixels"
    return Step(name, says, ["train.py", *overrides], configuration(overrides), owns=[settings["out"] / name])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command.run(HELP, study, arguments)


if __name__ == "__main__":
    main()
