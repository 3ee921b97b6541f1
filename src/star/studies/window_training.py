"""`python -m star.studies.window_training tokenizer=CKPT data=DIR [full=RUN] [steps_window=1000] ...`.

Does training on local windows pay (STAR section 4.4)? One generator is trained on all tokens; another on windows of
the late scales, then for a short while on all tokens, which the paper's appendix B.2 asks for. Both draw the frozen
captions and are judged. Seconds are those of a step of each kind, taken side by side, times their number: trainings
run at different times of a machine's day. From the project's root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from star.studies import command
from star.studies.resume import saved_step
from star.studies.sizes import score
from star.studies.trainings import curve, train
from star.studies.windows import Step, measure
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

HELP = f"""{__doc__}
Settings, and what they are unless given:
  tokenizer=           run directory or checkpoint of the tokenizer (needed)
  data=                folder of the demo's shards (needed)
  full=                run directory of a generator trained on all tokens; by default one is trained
  steps=1100           of that training
  steps_window=1000 steps_after=600  on windows, and then on all tokens
  lr_after=2.0e-3      the learning rate of the latter
  steps_short=         of one more training on all tokens, to see what the windows add: give it as many steps as take
                       as long as the two together; by default there is none
  per_caption=1        pictures of each caption that are judged
  repeats=5            timed steps of each kind; they take turns
  runs=outputs/studies/runs
  out=FILE.json        keep the numbers
Any other word is one of train.py's, for all trainings; train_tokens.windows=[[3,4],[5,8]] for the one on windows.
"""
OWN: dict[str, Callable[[str], Any]] = {name: Path for name in ("tokenizer", "data", "full", "runs", "out")}
OWN |= dict.fromkeys(("steps", "steps_window", "steps_after", "steps_short", "per_caption", "repeats"), command.count)
OWN["lr_after"] = float
DEFAULTS: dict[str, Any] = {"full": None, "steps": 1100, "steps_window": 1000, "steps_after": 600, "lr_after": 2e-3}
DEFAULTS |= {"steps_short": None, "per_caption": 1, "repeats": 5, "runs": Path("outputs/studies/runs"), "out": None}
WINDOW = "train_tokens=local_window"


def study(arguments: Sequence[str]) -> None:
    """Train what isn't trained yet, judge, time a step of each kind, and compare."""
    given, overrides = command.split_arguments(arguments, OWN)
    settings = DEFAULTS | given
    if missing := [name for name in ("tokenizer", "data") if name not in settings]:
        raise ValueError(f"set {missing[0]}=, see --help")
    windows = [word for word in overrides if word.startswith("train_tokens.")]
    shared = [f"paths.tokenizer={settings['tokenizer']}", f"paths.data={settings['data']}"]
    shared += [word for word in overrides if word not in windows]
    runs = runs_of(settings, shared, windows)
    seconds = seconds_of(shared, windows, settings["repeats"])
    spent = {
        name: saved_step(run) * seconds["window" if name == "window" else "all"]  # validations may end before the run
        for name, run in runs.items()
    }
    spent["window, then all"] += spent["window"]
    rows = [row(name, run, spent[name], settings["per_caption"]) for name, run in runs.items()]
    for one in rows:
        one["share of the time"] = one["seconds"] / rows[0]["seconds"]
    command.present("local windows, then all tokens", rows, settings["out"], settings | {"overrides": overrides})


def runs_of(settings: Mapping[str, Any], shared: Sequence[str], windows: Sequence[str]) -> dict[str, Path]:
    """Run directories: all tokens, windows, all tokens after these, and perhaps all tokens for a shorter time."""
    out: Path = settings["runs"]
    full: Path = settings["full"]
    if full is None:
        full = train("tokens_all", shared, out=out, steps=settings["steps"], every=100)
    before = train("tokens_window", [WINDOW, *windows, *shared], out=out, steps=settings["steps_window"], every=100)
    more = [f"init_from={before}", f"length.generator.lr={settings['lr_after']}", *shared]
    after = train("tokens_after", more, out=out, steps=settings["steps_after"], every=100)
    runs = {"all": full, "window": before, "window, then all": after}
    if settings["steps_short"]:
        runs["all, shorter"] = train("tokens_short", shared, out=out, steps=settings["steps_short"], every=100)
    return runs


def seconds_of(shared: Sequence[str], windows: Sequence[str], repeats: int) -> dict[str, float]:
    """Of a step of each kind, the tokenizer and the text encoder left out."""
    kinds = {"all": ["train_tokens=all"], "window": [WINDOW, *windows]}
    configs = {name: plain(compose("train", ["experiment=demo", *shared, *words])) for name, words in kinds.items()}
    config = configs["all"]
    torch.manual_seed(0)
    step = Step(
        instantiate(config["model"]),
        instantiate(config["schedule"]),
        batch=config["batch_size"],
        text_tokens=16,
        precision=command.dtype("auto"),
        device="cpu",
    )
    objectives = {name: instantiate(one["module"]["objective"]) for name, one in configs.items()}
    return {row["train_tokens"]: row["seconds"] for row in measure(step, objectives, repeats)}


def row(name: str, run: Path, seconds: float, per_caption: int) -> dict[str, Any]:
    """What a training achieves, and what it takes."""
    scores = score(run, per_caption)
    return {
        "training": name,
        "seconds": seconds,
        "loss": curve(run, "val/loss")[-1][1],
        "right": scores["value"],
        "interval": [round(bound, 3) for bound in scores["interval"]],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command.run(HELP, study, arguments)


if __name__ == "__main__":
    main()
