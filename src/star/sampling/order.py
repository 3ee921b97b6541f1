"""Which pictures a call asks for: prompts, negative prompts and seeds, one of each per picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

MAX_SEED = 2**63
Generators = torch.Generator | Sequence[torch.Generator]


@dataclass(frozen=True)
class Order:
    """One call's pictures.

    Attributes:
        prompts: of each picture.
        negative_prompts: of each picture.
        seeds: of each picture.

    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def parts(self, size: int) -> Iterator[Order]:
        """The same pictures, `size` at a time."""
        for first in range(0, len(self.prompts), size):
            part = slice(first, first + size)
            yield Order(self.prompts[part], self.negative_prompts[part], self.seeds[part])


def take_order(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] = "",
    num_images: int = 1,
    *,
    generator: Generators | None = None,
    seeds: int | Sequence[int] | None = None,
) -> Order:
    """Check the words and numbers of a call, and spread them over its pictures.

    Raises:
        ValueError: for no prompt, or numbers that don't fit one another.

    """
    prompts = _texts(prompt, "prompt")
    if not prompts:
        raise ValueError("prompt is an empty list: give at least one caption")
    negatives = _texts(negative_prompt, "negative_prompt")
    negatives = negatives * len(prompts) if len(negatives) == 1 else negatives
    if len(negatives) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need one negative prompt or as many, got {len(negatives)}")
    at_least_1("num_images_per_prompt", num_images)
    places = [i for i in range(len(prompts)) for _ in range(num_images)]
    chosen = choose_seeds(len(prompts), num_images, generator=generator, seeds=seeds)
    return Order(tuple(prompts[i] for i in places), tuple(negatives[i] for i in places), chosen)


def at_least_1(name: str, value: Any) -> int:
    """A setting that counts.

    Raises:
        ValueError: unless it is a whole number of at least 1; names it.

    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is a whole number of at least 1, got {value!r}")
    return value


def choose_seeds(
    num_prompts: int, num_images: int, *, generator: Generators | None, seeds: int | Sequence[int] | None
) -> tuple[int, ...]:
    """One seed per picture, prompt by prompt; see `call`.

    Raises:
        ValueError: for generators and seeds together, another number of them than pictures, or a seed out of range.

    """
    pictures = num_prompts * num_images
    if seeds is not None and generator is not None:
        raise ValueError("give either seeds or a generator, not both")
    if isinstance(seeds, int | np.integer):
        chosen = [int(seeds) + j for _ in range(num_prompts) for j in range(num_images)]
    elif seeds is not None:
        chosen = [int(seed) for seed in seeds]
    elif isinstance(generator, Sequence):
        chosen = [_draw_seeds(1, one)[0] for one in generator]
    else:
        chosen = _draw_seeds(pictures, generator)
    if len(chosen) != pictures:
        name = "generators" if seeds is None else "seeds"
        raise ValueError(
            f"{num_prompts} prompts with {num_images} pictures each need {pictures} {name}, not {len(chosen)}"
        )
    if wrong := [seed for seed in chosen if not 0 <= seed < MAX_SEED]:
        raise ValueError(f"a seed lies between 0 and {MAX_SEED - 1}, got {wrong[0]}")
    return tuple(chosen)


def _draw_seeds(count: int, generator: torch.Generator | None) -> list[int]:
    device = None if generator is None else generator.device
    seeds: list[int] = torch.randint(MAX_SEED - 1, (count,), generator=generator, device=device).tolist()
    return seeds


def _texts(value: str | Sequence[str], name: str) -> list[str]:
    texts: list[str] = list(value) if isinstance(value, list | tuple) else [value]  # type: ignore[list-item]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{name} is a text or a list of texts, got {wrong[0]!r}")
    return texts
