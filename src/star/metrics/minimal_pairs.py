"""Captions that differ from a true one in a single fact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from star.figures import COLORS, NUMBERS, SHAPES
from star.metrics.shapes import entry

T = TypeVar("T")
Clauses = list[dict[str, Any]]

KINDS = ("shape", "color", "number", "binding", "relation")


def wrong_prompts(metadata: Mapping[str, Any], rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """What a prompt of the shapes suites could say wrongly, in its own wording.

    Args:
        metadata: the prompt's, in GenEval's form.
        rng: chooses the clause and the wrong word.

    Yields:
        Kind and prompt, for each kind that the prompt has: `shape`, `color` and `number` say another word that isn't in
        the prompt yet; `binding` exchanges the colours of two figures and `relation` their places, so that all words
        stay and only their order tells the two prompts apart.

    """
    clauses: Clauses = [dict(clause) for clause in metadata["include"]]
    shapes, colors = [c["class"] for c in clauses], [c["color"] for c in clauses if "color" in c]
    counts = [c["count"] for c in clauses]
    at = int(rng.integers(len(clauses)))
    yield "shape", _said(metadata, clauses, {at: {"class": _other(SHAPES, shapes, rng)}})
    if len(colors) == len(clauses):
        yield "color", _said(metadata, clauses, {at: {"color": _other(COLORS, colors, rng)}})
    if max(counts) > 1:
        yield "number", _said(metadata, clauses, {at: {"count": _other(range(2, len(NUMBERS)), counts, rng)}})
    if len(clauses) == len(colors) == 2:
        yield "binding", _said(metadata, clauses, {0: {"color": colors[1]}, 1: {"color": colors[0]}})
    if "position" in clauses[-1]:
        yield "relation", _said(metadata, clauses, {0: {"class": shapes[1]}, 1: {"class": shapes[0]}})


def _said(metadata: Mapping[str, Any], clauses: Clauses, changes: Mapping[int, Mapping[str, Any]]) -> str:
    """The prompt with some clauses changed."""
    changed = [{**clause, **changes.get(i, {})} for i, clause in enumerate(clauses)]
    return str(entry(metadata["tag"], changed)["prompt"])


def _other(options: Sequence[T], taken: Sequence[T], rng: np.random.Generator) -> T:
    free = [option for option in options if option not in taken]
    return free[int(rng.integers(len(free)))]
