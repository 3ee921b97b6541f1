"""`python -m star.studies.positions tokenizer=CKPT data=DIR [kinds=normalized,absolute,...] [steps=400] ...`.

The paper's Fig. 8 and its ablation of positions in miniature: generators that differ in their positions alone, trained
equally long. Which learns fastest, and how accurate is it on held-out captions? From the project's root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from star.studies import command
from star.studies.trainings import curve, reached, train

HELP = f"""{__doc__}
Settings, and what they are unless given:
  tokenizer=           run directory or checkpoint of the tokenizer (needed)
  data=                folder of the demo's shards (needed)
  kinds=normalized,normalized_length,axial,absolute  of conf/position
  seeds=0              comma-separated; rows are means over them
  steps=400 every=50   of each training, and between two validations
  runs=outputs/studies/runs
  out=FILE.json        keep the numbers
Any other word is one of train.py's, for all trainings.
"""
OWN: dict[str, Callable[[str], Any]] = {name: Path for name in ("tokenizer", "data", "runs", "out")}
OWN |= {"kinds": command.words, "seeds": command.words, "steps": command.count, "every": command.count}
DEFAULTS: dict[str, Any] = {"kinds": ["normalized", "normalized_length", "axial", "absolute"], "seeds": ["0"]}
DEFAULTS |= {"steps": 400, "every": 50, "runs": Path("outputs/studies/runs"), "out": None}


def study(arguments: Sequence[str]) -> None:
    """Train what isn't trained yet, and compare."""
    given, overrides = command.split_arguments(arguments, OWN)
    settings = DEFAULTS | given
    if missing := [name for name in ("tokenizer", "data") if name not in settings]:
        raise ValueError(f"set {missing[0]}=, see --help")
    runs = {kind: [run_of(settings, kind, seed, overrides) for seed in settings["seeds"]] for kind in settings["kinds"]}
    title = f"positions, {settings['steps']} steps each"
    command.present(title, compare(runs), settings["out"], settings | {"overrides": overrides})


def run_of(settings: Mapping[str, Any], kind: str, seed: str, overrides: Sequence[str]) -> Path:
    """One training."""
    words = [f"paths.tokenizer={settings['tokenizer']}", f"paths.data={settings['data']}"]
    words += [f"position={kind}", f"seed={seed}", *overrides]
    name = f"position_{kind}_{seed}"
    return train(name, words, out=settings["runs"], steps=settings["steps"], every=settings["every"])


def compare(runs: Mapping[str, Sequence[Path]]) -> list[dict[str, Any]]:
    """A row for each kind, means over seeds; speed is to the loss at which the slowest kind ends."""
    losses = {kind: [curve(run, "val/loss") for run in own] for kind, own in runs.items()}
    target = max(mean([values[-1][1] for values in own]) for own in losses.values())
    rows = []
    for kind, own in runs.items():
        first = [reached(values, target) for values in losses[kind]]
        rows.append(
            {
                "position": kind,
                "loss": mean([values[-1][1] for values in losses[kind]]),
                "accuracy": mean([curve(run, "val/accuracy")[-1][1] for run in own]),
                "steps to the slowest's loss": "-" if None in first else mean([step for step in first if step]),
            }
        )
    return rows


def mean(values: Sequence[float]) -> float:
    """The arithmetic one."""
    return sum(values) / len(values)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command.run(HELP, study, arguments)


if __name__ == "__main__":
    main()
