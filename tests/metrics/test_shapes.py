from __future__ import annotations

import json
from collections import Counter
from importlib import resources

import pytest
import torch

from star.figures import NEVER_SEEN, held_out_by
from star.metrics.geneval_rules import GenEvalRules
from star.metrics.shapes import (
    SUITES,
    TASKS,
    Metadata,
    ShapesAlignment,
    build_suite,
    is_strict,
    judge,
    load_suite,
    render_suite,
)


def pairs(entry: Metadata) -> list[tuple[str, str]]:
    return [(clause["color"], clause["class"]) for clause in entry["include"]]


def rendered(entries: list[Metadata], num_images: int = 1) -> tuple[torch.Tensor, list[Metadata]]:
    images, metadata = zip(*render_suite(entries, num_images=num_images), strict=True)
    return torch.cat(images), [entry for entry in metadata for _ in range(num_images)]


@pytest.mark.parametrize("name", SUITES)
def test_suite_files_are_what_the_builder_writes(name: str) -> None:
    text = (resources.files("star.metrics") / "suites" / f"{name}.jsonl").read_bytes()
    assert text == build_suite(name).encode()


@pytest.mark.parametrize("name", SUITES)
def test_suites_have_264_different_prompts(name: str) -> None:
    suite = load_suite(name)
    sizes = {"single_object": 6, "two_object": 30, "counting": 18, "colors": 10, "position": 100, "color_attr": 100}
    assert Counter(entry["tag"] for entry in suite) == sizes
    assert len({entry["prompt"] for entry in suite}) == 264
    assert [entry["index"] for entry in suite] == list(range(264))


def test_colours_of_the_suite_are_held_out_and_those_of_its_twin_are_not() -> None:
    held_out, seen = ([e for e in load_suite(name) if e["tag"] in ("colors", "color_attr")] for name in SUITES)
    assert {pairs(entry)[0] for entry in held_out if entry["tag"] == "colors"} == set(NEVER_SEEN)
    reasons = Counter(held_out_by(pairs(entry)) for entry in held_out if entry["tag"] == "color_attr")
    assert reasons == {"pair": 50, "set": 50}
    assert not any(held_out_by(pairs(entry)) for entry in seen)
    for suite in (held_out, seen):
        assert len({frozenset(pairs(entry)) for entry in suite}) == 110


def test_the_two_suites_differ_in_colours_only() -> None:
    rest = [[e for e in load_suite(name) if e["tag"] not in ("colors", "color_attr")] for name in SUITES]
    assert rest[0] == rest[1]


@pytest.mark.parametrize("size", [64, 128])
def test_true_renders_are_right_and_strictly_so(size: int) -> None:
    for images, metadata in render_suite(load_suite()[::5], num_images=1, size=size, seed=3):
        verdict = judge(images[0], metadata)
        assert verdict.correct, (metadata["prompt"], verdict.reason)
        assert is_strict(verdict, metadata)


def test_renders_of_other_prompts_score_near_chance() -> None:
    images, metadata = rendered(load_suite()[::2])
    metric = ShapesAlignment()
    metric.update(images.roll(17, 0), metadata)
    result = metric.compute()
    assert result["value"] < 0.2
    assert result["color_attr"] == 0


def test_swapped_colours_and_reversed_relations_are_wrong() -> None:
    for images, metadata in render_suite([e for e in load_suite() if e["tag"] in ("color_attr", "position")][::10]):
        wrong = json.loads(json.dumps(metadata))
        first, second = wrong["include"]
        if metadata["tag"] == "position":
            opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
            second["position"][0] = opposite[second["position"][0]]
        else:
            first["color"], second["color"] = second["color"], first["color"]
        assert not any(judge(image, wrong).correct for image in images)


def test_an_extra_figure_is_right_but_not_strictly() -> None:
    images, (metadata,) = rendered([entry for entry in load_suite() if entry["tag"] == "two_object"][:1])
    one = {**metadata, "include": metadata["include"][:1]}
    verdict = judge(images[0], one)
    assert verdict.correct
    assert not is_strict(verdict, one)


def test_renders_do_not_depend_on_how_many_are_asked() -> None:
    suite = load_suite()[:3]
    few, many = (list(render_suite(suite, num_images=n, seed=1)) for n in (1, 2))
    assert all(torch.equal(a[0], b[0]) for (a, _), (b, _) in zip(few, many, strict=True))


def test_batches_and_ranks_add_up() -> None:
    images, metadata = rendered(load_suite()[::20], num_images=2)
    metadata = metadata[1:] + metadata[:1]  # some right, some wrong
    whole, parts = ShapesAlignment(num_prompts=264), [ShapesAlignment(num_prompts=264) for _ in range(2)]
    whole.update(images, metadata)
    for start in range(0, len(images), 3):
        parts[start % 2].update(images[start : start + 3], metadata[start : start + 3])
    for name in ("correct", "strict", "scored", "prompt_hits", "prompt_scored"):
        assert torch.equal(getattr(whole, name), sum(getattr(part, name) for part in parts))
    assert 0 < whole.compute()["value"] < 1


def test_the_value_is_the_mean_over_tasks_and_the_rest_is_reported_beside() -> None:
    images, metadata = rendered([e for e in load_suite() if e["tag"] in ("colors", "counting")][:20])
    metric = ShapesAlignment(num_prompts=264)
    assert metric.update(images[:18], metadata[:18]) is None
    metric.update(images[:2], metadata[18:])  # pictures of counts for prompts of colours
    result = metric.compute()
    assert result["counting"] == 1
    assert result["colors"] == 0
    assert result["value"] == 0.5
    assert result["images"] == result["prompts"] == pytest.approx(0.9)
    assert result["num_images"] == 20
    assert result["num_images/colors"] == 2
    assert not set(TASKS) - {"colors", "counting"} & set(result)
    assert list(metric.iterate_missing()) == []


def test_the_rules_are_handed_over() -> None:
    images, (metadata,) = rendered(load_suite()[:1])
    assert not judge(images[0], metadata, rules=GenEvalRules(min_score=1.0)).correct


def test_users_mistakes_are_named() -> None:
    images, metadata = rendered(load_suite()[:2])
    metric = ShapesAlignment(num_prompts=2)
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        metric.update(images, metadata[:1])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        metric.update(2 * images - 1, metadata)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        metric.update(images[:, :1], metadata)
    with pytest.raises(ValueError, match="unknown tag 'scenery'"):
        metric.update(images, [{**entry, "tag": "scenery"} for entry in metadata])
    with pytest.raises(ValueError, match="2 prompts, got 7"):
        metric.update(images, [{**entry, "index": 7} for entry in metadata])
    with pytest.raises(ValueError, match="num_prompts=0"):
        ShapesAlignment(num_prompts=0)
    with pytest.raises(ValueError, match="unknown suite 'forms'"):
        load_suite("forms")
    empty = ShapesAlignment()
    empty.update(images[:0], [])
    with pytest.raises(ValueError, match="no image was scored"):
        empty.compute()
