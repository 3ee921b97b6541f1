from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from star.metrics.geneval_rules import Detection, GenEvalRules, summarize

CASES = json.loads((Path(__file__).parents[1] / "golden" / "eval" / "geneval_rules.json").read_text())
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def detections(case: dict[str, Any]) -> list[Detection]:
    return [
        Detection(name, tuple(box[:4]), box[4], color)
        for name, boxes in case["detections"].items()
        for box, color in zip(boxes, case["colors"][name], strict=True)
    ]


def two(tag: str = "two_object", **clause: Any) -> dict[str, Any]:
    return {"tag": tag, "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, **clause}]}


def test_verdicts_equal_the_benchmarks_own() -> None:
    assert len(CASES) == 180
    for case in CASES:
        verdict = GenEvalRules().judge(case["metadata"], detections(case))
        assert verdict.correct == case["correct"], case["metadata"]["prompt"]
        assert len(verdict.reason.splitlines()) == len(case["reason"].splitlines())


def test_the_order_of_detections_does_not_matter() -> None:
    for case in CASES:
        verdicts = [
            GenEvalRules().judge(case["metadata"], order) for order in (detections(case), detections(case)[::-1])
        ]
        assert verdicts[0].correct == verdicts[1].correct


def test_counting_asks_for_surer_detections_than_the_rest() -> None:
    unsure = [Detection("cat", (0, 0, 9, 9), 0.5)]
    clause = {"include": [{"class": "cat", "count": 1}]}
    assert GenEvalRules().judge({"tag": "single_object", **clause}, unsure).correct
    assert not GenEvalRules().judge({"tag": "counting", **clause}, unsure).correct


def test_excluded_counts_are_wrong() -> None:
    cats = [Detection("cat", (20 * i, 0, 20 * i + 9, 9), 0.95) for i in range(3)]
    metadata = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}
    assert GenEvalRules().judge(metadata, cats[:2]).correct
    verdict = GenEvalRules().judge(metadata, cats)
    assert not verdict.correct
    assert verdict.detections == tuple(cats)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [((30, 0), {"right of"}), ((0, -30), {"above"}), ((-20, 20), {"left of", "below"}), ((2, 1), set())],
)
def test_relations_and_their_mirror_images(offset: tuple[int, int], expected: set[str]) -> None:
    x, y = offset
    box, target = (x, y, x + 10, y + 10), (0, 0, 10, 10)
    assert GenEvalRules().relations(box, target) == expected
    assert GenEvalRules().relations(target, box) == {OPPOSITE[name] for name in expected}


def test_a_relation_needs_its_target() -> None:
    dog = Detection("dog", (50, 0, 60, 10), 0.9)
    cat = Detection("cat", (0, 0, 10, 10), 0.9)
    assert GenEvalRules().judge(two("position", position=["right of", 0]), [cat, dog]).correct
    assert (
        "should be above the cat but is right of" in GenEvalRules().judge(two(position=["above", 0]), [cat, dog]).reason
    )
    assert (
        "nothing there that a dog could be right of"
        in GenEvalRules().judge(two(position=["right of", 0]), [dog]).reason
    )


def test_users_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="carry no colour"):
        GenEvalRules().judge(two(color="red"), [Detection(name, (0, 0, 9, 9), 0.9) for name in ("cat", "dog")])
    with pytest.raises(ValueError, match="needs `tag` and `include`"):
        GenEvalRules().judge({"prompt": "a cat"}, [])
    with pytest.raises(ValueError, match="shares in"):
        GenEvalRules(min_score=30)
    with pytest.raises(ValueError, match="max_objects=0"):
        GenEvalRules(max_objects=0)


def test_overall_is_the_unweighted_mean_of_the_tags() -> None:
    rows = [{"tag": "colors", "prompt": "a", "correct": True}]
    rows += [
        {"tag": "position", "prompt": p, "correct": c}
        for p, c in [("b", True), ("b", False), ("c", False), ("c", False)]
    ]
    assert summarize(rows) == {
        "overall": (1 + 0.25) / 2,
        "images": 2 / 5,
        "prompts": 2 / 3,
        "tag/colors": 1.0,
        "tag/position": 0.25,
    }
    with pytest.raises(ValueError, match="no scored image"):
        summarize([])
