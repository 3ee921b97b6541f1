from __future__ import annotations

import numpy as np
import pytest

from star.metrics.shapes_pixels import components, grow, lab, neighbours, smooth, to_canvas, window


def flood(mask: np.ndarray) -> list[np.ndarray]:
    """8-connected parts by visiting pixels one by one."""
    left, parts = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        part, stack = np.zeros_like(mask), [left.pop()]
        while stack:
            y, x = stack.pop()
            part[y, x] = True
            around = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            stack += around
        parts.append(part)
    return parts


@pytest.mark.parametrize("density", [0.0, 0.2, 0.45, 0.7, 1.0])
def test_components_are_what_a_flood_fill_finds(density: float) -> None:
    mask = np.random.default_rng(0).random((30, 41)) < density
    expected = {part.tobytes() for part in flood(mask)}
    assert {part.tobytes() for part in components(mask)} == expected
    large = {part.tobytes() for part in flood(mask) if part.sum() >= 5}
    assert {part.tobytes() for part in components(mask, 5)} == large


def test_a_spiral_is_one_component() -> None:
    mask = np.zeros((9, 9), bool)
    mask[0], mask[:, 8], mask[8], mask[2:, 0], mask[2, :7], mask[2:7, 6], mask[6, 2:7] = (True,) * 7
    assert len(components(mask)) == 1


def test_averaging_keeps_the_mean_at_any_size() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    canvas = to_canvas(image)
    assert canvas.shape == (64, 64, 3)
    assert np.allclose(canvas.mean((0, 1)), image.mean((0, 1)), atol=1e-3)
    doubled = image[:64, :64].repeat(2, 0).repeat(2, 1)
    assert np.allclose(to_canvas(doubled), image[:64, :64], atol=1e-3)


def test_known_lab_values() -> None:
    colors = np.array([(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)], np.float32)
    expected = [(100, 0, 0), (0, 0, 0), (53.24, 80.09, 67.20), (32.30, 79.19, -107.86)]
    assert np.allclose(lab(colors), expected, atol=0.1)


def test_neighbours_and_windows() -> None:
    mask = np.zeros((6, 7), bool)
    mask[2:4, 3:6] = True
    assert neighbours(mask)[2, 4] == 6
    assert neighbours(mask, reach=2)[0, 0] == 0
    assert neighbours(mask[None])[0].tolist() == neighbours(mask).tolist()
    assert window(mask, 0) == (slice(2, 4), slice(3, 6))
    assert window(mask, 3) == (slice(0, 6), slice(0, 7))


def test_growing_reaches_everything_connected_and_nothing_else() -> None:
    within = np.ones((5, 9), bool)
    within[:, 4] = False
    seeds = np.zeros((5, 9), int)
    seeds[2, 0] = 3
    assert np.array_equal(grow(seeds, within)[:, :4], np.full((5, 4), 3))
    assert not grow(seeds, within)[:, 4:].any()


def test_smoothing_keeps_a_plain_image() -> None:
    assert np.allclose(smooth(np.full((5, 6, 3), 7, np.float32)), 7)
