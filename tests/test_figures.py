from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from star.figures import (
    BACKGROUNDS,
    COLORS,
    GAP,
    MARGIN,
    NEVER_SEEN,
    OUTLINES,
    PALETTE,
    REACH,
    RELATIONS,
    SHAPES,
    Figure,
    Scene,
    arrange,
    coverage,
    draw,
    held_out_by,
    is_held_out,
    phrase,
    stands,
)

GOLDEN = Path(__file__).parent / "golden" / "shapes"


def golden_scenes() -> list[tuple[Scene, np.ndarray]]:
    entries = [json.loads(line) for line in (GOLDEN / "scenes.jsonl").read_text().splitlines()]
    with tarfile.open(GOLDEN / "clean.tar") as tar:
        images = {m.name[:5]: np.asarray(Image.open(io.BytesIO(tar.extractfile(m).read()))) for m in tar}
    return [
        (Scene(tuple(e["background"]), tuple(Figure(**o) for o in e["objects"])), images[e["id"]].astype(int))
        for e in entries
    ]


def snapped_coverage(figure: Figure) -> np.ndarray:
    """The golden renderer's: Pillow fills polygons whose corners it first truncates to the 8x finer grid."""
    if figure.shape == "circle":
        angles = np.arange(64) * 2 * np.pi / 64
        corners = np.stack((np.sin(angles), -np.cos(angles)), 1)
    else:
        cos, sin = math.cos(figure.rot), math.sin(figure.rot)
        corners = OUTLINES[figure.shape] @ np.array(((cos, sin), (-sin, cos)))
    canvas = Image.new("L", (512, 512))
    points = (corners * figure.r + (figure.cx, figure.cy)) * 8 - 0.5
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], fill=255)
    return np.asarray(canvas).reshape(64, 8, 64, 8).mean((1, 3)) / 255


def sampled_coverage(figure: Figure, size: int) -> np.ndarray:
    """Every one of the 8x8 sample points of every pixel tested by itself."""
    grid = (np.arange(8 * size) + 0.5) * 64 / (8 * size)
    x, y = np.meshgrid(grid, grid)
    if figure.shape == "circle":
        inside = np.hypot(x - figure.cx, y - figure.cy) < figure.r
    else:
        cos, sin = math.cos(figure.rot), math.sin(figure.rot)
        corners = OUTLINES[figure.shape] @ np.array(((cos, sin), (-sin, cos))) * figure.r + (figure.cx, figure.cy)
        inside = np.zeros_like(x, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0), strict=True):
            if ay != by:
                inside ^= ((ay <= y) != (by <= y)) & (x >= ax + (y - ay) * (bx - ax) / (by - ay))
    return inside.reshape(size, 8, size, 8).mean((1, 3))


@pytest.mark.parametrize("size", [24, 64, 81])
@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_the_share_of_sample_points_inside(shape: str, size: int) -> None:
    figure = Figure(shape, "red", 20.3, 33.1, 9.7, 0.11)
    assert np.array_equal(coverage(figure, size), sampled_coverage(figure, size).astype(np.float32))


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_keeps_the_area_at_every_size_and_rotation(shape: str) -> None:
    areas = [
        coverage(Figure(shape, "red", 32, 32, 10, rot), size).sum() / size**2 for size in (64, 160) for rot in (0, 0.1)
    ]
    assert np.ptp(areas) < 0.02 * areas[0]


def test_a_figure_that_leaves_the_canvas_is_cut_off() -> None:
    whole = coverage(Figure("circle", "red", 32, 32, 10), 64)
    assert np.array_equal(coverage(Figure("circle", "red", 0, 32, 10), 64)[:, :11], whole[:, 32:43])
    assert coverage(Figure("star", "red", 32, 200, 10), 64).sum() == 0


def test_geometry_of_the_golden_renders() -> None:
    for scene, golden in golden_scenes():
        canvas = np.broadcast_to(np.array(scene.background, float), (64, 64, 3))
        for figure in scene.figures:
            alpha = snapped_coverage(figure)[..., None]
            canvas = canvas * (1 - alpha) + np.array(PALETTE[figure.color]) * alpha
        assert np.abs(np.rint(canvas) - golden).max() <= 1


