"""GenEval's prompts, made again from their recipe, and the records of its scorer (Ghosh et al., 2023)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from star.metrics.json_lines import read_json_lines

Metadata = dict[str, Any]

PROMPTS_SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
_RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
_SEED = 43
_DRAWS = 100


def class_names() -> list[str]:
    """COCO's 80 classes in order, three of them under the names that the prompts use."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = [
        name
        for name in FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        if name not in ("__background__", "N/A")
    ]
    return [_RENAMED.get(name, name) for name in names]


def build_prompts() -> list[Metadata]:
    """The 553 prompts with their metadata, in the published order."""
    rng = np.random.default_rng(_SEED)
    names = class_names()
    person = names.index("person")
    found = [_single(names[i]) for i in rng.choice(80, size=80, replace=False)]
    found += [_two(names, rng.choice(80, size=2, replace=False)) for _ in range(_DRAWS)]
    for _ in range(_DRAWS):
        i = rng.choice(80)
        found.append(_counted(names[i], int(rng.integers(2, 4, endpoint=True))))
    for _ in range(_DRAWS):
        i = (rng.choice(79) + 1 + person) % 80
        found.append(_colored(names[i], COLORS[rng.choice(10)]))
    for _ in range(_DRAWS):
        i, j = rng.choice(80, size=2, replace=False)
        found.append(_placed(names[i], names[j], POSITIONS[rng.choice(4)]))
    for _ in range(_DRAWS):
        i, j = (rng.choice(79, size=2, replace=False) + 1 + person) % 80
        k, m = rng.choice(10, size=2, replace=False)
        found.append(_two_colored(names[i], names[j], COLORS[k], COLORS[m]))
    return list({json.dumps(entry): entry for entry in found}.values())


def prompts_text() -> str:
    """The published `evaluation_metadata.jsonl`, byte for byte."""
    return "".join(json.dumps(entry) + "\n" for entry in build_prompts())


def article(name: str) -> str:
    """The name with its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _entry(tag: str, include: list[Metadata], prompt: str, exclude: list[Metadata] | None = None) -> Metadata:
    return {
        "tag": tag,
        "include": include,
        **({"exclude": exclude} if exclude else {}),
        "prompt": f"a photo of {prompt}",
    }


def _single(name: str) -> Metadata:
    return _entry("single_object", [{"class": name, "count": 1}], article(name))


def _two(names: list[str], pair: Iterable[int]) -> Metadata:
    first, second = (names[i] for i in pair)
    include = [{"class": name, "count": 1} for name in (first, second)]
    return _entry("two_object", include, f"{article(first)} and {article(second)}")


def _counted(name: str, count: int) -> Metadata:
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    include, exclude = [{"class": name, "count": count}], [{"class": name, "count": count + 1}]
    return _entry("counting", include, f"{NUMBERS[count]} {plural}", exclude)


def _colored(name: str, color: str) -> Metadata:
    return _entry("colors", [{"class": name, "count": 1, "color": color}], article(f"{color} {name}"))


def _placed(name: str, target: str, position: str) -> Metadata:
    include = [{"class": target, "count": 1}, {"class": name, "count": 1, "position": [position, 0]}]
    return _entry("position", include, f"{article(name)} {position} {article(target)}")


def _two_colored(first: str, second: str, color: str, other: str) -> Metadata:
    include = [{"class": first, "count": 1, "color": color}, {"class": second, "count": 1, "color": other}]
    return _entry("color_attr", include, f"{article(f'{color} {first}')} and {article(f'{other} {second}')}")


def read_results(path: Path) -> list[Metadata]:
    """The lines of a scorer's result file, the official one's or ours: `tag`, `prompt`, `correct`, ...

    Raises:
        ValueError: for a line that isn't such a record; names it.

    """
    rows = read_json_lines(path, _result, what="result of GenEval's scorer (tag, prompt, correct)")
    if not rows:
        raise ValueError(f"{path} holds no result")
    return rows


def _result(row: Mapping[str, Any]) -> Metadata:
    return {**row, "tag": str(row["tag"]), "prompt": str(row["prompt"]), "correct": bool(row["correct"])}


def result_line(file: str, metadata: Mapping[str, Any], correct: bool, reason: str) -> str:
    """A line of a result file in the official scorer's form."""
    named = {name: metadata[name] for name in ("tag", "include", "exclude", "prompt") if name in metadata}
    row = {"filename": file, "tag": metadata["tag"], "prompt": metadata["prompt"], "correct": correct, "reason": reason}
    return json.dumps({**row, "metadata": json.dumps(named)}) + "\n"
