from __future__ import annotations

import re

import numpy as np
import pytest

from star.data.shapes_captions import TAGS, Clause, Facts, draw_colors, draw_facts
from star.figures import COLORS, NUMBERS, SHAPES

RELATION = Facts("color_position", (Clause("square", 1, "blue"), Clause("circle", 1, "red")), "above")


def wordings(facts: Facts, times: int = 200) -> set[str]:
    rng = np.random.default_rng(0)
    return {facts.freely(rng) for _ in range(times)}


def test_exact_wordings_are_the_suites() -> None:
    square, circle, stars = Clause("square"), Clause("circle"), Clause("star", 3)
    assert Facts("single_object", (square,)).exactly() == "a picture of a square"
    assert Facts("two_object", (square, circle)).exactly() == "a picture of a square and a circle"
    assert Facts("counting", (stars,)).exactly() == "a picture of three stars"
    assert Facts("colors", (Clause("star", 1, "orange"),)).exactly() == "a picture of an orange star"
    assert Facts("position", (square, circle), "above").exactly() == "a picture of a circle above a square"
    assert RELATION.exactly() == "a picture of a red circle above a blue square"


def test_metadata_has_genevals_form() -> None:
    assert RELATION.metadata() == {
        "tag": "color_position",
        "include": [
            {"class": "square", "count": 1, "color": "blue"},
            {"class": "circle", "count": 1, "color": "red", "position": ["above", 0]},
        ],
        "prompt": "a picture of a red circle above a blue square",
    }
    assert Facts("counting", (Clause("cross", 2),)).metadata()["exclude"] == [{"class": "cross", "count": 3}]


@pytest.mark.parametrize("tag", TAGS)
def test_free_wordings_name_every_figure_colour_and_number(tag: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        facts, _ = draw_colors(draw_facts(tag, rng), rng)
        words = facts.freely(rng).split()
        for clause in facts.clauses:
            noun = clause.shape if clause.count == 1 else clause.words.split()[-1]
            assert noun in words
            assert clause.color is None or clause.color in words
            assert clause.count == 1 or NUMBERS[clause.count] in words
        unsaid = set(SHAPES) - {clause.shape for clause in facts.clauses}
        assert not unsaid & set(words)
        assert not set(COLORS) - {clause.color for clause in facts.clauses} & set(words)


def test_a_relation_is_never_turned_round() -> None:
    said = wordings(RELATION)
    assert len(said) > 12
    for caption in said:
        circle, square = (caption.index(word) for word in ("red circle", "blue square"))
        if match := re.search(r"with (a|an) .* (above|below) it", caption):
            assert (match[2] == "above") == (circle > square)
        elif caption.startswith(("above", "below")):
            assert caption.startswith("above") == (square < circle)
        else:
            assert ("above" in caption) == (circle < square)


def test_sideways_relations_are_never_turned_round() -> None:
    for caption in wordings(Facts("position", (Clause("square"), Clause("circle")), "left of")):
        circle, square = caption.index("circle"), caption.index("square")
        reverse = " of it" in caption or caption.startswith(("left", "right", "to the", "on the"))
        assert ("left" in caption) == ((circle < square) != reverse)


def test_colours_are_open_until_drawn_and_said_where_the_tag_says_them() -> None:
    rng = np.random.default_rng(0)
    for tag in TAGS:
        facts = draw_facts(tag, rng)
        assert all(clause.color is None for clause in facts.clauses)
        colored, pairs = draw_colors(facts, rng)
        assert [clause.shape for clause in colored.clauses] == [clause.shape for clause in facts.clauses]
        assert len(pairs) == sum(clause.count for clause in facts.clauses)
        assert any(clause.color for clause in colored.clauses) == ("color" in tag)


def test_unknown_tags_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown tag 'scenery'"):
        draw_facts("scenery", np.random.default_rng(0))
