"""`python -m star.studies.locality ckpt=outputs/demo/star.ckpt [images=16] [radius=0.2] ...`: appendix C in miniature.

Where do tokens of the last scale look? For every block: how much of their attention stays in their own scale, and how
much falls on tokens near their own place of the picture, in whatever scale; beside what attention without preferences
would give. On held-out shapes under teacher forcing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star.data.shapes import ShapesSettings, draw_sample
from star.figures import draw
from star.pipeline import STARPipeline
from star.sampling.attention import attention_maps
from star.schedule import ScaleSchedule
from star.studies import command

HELP = f"""{__doc__}
Settings, and what they are unless given:
  ckpt=                a generator (needed)
  images=16            held-out pictures
  every=7              every seventh token of the last scale is looked at
  radius=0.2           what is near, as a share of the picture's side
  seed=0
  out=FILE.json        keep the numbers
"""
OWN: dict[str, Callable[[str], Any]] = {"ckpt": Path, "radius": float, "seed": int, "out": Path}
OWN |= dict.fromkeys(("images", "every"), command.count)
DEFAULTS: dict[str, Any] = {"images": 16, "every": 7, "radius": 0.2, "seed": 0, "out": None}


def study(arguments: Sequence[str]) -> None:
    """Measure and show."""
    given, rest = command.split_arguments(arguments, OWN)
    command.refuse(rest, list(OWN))
    settings = DEFAULTS | given
    if "ckpt" not in settings:
        raise ValueError("set ckpt= to a generator's checkpoint, such as outputs/demo/star.ckpt")
    pipeline = STARPipeline.from_checkpoint(settings["ckpt"])
    command.present("attention of the last scale's tokens", measure(pipeline, settings), settings["out"], settings)


def measure(pipeline: STARPipeline, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each block, the means over tokens and pictures."""
    schedule, tokenizer = pipeline.schedule, pipeline.tokenizer
    shapes = ShapesSettings(num_images=settings["images"], split="heldout", seed=settings["seed"])
    queries = range(schedule.offsets[-2], schedule.total, settings["every"])
    found: list[list[dict[str, float]]] = [[] for _ in range(pipeline.transformer.depth)]
    for index in range(settings["images"]):
        sample = draw_sample(shapes, index)
        pixels = torch.from_numpy(draw(sample.scene, size=schedule.sizes[-1][0] * tokenizer.factor))
        codes = tokenizer.encode(pixels.permute(2, 0, 1)[None] / 127.5 - 1, schedule)
        with torch.no_grad():
            condition = pipeline.text_encoder([sample.captions[0]])
        for query in queries:
            maps = attention_maps(pipeline.transformer, tokenizer.quantizer, codes, condition, schedule, query=query)
            for layer, row in enumerate(maps):
                found[layer].append(aligned_mass(row, schedule, query, radius=settings["radius"]))
    return [
        {"block": layer, **{name: sum(one[name] for one in rows) / len(rows) for name in rows[0]}}
        for layer, rows in enumerate(found)
    ]


def aligned_mass(attention: Tensor, schedule: ScaleSchedule, query: int, *, radius: float) -> dict[str, float]:
    """How much of a token's attention is local.

    Args:
        attention: (L,), sums up to 1.
        schedule: the scales.
        query: the token's place in the sequence.
        radius: what is near, as a share of the picture's side; a token of a coarse map is near, too, if it covers the
            query's place.

    Returns:
        `own scale` and `near`: the attention within the token's own scale, and on near tokens of all scales;
        `own scale, uniform` and `near, uniform`: the same of attention that is equal over all tokens seen.

    """
    k = int(schedule.scale_ids()[query])
    own = schedule.scale_ids() == k
    near = near_tokens(schedule, query, radius)
    uniform = (schedule.scale_ids() <= k).float()
    uniform /= uniform.sum()
    return {
        "own scale": float(attention[own].sum()),
        "own scale, uniform": float(uniform[own].sum()),
        "near": float(attention[near].sum()),
        "near, uniform": float(uniform[near].sum()),
    }


def near_tokens(schedule: ScaleSchedule, query: int, radius: float) -> Tensor:
    """(L,) bool: whose centre lies within `radius` of the query's centre, or who covers it."""
    centres, halves = [], []
    for height, width in schedule.sizes:
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        centres.append(torch.stack([y, x], -1).flatten(0, 1))
        halves.append(torch.tensor([0.5 / height, 0.5 / width]).expand(height * width, 2))
    centre, half = torch.cat(centres), torch.cat(halves)  # (L, 2)
    away = (centre - centre[query]).abs()
    return (away.square().sum(1).sqrt() <= radius) | (away <= half).all(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command.run(HELP, study, arguments)


if __name__ == "__main__":
    main()
