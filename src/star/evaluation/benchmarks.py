"""Prompt lists of published benchmarks that come as JSON: ImageReward's hundred, HPSv2's four styles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star.evaluation.datasets import DatasetFolder
from star.evaluation.prompts import PromptSet
from star.metrics.json_lines import read_json

_PROMPTS = "benchmark-prompts.json"
HPS_STYLES = ("anime", "concept-art", "paintings", "photo")


class ImageRewardPrompts(DatasetFolder):
    """The 100 prompts of ImageReward's benchmark, ten pictures each, named ID_0.png ... as its scorer wants them.

    Args:
        root: the folder with `benchmark-prompts.json`; None looks in `$STAR_ASSETS/imagereward`.
        num_images: pictures per prompt.
        seed: of the noise.

    """

    source = "https://github.com/THUDM/ImageReward (benchmark/benchmark-prompts.json)"

    def __init__(self, root: str | Path | None = None, *, num_images: int = 10, seed: int = 0) -> None:
        super().__init__(root, name="imagereward", key="paths.image_reward")
        self.num_images = num_images
        self.seed = seed

    def iterate_missing(self) -> Iterator[str]:
        """The prompts."""
        if not (self.root / _PROMPTS).is_file():
            yield self.message("ImageReward's benchmark-prompts.json", self.source)

    def load(self) -> PromptSet:
        """The prompts in the file's order."""
        entries = read_list(self.root / _PROMPTS)
        try:
            records = [
                {"prompt": str(e["prompt"]), "index": i, "stem": plain_name(e["id"])} for i, e in enumerate(entries)
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.root / _PROMPTS}: every entry has an id and a prompt ({error!r})") from error
        return PromptSet("image_reward", tuple(records), num_images=self.num_images, seed=self.seed, layout="named")


class HPSPrompts(DatasetFolder):
    """HPSv2's 800 prompts in each of four styles, one picture each.

    Args:
        root: the folder with `anime.json` ...; None looks in `$STAR_ASSETS/hpsv2`.
        seed: of the noise.

    """

    source = "https://huggingface.co/datasets/zhwang/HPDv2 (benchmark/*.json)"

    def __init__(self, root: str | Path | None = None, *, seed: int = 0) -> None:
        super().__init__(root, name="hpsv2", key="paths.hpsv2")
        self.seed = seed

    def iterate_missing(self) -> Iterator[str]:
        """The prompts."""
        lacking = [f"{style}.json" for style in HPS_STYLES if not (self.root / f"{style}.json").is_file()]
        if lacking:
            yield self.message(f"HPSv2's prompts {', '.join(lacking)}", self.source)

    def load(self) -> PromptSet:
        """The prompts, style by style."""
        records: list[dict[str, Any]] = []
        for style in HPS_STYLES:
            for place, prompt in enumerate(read_list(self.root / f"{style}.json")):
                stem = f"{style}/{place:05d}"
                records.append({"prompt": str(prompt), "index": len(records), "category": style, "stem": stem})
        return PromptSet("hpsv2", tuple(records), seed=self.seed, layout="named")


def read_list(path: Path) -> list[Any]:
    """A JSON list.

    Raises:
        ValueError: when the file holds anything else.

    """
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} holds no list of prompts")
    return content


def plain_name(name: object) -> str:
    """A name that is a file's and no path.

    Raises:
        ValueError: for one with a slash or a leading dot.

    """
    text = str(name)
    if "/" in text or "\\" in text or text.startswith("."):
        raise ValueError(f"{text!r} can't name a file")
    return text
