"""`python -m star.studies.sizes tokenizer=CKPT data=DIR [depths=2,6] [steps=400] [steps_large=200] ...`.

The paper's Table 2 in miniature: generators of two depths at 64 pixels, and the deeper one gone on with at 128 pixels.
Each draws the frozen captions and is judged: how many pictures show what their caption says, at how many seconds a
picture? From the project's root.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from star.data.shapes import ShapesSettings, write_shards
from star.evaluation.run import evaluate
from star.metrics.shapes import load_suite
from star.pipeline import STARPipeline
from star.studies import command
from star.studies.trainings import curve, train
from star.utils.cli import compose, plain

TIMED = 16  # pictures that are drawn together while the clock runs
HELP = f"""{__doc__}
Settings, and what they are unless given:
  tokenizer=           run directory or checkpoint of the tokenizer (needed)
  data=                folder of the demo's shards, of 64 pixels (needed)
  depths=2,6           numbers of blocks
  steps=400            of each training at 64 pixels
  steps_large=200      of the one that goes on at 128 pixels
  images=4096          drawn for it
  per_caption=1        pictures of each caption that are judged
  runs=outputs/studies/runs
  out=FILE.json        keep the numbers
Any other word is one of train.py's, for all trainings.
"""
OWN: dict[str, Callable[[str], Any]] = {name: Path for name in ("tokenizer", "data", "runs", "out")}
OWN |= dict.fromkeys(("steps", "steps_large", "images", "per_caption"), command.count)
OWN["depths"] = lambda text: [command.count(word) for word in command.words(text)]
DEFAULTS: dict[str, Any] = {"depths": [2, 6], "steps": 400, "steps_large": 200, "images": 4096, "per_caption": 1}
DEFAULTS |= {"runs": Path("outputs/studies/runs"), "out": None}


def study(arguments: Sequence[str]) -> None:
    """Train what isn't trained yet, judge, and compare."""
    given, overrides = command.split_arguments(arguments, OWN)
    settings = DEFAULTS | given
    if missing := [name for name in ("tokenizer", "data") if name not in settings]:
        raise ValueError(f"set {missing[0]}=, see --help")
    found = trainings(settings, overrides)
    rows = [row(run, depth, side, settings["per_caption"]) for run, depth, side in found]
    command.present("depth and resolution", rows, settings["out"], settings | {"overrides": overrides})


def trainings(settings: Mapping[str, Any], overrides: Sequence[str]) -> list[tuple[Path, int, int]]:
    """Run directory, depth and pixels of each."""
    runs: Path = settings["runs"]
    shared = [f"paths.tokenizer={settings['tokenizer']}", *overrides]
    found = []
    for depth in settings["depths"]:
        words = [f"paths.data={settings['data']}", f"model.depth={depth}", *shared]
        steps = settings["steps"]
        found.append((train(f"depth_{depth}", words, out=runs, steps=steps, every=100), depth, 64))
    before, depth, _ = found[-1]
    data = runs / "data_128"
    for split, name, seed, count in (("train", "train", 0, settings["images"]), ("heldout", "validation", 1, 256)):
        shapes = ShapesSettings(num_images=count, split=split, seed=seed, size=128)
        write_shards(data / "shapes" / name, shapes, workers=1, overwrite=True, progress=False)
    words = ["stage=128", f"paths.data={data}", f"model.depth={depth}", f"init_from={before}", *shared]
    large = train(f"depth_{depth}_128", words, out=runs, steps=settings["steps_large"], every=100)
    return [*found, (large, depth, 128)]


def row(run: Path, depth: int, side: int, per_caption: int) -> dict[str, Any]:
    """What one generator achieves."""
    pipeline = STARPipeline.from_checkpoint(run)
    prompts = [record["prompt"] for record in load_suite("shapes")[:TIMED]]
    seconds = command.interleaved({"draw": lambda: pipeline.draw(prompts, list(range(TIMED)))}, repeats=3)["draw"]
    scores = score(run, per_caption)
    return {
        "depth": depth,
        "pixels": side,
        "parameters (M)": sum(part.numel() for part in pipeline.transformer.parameters()) / 1e6,
        "loss": curve(run, "val/loss")[-1][1],
        "right": scores["value"],
        "interval": [round(bound, 3) for bound in scores["interval"]],
        "seconds a picture": min(seconds) / TIMED,
    }


def score(run: Path, per_caption: int) -> dict[str, Any]:
    """The card of metric=shapes for a run; drawn pictures are used again."""
    out = run / "evaluation"
    words = ["metric=shapes", f"ckpt={run}", f"out={out}", f"paths.pictures={run / 'drawn'}", "batch=132"]
    words.append("sampling.best_of.count=1")  # how well a model draws, not how well it chooses
    words.append(f"metric.items.shapes.num_images={per_caption}")
    words += [f"metric.items.shapes.{part}=false" for part in ("seen", "ceiling", "renders", "shuffled")]
    evaluate(plain(compose("evaluate", words)))
    card: dict[str, Any] = json.loads((out / "card.json").read_text())
    return card


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command.run(HELP, study, arguments)


if __name__ == "__main__":
    main()
