from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from star.figures import COLORS, SHAPES, Figure, Scene, arrange, draw
from star.metrics.geneval_rules import Detection
from star.metrics.shapes_detector import ShapeDetector

GOLDEN = Path(__file__).parents[1] / "golden" / "shapes"
GREY = (153, 153, 153)


def seen(detections: list[Detection]) -> Counter[tuple[str, str]]:
    return Counter((str(found.color), found.label) for found in detections)


def golden(name: str) -> list[tuple[np.ndarray, Counter[tuple[str, str]]]]:
    entries = [json.loads(line) for line in (GOLDEN / "scenes.jsonl").read_text().splitlines()]
    truth = {entry["id"]: Counter((o["color"], o["shape"]) for o in entry["objects"]) for entry in entries}
    with tarfile.open(GOLDEN / f"{name}.tar") as tar:
        return [(np.asarray(Image.open(io.BytesIO(tar.extractfile(m).read()))), truth[m.name[:5]]) for m in tar]


@pytest.mark.parametrize(("name", "bar"), [("clean", 0.99), ("blur15", 0.95), ("noise05", 0.95), ("down4", 0.95)])
def test_golden_images_are_read_exactly(name: str, bar: float) -> None:
    exact = [seen(ShapeDetector()(image)) == truth for image, truth in golden(name)]
    assert len(exact) >= 60
    assert np.mean(exact) >= bar


@pytest.mark.parametrize("size", [64, 100, 128, 256])
def test_every_colour_and_shape_is_read_at_every_size(size: int) -> None:
    rng = np.random.default_rng(0)
    for index, color in enumerate(COLORS):
        pairs = [(color, SHAPES[index % 6]), (COLORS[(index + 3) % 10], SHAPES[(index + 1) % 6])]
        assert seen(ShapeDetector()(draw(arrange(pairs, rng), size))) == Counter(pairs)


def test_boxes_are_in_pixels_of_the_image() -> None:
    scene = Scene(GREY, (Figure("square", "blue", 20, 40, 8),))
    half = 8 * 1.15 * 0.5**0.5
    for size in (64, 128):
        (found,) = ShapeDetector()(draw(scene, size))
        expected = np.array((20 - half, 40 - half, 20 + half, 40 + half)) * size / 64
        # A box holds the whole of every pixel touched, and the smoothing may add one more.
        assert np.abs(np.array(found.box) - expected).max() < 2.1 * size / 64


def test_repetition_gives_the_same_bits() -> None:
    image = draw(arrange([("red", "circle"), ("brown", "square")], np.random.default_rng(1)), 64)
    assert ShapeDetector()(image) == ShapeDetector()(image.copy())


def test_touching_figures_of_different_colours_are_two() -> None:
    scene = Scene(GREY, (Figure("circle", "red", 22, 32, 9), Figure("square", "blue", 39.5, 32, 9.5)))
    assert seen(ShapeDetector()(draw(scene, 64))) == Counter([("red", "circle"), ("blue", "square")])


def test_neighbours_of_one_colour_are_counted() -> None:
    rng = np.random.default_rng(2)
    for count in (2, 3, 4):
        pairs = [("green", "star")] * count
        assert seen(ShapeDetector()(draw(arrange(pairs, rng), 64))) == Counter(pairs)


def test_nothing_is_found_where_nothing_is() -> None:
    rng = np.random.default_rng(0)
    assert ShapeDetector()(np.full((64, 64, 3), 150, np.uint8)) == []
    assert ShapeDetector()(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) == []
    stripes = np.full((64, 64, 3), 150, np.uint8)
    stripes[10:54, 8:56:4] = (214, 30, 36)
    assert ShapeDetector()(stripes) == []


def test_few_figures_are_seen_in_coloured_texture() -> None:
    rng = np.random.default_rng(0)
    found = [
        len(
            ShapeDetector()(
                np.asarray(Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)))
            )
        )
        for _ in range(10)
    ]
    assert np.mean(found) < 2


def test_users_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="uint8 images, got"):
        ShapeDetector()(np.zeros((64, 64, 3), np.float32))
    with pytest.raises(ValueError, match="min_score"):
        ShapeDetector(min_score=80)
    with pytest.raises(ValueError, match="can't be negative"):
        ShapeDetector(contrast=-1)
