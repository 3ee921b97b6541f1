"""Whether pictures of coloured shapes show what their prompts say: GenEval's tasks without learned weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from star.figures import COLORS, NEVER_SEEN, RELATIONS, SHAPES, Scene, arrange, draw, held_out_by, phrase
from star.metrics.geneval_rules import GenEvalRules, Verdict
from star.metrics.shapes_detector import ShapeDetector

Metadata = dict[str, Any]

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SUITES = ("shapes", "shapes_seen")


class ShapesAlignment(Metric):
    """Share of images that show what their prompt says, the unweighted mean over GenEval's six tasks.

    Args:
        num_prompts: how many prompts the suite has; given, the share of prompts with any right image is reported too.
        detector: finds the figures.
        rules: compare them with the prompt.

    Raises:
        ValueError: when `num_prompts` is below 1.

    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    correct: Tensor
    strict: Tensor
    scored: Tensor
    prompt_hits: Tensor
    prompt_scored: Tensor

    def __init__(
        self,
        *,
        num_prompts: int | None = None,
        detector: ShapeDetector | None = None,
        rules: GenEvalRules | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_prompts is not None and num_prompts < 1:
            raise ValueError(f"a suite has at least one prompt, got num_prompts={num_prompts}")
        self.num_prompts = num_prompts
        self.detector = detector or ShapeDetector()
        self.rules = rules or GenEvalRules()
        for name in ("correct", "strict", "scored"):
            self.add_state(name, torch.zeros(len(TASKS), dtype=torch.long), dist_reduce_fx="sum")
        for name in ("prompt_hits", "prompt_scored"):
            self.add_state(name, torch.zeros(num_prompts or 0, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, images: Tensor, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Score images.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: GenEval metadata of each: `tag`, `include`, perhaps `exclude`; `index` when prompts are counted.

        Raises:
            ValueError: for images of another shape or range, as many prompts as there are not images, an unknown tag,
                or an index outside the suite.

        """
        if len(images) != len(prompts):
            raise ValueError(f"every image needs its prompt, got {len(images)} images and {len(prompts)} prompts")
        for pixels, metadata in zip(_as_uint8(images), prompts, strict=True):
            if metadata.get("tag") not in TASKS:
                raise ValueError(f"unknown tag {metadata.get('tag')!r}, use one of {', '.join(TASKS)}")
            verdict = self.rules.judge(metadata, self.detector(pixels))
            task = TASKS.index(metadata["tag"])
            self.scored[task] += 1
            self.correct[task] += verdict.correct
            self.strict[task] += is_strict(verdict, metadata)
            self._count_prompt(metadata, verdict)

    def compute(self) -> dict[str, float]:
        """Shares in [0, 1] and counts.

        Returns:
            `value`: mean over the tasks that occurred; one entry a task; `strict`: the same mean of images that hold
            nothing but what is asked; `images`: of all images; `prompts`: of prompts with any right image, if these
            are counted; `num_images` and `num_images/<task>`.

        Raises:
            ValueError: when no image was scored.

        """
        if not self.scored.sum():
            raise ValueError("no image was scored")
        occurred = self.scored > 0
        correct, strict = (state[occurred] / self.scored[occurred] for state in (self.correct, self.strict))
        names = [task for task, there in zip(TASKS, occurred.tolist(), strict=True) if there]
        result = {"value": float(correct.mean()), **dict(zip(names, correct.tolist(), strict=True))}
        result |= {"strict": float(strict.mean()), "images": float(self.correct.sum() / self.scored.sum())}
        if self.num_prompts is not None:
            result["prompts"] = float((self.prompt_hits > 0).sum() / (self.prompt_scored > 0).sum())
        counts = dict(zip(names, self.scored[occurred].tolist(), strict=True))
        return result | {"num_images": sum(counts.values())} | {f"num_images/{name}": n for name, n in counts.items()}

    def iterate_missing(self) -> Iterator[str]:
        """Nothing: the metric needs no files."""
        return iter(())

    def _count_prompt(self, metadata: Mapping[str, Any], verdict: Verdict) -> None:
        if self.num_prompts is None:
            return
        index = metadata.get("index")
        if index is None or not 0 <= index < self.num_prompts:
            raise ValueError(f"the prompt's index must lie in a suite of {self.num_prompts} prompts, got {index}")
        self.prompt_scored[index] += 1
        self.prompt_hits[index] += verdict.correct


def judge(
    image: Tensor,
    metadata: Mapping[str, Any],
    *,
    detector: ShapeDetector | None = None,
    rules: GenEvalRules | None = None,
) -> Verdict:
    """Compare one image (3, H, W) in [0, 1] with its prompt's GenEval metadata."""
    pixels = _as_uint8(image[None])[0]
    return (rules or GenEvalRules()).judge(metadata, (detector or ShapeDetector())(pixels))


def is_strict(verdict: Verdict, metadata: Mapping[str, Any]) -> bool:
    """Whether an image is right and holds no figure that was not asked for, which GenEval's rules do not test."""
    return verdict.correct and len(verdict.detections) == sum(clause["count"] for clause in metadata["include"])


def load_suite(name: str = "shapes") -> list[Metadata]:
    """A frozen list of 264 prompts as GenEval metadata, with their `index`.

    `shapes` asks for held-out colours in its tags `colors` (the pairs never seen) and `color_attr` (half never-seen
    pairs, half held-out sets of seen pairs); `shapes_seen` is the same with pairs and sets that training may show.

    Raises:
        ValueError: for an unknown name.

    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}, use one of {', '.join(SUITES)}")
    text = (resources.files("star.metrics") / "suites" / f"{name}.jsonl").read_text("utf-8")
    return [{"index": index, **json.loads(line)} for index, line in enumerate(text.splitlines())]


def build_suite(name: str) -> str:
    """The text of a suite's file, made from the vocabulary alone."""
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}, use one of {', '.join(SUITES)}")
    held_out = name == "shapes"
    pairs = list(NEVER_SEEN)
    if not held_out:  # the same colours and the same shapes, matched differently
        pairs = [(color, NEVER_SEEN[i - 1][1]) for i, (color, _) in enumerate(NEVER_SEEN)]
    entries = [entry("single_object", [_clause(shape)]) for shape in SHAPES]
    entries += [entry("two_object", [_clause(a), _clause(b)]) for a, b in permutations(SHAPES, 2)]
    entries += [entry("counting", [_clause(shape, count=count)]) for shape in SHAPES for count in (2, 3, 4)]
    entries += [entry("colors", [_clause(shape, color)]) for color, shape in pairs]
    positions = [
        entry("position", [_clause(b), {**_clause(a), "position": [relation, 0]}])
        for a, b in permutations(SHAPES, 2)
        for relation in RELATIONS
    ]
    entries += _shuffled(positions)[:100]
    for reason, count in (("pair", 50), ("set", 50)) if held_out else ((None, 100),):
        entries += _shuffled(_color_attr_entries(reason))[:count]
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def render_suite(
    suite: Iterable[Mapping[str, Any]], *, num_images: int = 4, size: int = 64, seed: int = 0
) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
    """True pictures of a suite's prompts: the metric's ceiling.

    Yields:
        For every prompt, images (num_images, 3, size, size) in [0, 1] and the prompt's metadata.

    """
    for index, metadata in enumerate(suite):
        rng = np.random.default_rng((seed, index))
        pixels = np.stack([draw(_scene_of(metadata, rng), size) for _ in range(num_images)])
        yield torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, metadata


def _scene_of(metadata: Mapping[str, Any], rng: np.random.Generator) -> Scene:
    """A random scene of which the metadata is true; what it leaves open is random."""
    pairs: list[tuple[str, str]] = []
    members: list[range] = []
    relations: list[tuple[int, str, int]] = []
    for clause in metadata["include"]:
        members.append(range(len(pairs), len(pairs) + clause["count"]))
        pairs += [(clause.get("color") or COLORS[rng.integers(len(COLORS))], clause["class"]) for _ in members[-1]]
        if "position" in clause:
            relation, target = clause["position"]
            relations += [(i, relation, j) for i in members[-1] for j in members[target]]
    return arrange(pairs, rng, relations)


def _clause(shape: str, color: str | None = None, *, count: int = 1) -> Metadata:
    return {"class": shape, "count": count, **({"color": color} if color else {})}


def entry(tag: str, include: list[Metadata]) -> Metadata:
    """GenEval metadata with the suites' exact wording."""
    words = [phrase(clause["class"], clause.get("color"), clause["count"]) for clause in include]
    if "position" in include[-1]:
        words = [f"{words[1]} {include[1]['position'][0]} {words[0]}"]
    exclude = [{"class": c["class"], "count": c["count"] + 1} for c in include if c["count"] > 1]
    prompt = "a picture of " + " and ".join(words)
    return {"tag": tag, "include": include, **({"exclude": exclude} if exclude else {}), "prompt": prompt}


def _color_attr_entries(reason: str | None) -> list[Metadata]:
    """Two shapes in two colours, every set of them that is held out for a reason (None: that is not)."""
    entries = [
        entry("color_attr", [_clause(a, first), _clause(b, second)])
        for a, b in permutations(SHAPES, 2)
        for first, second in permutations(COLORS, 2)
        if held_out_by([(first, a), (second, b)]) == reason
    ]
    # Both orders of a set say the same, so one of them is enough.
    one_each = {frozenset((c["color"], c["class"]) for c in e["include"]): e for e in _shuffled(entries)}
    return list(one_each.values())


def _shuffled(entries: Iterable[Metadata]) -> list[Metadata]:
    """Entries in the order of their prompts' hashes, a shuffle that no version of a random generator can change."""
    return sorted(entries, key=lambda entry: hashlib.sha256(entry["prompt"].encode()).digest())


def _as_uint8(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [0, 1] as (B, H, W, 3) of 0-255."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
    if images.numel() and not (images.min() >= -1e-3 and images.max() <= 1 + 1e-3):
        raise ValueError(f"images must lie in [0, 1], got {float(images.min()):.3f} to {float(images.max()):.3f}")
    return images.detach().float().mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