def test_drawing_differs_from_the_golden_renders_by_their_snapped_corners_only() -> None:
    differences = []
    for scene, golden in golden_scenes():
        difference = np.abs(draw(scene, 64).astype(int) - golden).max(-1)
        parts = np.pad(np.stack([coverage(figure, 64) for figure in scene.figures]).sum(0), 1)
        around = np.stack([parts[i : i + 64, j : j + 64] for i in range(3) for j in range(3)])
        assert difference[(around == 0).all(0) | (around == 1).all(0)].max() == 0
        differences.append(difference)
    assert np.mean(differences) < 0.7
    assert np.max(differences) < 48


def test_drawing_blends_in_srgb() -> None:
    scene = Scene((140, 140, 140), (Figure("square", "white", 32, 32, 10),))
    alpha = coverage(scene.figures[0], 64)[..., None]
    assert np.array_equal(draw(scene, 64), np.rint(140 + alpha * (248 - 140)).repeat(3, -1))


@pytest.mark.parametrize("relation", list(RELATIONS))
def test_arranged_figures_keep_their_distance_and_relation(relation: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        scene = arrange([("red", "circle"), ("blue", "star")], rng, [(1, relation, 0)])
        target, figure = scene.figures
        assert stands(figure, relation, target)
        assert scene.background in BACKGROUNDS
        assert math.hypot(figure.cx - target.cx, figure.cy - target.cy) > REACH * (figure.r + target.r) + GAP
        for one in scene.figures:
            assert 6.5 <= one.r <= 11
            assert min(one.cx, one.cy, 64 - one.cx, 64 - one.cy) >= REACH * one.r + MARGIN - 1e-9


def test_three_or_more_figures_are_smaller() -> None:
    figures = arrange([("red", "cross")] * 4, np.random.default_rng(0)).figures
    assert len(figures) == 4
    assert max(figure.r for figure in figures) <= 9


def test_arranging_is_a_function_of_the_generator() -> None:
    pairs = [("red", "cross"), ("blue", "square")]
    assert arrange(pairs, np.random.default_rng(3)) == arrange(pairs, np.random.default_rng(3))


def test_impossible_arrangements_are_refused() -> None:
    with pytest.raises(ValueError, match="found no place"):
        arrange([("red", "cross")] * 2, np.random.default_rng(0), [(0, "above", 1), (1, "above", 0)])
    with pytest.raises(ValueError, match="unknown relation 'behind'"):
        arrange([("red", "cross")] * 2, np.random.default_rng(0), [(0, "behind", 1)])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"shape": "egg"}, "unknown shape 'egg'"), ({"color": "teal"}, "unknown colour 'teal'"), ({"r": 0}, "positive")],
)
def test_figures_are_validated(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Figure(**{"shape": "star", "color": "blue", "cx": 32, "cy": 32, "r": 9, **change})


def test_the_ten_pairs_are_never_seen_in_any_company() -> None:
    assert len(set(NEVER_SEEN)) == 10
    assert {color for color, _ in NEVER_SEEN} == set(COLORS)
    for pair in NEVER_SEEN:
        assert held_out_by([pair]) == held_out_by([("gold", "ring"), pair]) == "pair"


def test_about_a_tenth_of_the_sets_is_held_out_and_neither_order_nor_repeats_matter() -> None:
    pairs = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in NEVER_SEEN]
    sets = [(a, b) for i, a in enumerate(pairs) for b in pairs[:i]]
    held_out = [held_out_by(two) for two in sets]
    assert 0.07 < held_out.count("set") / len(sets) < 0.13
    assert held_out == [held_out_by([b, a, b]) for a, b in sets]
    assert not any(held_out_by([pair, pair]) for pair in pairs)


def test_figures_are_held_out_by_their_colours_and_shapes() -> None:
    assert is_held_out([Figure("star", "red", 32, 32, 9)])
    assert not is_held_out([Figure("circle", "red", 32, 32, 9)])


def test_phrases() -> None:
    assert phrase("circle") == "a circle"
    assert phrase("star", "orange") == "an orange star"
    assert phrase("cross", count=3) == "three crosses"
    assert phrase("square", "red", 2) == "two red squares"
    with pytest.raises(ValueError, match="from 1 to 4, got 5"):
        phrase("square", count=5)
