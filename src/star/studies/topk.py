"""`python -m star.studies.topk [ckpt=outputs/demo/star.ckpt] [values=1,8,64,512] ...`: the paper's Fig. 6 in miniature.

One generator draws the frozen captions with different top-k. Does a small k keep to the caption (alignment), and is a
large one nearer to real pictures (Frechet distance and CMMD with offline features, to true pictures of the captions)?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from star.checkpoints import io
from star.studies import command
from star.studies.sampler_table import Comparison

HELP = f"""{__doc__}
Settings, and what they are unless given:
  ckpt=outputs/demo/star.ckpt
  values=1,8,32,128,all  of top-k; all keeps the whole codebook
  images=2 seeds=0     pictures of each caption, and seeds of which rows are means
  folder=outputs/studies/topk  what is there is used again
  out=FILE.json        keep the numbers
"""
OWN: dict[str, Callable[[str], Any]] = {"ckpt": str, "values": command.words, "seeds": command.words}
OWN |= {"images": command.count, "folder": Path, "out": Path}
DEFAULTS: dict[str, Any] = {"ckpt": "outputs/demo/star.ckpt", "values": ["1", "8", "32", "128", "all"], "images": 2}
DEFAULTS |= {"seeds": ["0"], "folder": Path("outputs/studies/topk"), "out": None}


def study(arguments: Sequence[str]) -> None:
    """Draw, score and show."""
    given, rest = command.split_arguments(arguments, OWN)
    command.refuse(rest, list(OWN))
    settings = DEFAULTS | given
    seeds = [int(seed) for seed in settings["seeds"]]
    comparison = Comparison(settings["ckpt"], None, settings["folder"], seeds=seeds, images=settings["images"])
    size = codebook_size(settings["ckpt"])
    rows = []
    for value in settings["values"]:
        top_k = size if value == "all" else command.count(value)
        found = [comparison.score(f"topk {value}", preset(comparison, top_k), seed) for seed in seeds]
        means = {name: sum(each[name] for each in found) / len(found) for name in found[0]}
        rows.append({"top-k": top_k, **means})
    command.present(f"top-k, of {size} codes", rows, settings["out"], settings)


def codebook_size(ckpt: str) -> int:
    """`V` of a checkpoint's tokenizer."""
    config = io.config(io.read(ckpt, mmap=True), ckpt)
    return int(config["module"]["tokenizer"]["quantizer"]["codebook_size"])


def preset(comparison: Comparison, top_k: int) -> list[str]:
    """Overrides of evaluate.py: the filter alone changes, top-p is off; guidance is the checkpoint's own."""
    guidance = next(word for word in comparison.samplers()["topk small"] if ".guidance." in word)
    filters = [f"sampling.sampler.top_k={top_k}", "sampling.sampler.top_p=0"]
    # a number that can't be had is an error before anything is drawn, not a gap in the table
    return ["sampling=topk600", guidance, *filters, "on_missing=error"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command.run(HELP, study, arguments)


if __name__ == "__main__":
    main()
