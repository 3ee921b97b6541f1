"""What captions of the `shapes` data set say, and the many ways to say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from star.figures import COLORS, RELATIONS, SHAPES, phrase

T = TypeVar("T")

WEIGHTS = {
    "single_object": 0.04,
    "two_object": 0.08,
    "counting": 0.14,
    "colors": 0.08,
    "position": 0.16,
    "color_attr": 0.22,
    "color_position": 0.20,
    "color_counting": 0.08,
}
"""How often training meets each kind of caption: GenEval's six, then a relation and a number said with colours."""

TAGS = tuple(WEIGHTS)
MAX_COUNT = 4
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_FRAMES = ("{}", "an image of {}", "a drawing of {}", "there {be} {}", "{} on a grey background", "we see {}")


@dataclass(frozen=True)
class Clause:
    """`count` figures of one shape, all of one colour if a colour is said."""

    shape: str
    count: int = 1
    color: str | None = None

    @property
    def words(self) -> str:
        """`a circle`, `two red squares`."""
        return phrase(self.shape, self.color, self.count)


@dataclass(frozen=True)
class Facts:
    """What a caption says.

    Attributes:
        tag: one of `TAGS`.
        clauses: one or two kinds of figures.
        relation: where the second clause's figure is, seen from the first's; None when not said.

    """

    tag: str
    clauses: tuple[Clause, ...]
    relation: str | None = None

    def exactly(self) -> str:
        """The one wording that the evaluation suites use: `a picture of a star left of a circle`."""
        first, *rest = [clause.words for clause in self.clauses]
        if not rest:
            return f"a picture of {first}"
        return (
            f"a picture of {rest[0]} {self.relation} {first}"
            if self.relation
            else f"a picture of {first} and {rest[0]}"
        )

    def freely(self, rng: np.random.Generator) -> str:
        """One of many other wordings of the same facts."""
        if len(self.clauses) == 1:
            return _about_one(self.clauses[0], rng)
        if self.relation is None:
            return _about_both(self.clauses, rng)
        return _about_relation(self.clauses[1], self.relation, self.clauses[0], rng)

    def metadata(self) -> dict[str, Any]:
        """The facts in GenEval's form: `tag`, `include`, `exclude` (for counts) and the exact `prompt`."""
        include: list[dict[str, Any]] = []
        for clause in self.clauses:
            entry = {"class": clause.shape, "count": clause.count}
            include.append(entry if clause.color is None else {**entry, "color": clause.color})
        if self.relation:
            include[1]["position"] = [self.relation, 0]
        exclude = [{"class": c.shape, "count": c.count + 1} for c in self.clauses if c.count > 1]
        return {
            "tag": self.tag,
            "include": include,
            **({"exclude": exclude} if exclude else {}),
            "prompt": self.exactly(),
        }


def draw_facts(tag: str, rng: np.random.Generator) -> Facts:
    """Random shapes, counts and relation for a tag, colours still open.

    Raises:
        ValueError: for an unknown tag.

    """
    if tag not in TAGS:
        raise ValueError(f"unknown tag {tag!r}, use some of {', '.join(TAGS)}")
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))[:2]]
    if tag in ("single_object", "colors"):
        return Facts(tag, (Clause(shapes[0]),))
    if tag in ("counting", "color_counting"):
        return Facts(tag, (Clause(shapes[0], int(rng.integers(2, MAX_COUNT + 1))),))
    relation = pick(tuple(RELATIONS), rng) if tag in ("position", "color_position") else None
    return Facts(tag, (Clause(shapes[0]), Clause(shapes[1])), relation)


def draw_colors(facts: Facts, rng: np.random.Generator) -> tuple[Facts, list[tuple[str, str]]]:
    """Colour every figure, and say the colours where the tag does.

    Returns:
        The facts with the colours they say, and (colour, shape) of every figure, clause by clause.

    """
    clauses = facts.clauses
    if facts.tag in ("colors", "color_counting", "color_attr", "color_position"):
        tints = [COLORS[i] for i in rng.permutation(len(COLORS))[: len(clauses)]]
        said: list[str | None] = list(tints)
        if facts.tag == "color_position" and rng.random() < 0.15:
            said[rng.integers(2)] = None  # so that a colour is also learnt beside a figure that has none
        clauses = tuple(Clause(c.shape, c.count, color) for c, color in zip(clauses, said, strict=True))
        pairs = [(tint, c.shape) for c, tint in zip(clauses, tints, strict=True) for _ in range(c.count)]
    else:
        pairs = [(pick(COLORS, rng), c.shape) for c in clauses for _ in range(c.count)]
    return Facts(facts.tag, clauses, facts.relation), pairs


def pick(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise ValueError unless the weights are for known tags, none negative, some positive."""
    unknown = sorted(set(weights) - set(TAGS))
    if unknown:
        raise ValueError(f"unknown tags {unknown} in the weights, use some of {', '.join(TAGS)}")
    if any(weight < 0 for weight in weights.values()) or not sum(weights.values()) > 0:
        raise ValueError(f"weights can't be negative and some must be positive, got {dict(weights)}")


def _framed(words: str, clause: Clause, rng: np.random.Generator) -> str:
    """Put a noun phrase that begins with the clause into one of several frames."""
    return pick(_FRAMES, rng).format(words, be="is" if clause.count == 1 else "are")


def _about_one(clause: Clause, rng: np.random.Generator) -> str:
    plain = phrase(clause.shape, None, clause.count)
    if clause.count == 1 and rng.random() < 0.2:
        return _framed(f"one {clause.color} {clause.shape}" if clause.color else f"one {clause.shape}", clause, rng)
    if clause.color and rng.random() < 0.3:
        return _framed(f"{plain} that {'is' if clause.count == 1 else 'are'} {clause.color}", clause, rng)
    return _framed(clause.words, clause, rng)


def _about_both(clauses: Sequence[Clause], rng: np.random.Generator) -> str:
    first, second = (clauses[i] for i in rng.permutation(2))
    if first.color and second.color and rng.random() < 0.25:
        return f"the {first.shape} is {first.color} and the {second.shape} is {second.color}"
    return _framed(f"{first.words} {pick(('and', 'and', 'with'), rng)} {second.words}", first, rng)


def _about_relation(figure: Clause, relation: str, target: Clause, rng: np.random.Generator) -> str:
    if rng.random() < 0.5:  # the same fact seen from the other figure
        figure, relation, target = target, _OPPOSITE[relation], figure
    where = pick((relation, f"to the {relation}", f"on the {relation}"), rng) if relation.endswith("of") else relation
    form = rng.integers(6)
    if form == 0:
        side = relation.removesuffix(" of")
        beside = f"to the {side} of it" if relation.endswith("of") else f"{side} it"
        return _framed(f"{target.words} with {figure.words} {beside}", target, rng)
    if form == 1:
        return f"{figure.words} is {where} {target.words}"
    if form == 2:
        return f"{where} {target.words} there is {figure.words}"
    return _framed(f"{figure.words} {where} {target.words}", figure, rng)
