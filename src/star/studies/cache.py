"""`python -m star.studies.cache [recipe=published|demo] [kinds=codes,latents] [paths.tokenizer=RUN] ...`.

What a cache saves: seconds of a training step of the generator (reading, tokens, texts, forward, loss, backward,
optimiser) on pictures, against the same step on their cached codes or latents, and how large a cached picture is.
`published` is a nano generator behind the published tokenizer at 256 pixels, `demo` is the demo's generator behind its
own; without paths.tokenizer= their weights are random, which changes no time. Any other word is one of train.py's.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from star.checkpoints import io
from star.data.cache import cache, parse
from star.data.cache_header import KINDS
from star.data.shapes import ShapesSettings, write_shards
from star.studies import command
from star.training.generator_module import GeneratorModule
from star.types import Batch
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

HELP = f"""{__doc__}
Settings, and what they are unless given:
  recipe=published     or demo
  kinds=codes,latents  of {", ".join(KINDS)}
  images=16            pictures that are drawn and cached; 128 for demo
  repeats=5            timed steps of each; they take turns
  precision=auto       what the device is fast in; or bfloat16, float32, float16: of autocast, in training
  device=cpu
  out=FILE.json        keep the numbers
"""
OWN: dict[str, Callable[[str], Any]] = {
    "recipe": str,
    "kinds": command.words,
    "images": command.count,
    "repeats": command.count,
    "precision": str,
    "device": str,
    "out": Path,
}
DEFAULTS: dict[str, Any] = {"recipe": "published", "kinds": list(KINDS), "images": None, "repeats": 5}
DEFAULTS |= {"precision": "auto", "device": "cpu", "out": None}
RECIPES = {
    "published": ("stage=256", "model=nano", "text_encoder=word_transformer", "data=shapes", "batch_size=4"),
    "demo": ("experiment=demo",),
}
IMAGES = {"published": 16, "demo": 128}
READING = ("data.num_workers=0", "data.shuffle_buffer=1")  # in this process, so that it counts


def study(arguments: Sequence[str]) -> None:
    """Measure and show."""
    given, overrides = command.split_arguments(arguments, OWN)
    settings = DEFAULTS | given
    if settings["recipe"] not in RECIPES:
        raise ValueError(f"recipe is one of {', '.join(RECIPES)}, got {settings['recipe']!r}")
    if unknown := set(settings["kinds"]) - set(KINDS):
        raise ValueError(f"kinds are some of {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    settings["images"] = settings["images"] or IMAGES[settings["recipe"]]
    with tempfile.TemporaryDirectory() as folder:
        common = prepare(Path(folder), settings["images"], [*RECIPES[settings["recipe"]], *overrides, *READING])
        rows = measure(Path(folder), common, settings)
    title = f"a training step of recipe={settings['recipe']}, {' '.join(overrides)}"
    command.present(title, rows, settings["out"], settings)


def prepare(folder: Path, images: int, overrides: Sequence[str]) -> list[str]:
    """Draw pictures, make a tokenizer if none is given; the overrides that name both."""
    config = plain(compose("train", overrides))
    shapes = ShapesSettings(num_images=images, size=config["resolution"], samples_per_shard=images)
    for split in ("train", "validation"):
        write_shards(folder / "shapes" / split, shapes, workers=1, progress=False)
    common = [*overrides, f"paths.data={folder}"]
    if config["paths"]["tokenizer"] is not None:
        return common
    torch.manual_seed(0)
    state = {f"tokenizer.{name}": value for name, value in instantiate(config["tokenizer"]).state_dict().items()}
    torch.save({"state_dict": state, "config": config}, folder / "tokenizer.ckpt")
    return [*common, f"paths.tokenizer={folder / 'tokenizer.ckpt'}"]


def measure(folder: Path, common: Sequence[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for pictures, then one for each kind of cache; ratios are to the pictures."""
    sources = {"pictures": list(common)}
    for kind in settings["kinds"]:
        out = folder / kind
        logging.getLogger("cache").setLevel(logging.WARNING)
        cache(parse([f"out={out}", f"kind={kind}", f"device={settings['device']}", *common]))
        # an override of the data comes after whatever a recipe chooses
        sources[kind] = [*common, "data=cached", f"data.directory={out}"]
    step = Step(plain(compose("train", common)), settings["precision"], settings["device"])
    batches = {name: _batches(overrides) for name, overrides in sources.items()}
    runs = {name: lambda found=found: step(next(found)) for name, found in batches.items()}
    seconds = command.interleaved(runs, repeats=settings["repeats"])
    rows: list[dict[str, Any]] = []
    for name, times in seconds.items():
        place = folder / "shapes" / "train" if name == "pictures" else folder / name / "train" / "shapes"
        size = sum(file.stat().st_size for file in place.glob("*.tar")) / settings["images"] / 1024
        row = {"trained on": name, "seconds": command.median(times), "KiB a picture": size}
        row["times faster"] = (rows[0] if rows else row)["seconds"] / row["seconds"]
        rows.append(row)
    return rows


def _batches(overrides: Sequence[str]) -> Iterator[Batch]:
    """Training batches of the configured data."""
    return iter(instantiate(plain(compose("train", overrides))["data"]).train_dataloader())


class Step:
    """A training step of the configured generator.

    Args:
        config: resolved, of train.py.
        precision: of autocast: `auto`, `bfloat16`, `float16`; `float32` for none.
        device: where.

    """

    def __init__(self, config: dict[str, Any], precision: str, device: str) -> None:
        self.dtype, self.device = command.dtype(precision, device), torch.device(device)
        self.module: GeneratorModule = instantiate(config["module"])
        weights = io.part(io.weights(io.read(config["paths"]["tokenizer"])), "tokenizer.")
        io.load(self.module.tokenizer, weights, what="tokenizer")
        self.module.to(self.device).train()
        self.optimizer, _ = self.module.optimizer.build(self.module.named_parameters(), 1000)

    def __call__(self, batch: Batch) -> None:
        """One step."""
        from lightning.fabric.utilities import move_data_to_device

        batch = move_data_to_device(batch, self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            report = self.module.loss(batch, self.module.caption_dropout)
        report.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command.run(HELP, study, arguments)


if __name__ == "__main__":
    main()
