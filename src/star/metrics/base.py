"""What all metrics share: checked images, bootstrap intervals, and means of one score per image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

Prompts = Sequence[Mapping[str, Any]]

NUM_RESAMPLES = 1000
LEVEL = 0.95


def check(images: Tensor, prompts: Prompts | None = None) -> None:
    """Raise a ValueError unless images are (B, 3, H, W) in [0, 1], one per prompt; B may be 0."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
    if images.numel():
        least, most = map(float, images.aminmax())
        if not (least >= -1e-3 and most <= 1 + 1e-3):
            raise ValueError(f"images must lie in [0, 1], got {least:.3f} to {most:.3f}")
    if prompts is not None and len(prompts) != len(images):
        raise ValueError(f"every image needs its prompt, got {len(images)} images and {len(prompts)} prompts")


def as_uint8(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as uint8, rounded: what an 8-bit file of them holds."""
    return images.mul(255).round_().clamp_(0, 255).byte()


def bootstrap(values: Tensor, groups: Tensor | None = None, *, seed: int = 0) -> list[float]:
    """The 95 % interval of a mean by resampling: [low, high].

    Args:
        values: (N,), one per independent unit (an image, or the mean of a prompt's images).
        groups: (N,) long; given, units are resampled within their group and the groups' means are averaged unweighted.
        seed: of the resampling, so that a card can be made again.

    """
    rng = np.random.default_rng(seed)
    numbers = values.double().cpu().numpy()
    labels = np.zeros(len(numbers), int) if groups is None else groups.cpu().numpy()
    means = np.zeros(NUM_RESAMPLES)
    names = np.unique(labels)
    for name in names:
        members = np.sort(numbers[labels == name])  # ranks that share pictures gather them in another order
        # drawn one resample at a time: all at once would be 30,000 x 1,000 numbers
        means += [members[rng.integers(len(members), size=len(members))].mean() for _ in range(NUM_RESAMPLES)]
    tail = (1 - LEVEL) / 2
    return [float(bound) for bound in np.quantile(means / max(len(names), 1), (tail, 1 - tail))]


def bootstrap_tasks(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """The interval of a mean over tasks of right pictures: prompts, whose pictures aren't independent, are resampled.

    Args:
        rows: of every picture `tag`, `prompt` and whether it is `correct`.

    """
    by_prompt: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        by_prompt.setdefault((row["tag"], row["prompt"]), []).append(bool(row["correct"]))
    tags = sorted({tag for tag, _ in by_prompt})
    values = torch.tensor([sum(correct) / len(correct) for correct in by_prompt.values()])
    return bootstrap(values, torch.tensor([tags.index(tag) for tag, _ in by_prompt]))


class ScoreMean(Metric):
    """The mean of one score per image, with a bootstrap interval; subclasses say what the score is.

    Args:
        categories: names that prompts carry as `category`; each gets a mean of its own.

    """

    full_state_update = False
    is_differentiable = False
    scores: list[Tensor]
    members: list[Tensor]

    def __init__(self, *, categories: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.categories = tuple(categories)
        # concatenated before they are gathered, so ranks may have made different numbers of updates
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("members", default=[], dist_reduce_fx="cat")

    def score(self, images: Tensor, prompts: Prompts) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1]."""
        raise NotImplementedError

    def update(self, images: Tensor, prompts: Prompts) -> None:
        """Score images (B, 3, H, W) in [0, 1] and remember the scores."""
        check(images, prompts)
        scores = self.score(images, prompts) if len(images) else torch.zeros(0)
        self.scores.append(scores.double().to(self.device))
        self.members.append(torch.tensor(category_ids(prompts, self.categories), dtype=torch.long, device=self.device))

    def compute(self) -> dict[str, Any]:
        """`value`, its `interval`, `num_images`, and `categories` when there are any.

        Raises:
            ValueError: when nothing was scored.

        """
        scores, members = concatenated(self.scores), concatenated(self.members)
        if not len(scores):
            raise ValueError("no image was scored")
        result = {"value": float(scores.mean()), "interval": bootstrap(scores), "num_images": len(scores)}
        if self.categories:
            of = {name: scores[members == i] for i, name in enumerate(self.categories)}
            result["categories"] = {name: float(part.mean()) for name, part in of.items() if len(part)}
        return result

    def iterate_missing(self) -> Iterator[str]:
        """Nothing is missing unless a subclass needs files."""
        return iter(())


def concatenated(state: Tensor | Sequence[Tensor]) -> Tensor:
    """A `cat` state as one tensor, before or after torchmetrics gathered it."""
    return state if isinstance(state, Tensor) else torch.cat(list(state))


def places_of(prompts: Prompts, before: int = 0) -> list[int]:
    """Each picture's place among all: what its prompt says of it, else behind the `before` earlier ones."""
    return [prompt.get("place", prompt.get("index", before + i)) for i, prompt in enumerate(prompts)]


def ordered(values: Tensor, places: Tensor) -> Tensor:
    """Gathered values (N, ...) in the order that one process sees them in, however many ranks shared the pictures."""
    return values[places.argsort(stable=True)]


def category_ids(prompts: Prompts, categories: Sequence[str]) -> list[int]:
    """The place of each prompt's `category` among `categories`; 0 for all when there are none.

    Raises:
        ValueError: for a prompt of an unknown category.

    """
    if not categories:
        return [0] * len(prompts)
    places = {name: i for i, name in enumerate(categories)}
    unknown = sorted({str(prompt.get("category")) for prompt in prompts} - set(places))
    if unknown:
        raise ValueError(f"unknown category {', '.join(unknown)}, known: {', '.join(categories)}")
    return [places[prompt["category"]] for prompt in prompts]
