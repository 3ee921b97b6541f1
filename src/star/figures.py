"""Coloured figures on a grey canvas: a world small enough to draw, say in words and recognise exactly."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CANVAS = 64.0  # coordinates and radii are in units of a 64-pixel canvas, whatever the size drawn
REACH = 1.3  # no shape reaches further than REACH * r from its centre
MAX_ROTATION = 0.15
SUBSAMPLES = 8

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # y points down
BACKGROUNDS = ((140, 140, 140), (153, 153, 153), (168, 168, 168))
PALETTE = {
    "red": (214, 30, 36),
    "orange": (255, 140, 0),
    "yellow": (250, 225, 40),
    "green": (30, 150, 50),
    "blue": (30, 80, 220),
    "purple": (125, 40, 165),
    "pink": (255, 150, 195),
    "brown": (110, 65, 25),
    "black": (12, 12, 12),
    "white": (248, 248, 248),
}
COLORS = tuple(PALETTE)
NEVER_SEEN = (
    ("red", "star"),
    ("orange", "diamond"),
    ("yellow", "cross"),
    ("green", "triangle"),
    ("blue", "circle"),
    ("purple", "square"),
    ("pink", "star"),
    ("brown", "cross"),
    ("black", "diamond"),
    ("white", "triangle"),
)
NUMBERS = ("no", "one", "two", "three", "four")
HELD_OUT_BELOW = 26  # of the 256 values of a hash's first byte: about a tenth of all sets

MARGIN = 1.5  # between a figure and the canvas's edge
GAP = 3.0  # between two figures
RELATION_CONE = math.cos(math.radians(35))
_TRIES_A_FIGURE, _TRIES_A_SCENE = 40, 1000


def _ring(radii: Sequence[float]) -> list[tuple[float, float]]:
    """Corners at equal angles, clockwise, the first one straight up."""
    angles = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _quarters(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners, then the same after one, two and three clockwise quarter turns."""
    turns = ((1, 0), (0, 1), (-1, 0), (0, -1))
    return [(x * cos - y * sin, x * sin + y * cos) for cos, sin in turns for x, y in corners]


OUTLINES: dict[str, NDArray[np.float64]] = {
    "square": np.array(_quarters([(-1.15 * math.sqrt(0.5), -1.15 * math.sqrt(0.5))])),
    "triangle": np.array(_ring([1.25] * 3)),
    "star": np.array(_ring([1.3, 0.55] * 5)),
    "cross": np.array(_quarters([(-0.38, -0.38), (-0.38, -1.1), (0.38, -1.1)])),
    "diamond": np.array([(0.0, -1.25), (0.85, 0.0), (0.0, 1.25), (-0.85, 0.0)]),
}
"""Corners (N, 2) of every straight-edged shape of radius 1 around the origin."""


@dataclass(frozen=True)
class Figure:
    """One coloured shape.

    Attributes:
        shape: one of `SHAPES`.
        color: one of `COLORS`.
        cx: centre, to the right, in units of a 64-pixel canvas.
        cy: centre, downwards.
        r: nominal radius in the same units.
        rot: rotation in radians, clockwise on the screen; a circle ignores it.

    Raises:
        ValueError: for an unknown shape or colour, or a radius that is not positive.

    """

    shape: str
    color: str
    cx: float
    cy: float
    r: float
    rot: float = 0.0

    def __post_init__(self) -> None:
        """Validate the words and the radius."""
        if self.shape not in SHAPES:
            raise ValueError(f"unknown shape {self.shape!r}, use one of {', '.join(SHAPES)}")
        if self.color not in PALETTE:
            raise ValueError(f"unknown colour {self.color!r}, use one of {', '.join(COLORS)}")
        if not self.r > 0:
            raise ValueError(f"a figure needs a positive radius, got {self.r}")

    @property
    def pair(self) -> tuple[str, str]:
        """Its (colour, shape), what a caption can say about it alone."""
        return self.color, self.shape


@dataclass(frozen=True)
class Scene:
    """Figures that do not overlap on a plain background, an sRGB triple of 0-255."""

    background: tuple[int, int, int]
    figures: tuple[Figure, ...]


def coverage(figure: Figure, size: int) -> NDArray[np.float32]:
    """How much of every pixel the figure covers.

    Args:
        figure: what to draw.
        size: side of the square canvas in pixels.

    Returns:
        (size, size) in [0, 1], in steps of 1/64: the share of 8x8 sample points inside the figure.

    """
    scale = SUBSAMPLES * size / CANVAS
    rows, columns, signs = _crossings(figure, scale, SUBSAMPLES * size)
    # A crossing adds its sign to every sample right of it. Per pixel that is a step, written as its two differences
    # and integrated along the row, so the cost does not depend on how much the figure covers.
    pixel, inside = np.divmod(columns, SUBSAMPLES)
    width = size + 2
    at = (rows // SUBSAMPLES) * width + pixel
    length = size * width
    steps = np.bincount(at, signs * (SUBSAMPLES - inside), length) + np.bincount(at + 1, signs * inside, length)
    return (np.cumsum(steps.reshape(size, width), axis=1)[:, :size] / SUBSAMPLES**2).astype(np.float32)


def draw(scene: Scene, size: int) -> NDArray[np.uint8]:
    """Draw a scene, (size, size, 3) sRGB; edges are blended in sRGB as browsers and image editors do."""
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = scene.background
    for figure in scene.figures:
        alpha = coverage(figure, size)[..., None]  # (size, size, 1)
        canvas += alpha * (np.array(PALETTE[figure.color], np.float32) - canvas)
    return np.rint(canvas).astype(np.uint8)


def phrase(shape: str, color: str | None = None, count: int = 1) -> str:
    """What captions call figures: `a star`, `an orange cross`, `three red crosses`."""
    if not 1 <= count < len(NUMBERS):
        raise ValueError(f"captions count from 1 to {len(NUMBERS) - 1}, got {count}")
    noun = shape if count == 1 else shape + ("es" if shape.endswith("s") else "s")
    words = noun if color is None else f"{color} {noun}"
    if count > 1:
        return f"{NUMBERS[count]} {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def held_out_by(pairs: Iterable[tuple[str, str]]) -> Literal["pair", "set"] | None:
    """Why a scene of these (colour, shape) pairs is kept out of training.

    Returns:
        `pair` when one of them is in `NEVER_SEEN`, `set` when there are two or more different ones and their set
        hashes low, None when the scene may be trained on.

    """
    distinct = set(pairs)
    if not distinct.isdisjoint(NEVER_SEEN):
        return "pair"
    if len(distinct) < 2:
        return None
    key = "|".join(sorted(f"{color} {shape}" for color, shape in distinct))
    return "set" if hashlib.sha256(key.encode()).digest()[0] < HELD_OUT_BELOW else None


def is_held_out(figures: Iterable[Figure]) -> bool:
    """Whether a scene of these figures is kept out of every training image and caption."""
    return held_out_by(figure.pair for figure in figures) is not None


def stands(figure: Figure, relation: str, target: Figure) -> bool:
    """Whether `figure` is `left of`, `right of`, `above` or `below` the target, within 35 degrees of that axis."""
    return _within_cone((figure.cx, figure.cy), relation, (target.cx, target.cy))


def arrange(
    pairs: Sequence[tuple[str, str]], rng: np.random.Generator, relations: Sequence[tuple[int, str, int]] = ()
) -> Scene:
    """Put figures at random places on a random background.

    Args:
        pairs: (colour, shape) of each figure.
        rng: where all randomness comes from.
        relations: `(i, "above", j)` puts figure i above figure j, within 35 degrees of the axis.

    Returns:
        A scene whose figures keep their distance from each other and from the edge.

    Raises:
        ValueError: for relations that can't hold, or more figures than the canvas has room for.

    """
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    for _ in range(_TRIES_A_SCENE):
        circles = _scatter(len(pairs), rng)
        if circles and all(_within_cone(circles[i], relation, circles[j]) for i, relation, j in relations):
            break
    else:
        raise ValueError(f"found no place for {len(pairs)} figures with the relations {list(relations)}; ask for less")
    turns = MAX_ROTATION * (2 * rng.random(len(pairs)) - 1)
    figures = [
        Figure(shape, color, *circle, rot=0.0 if shape == "circle" else float(turn))
        for (color, shape), circle, turn in zip(pairs, circles, turns, strict=True)
    ]
    return Scene(background, tuple(figures))


def _scatter(num: int, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """`num` circles (cx, cy, r) that keep their distance; empty when one found no room."""
    largest = 9.0 if num > 2 else 11.0
    circles: list[tuple[float, float, float]] = []
    for _ in range(_TRIES_A_FIGURE * num):
        x, y, size = rng.random(3).tolist()
        r = 6.5 + (largest - 6.5) * size
        border = REACH * r + MARGIN
        cx, cy = border + (CANVAS - 2 * border) * x, border + (CANVAS - 2 * border) * y
        if all(math.hypot(cx - ox, cy - oy) > REACH * (r + other) + GAP for ox, oy, other in circles):
            circles.append((cx, cy, r))
        if len(circles) == num:
            return circles
    return []


def _within_cone(point: Sequence[float], relation: str, target: Sequence[float]) -> bool:
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}, use one of {', '.join(RELATIONS)}")
    (ax, ay), dx, dy = RELATIONS[relation], point[0] - target[0], point[1] - target[1]
    return ax * dx + ay * dy >= RELATION_CONE * math.hypot(dx, dy) > 0


def _crossings(figure: Figure, scale: float, samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray]:
    """Where the outline crosses the sample rows: (row, first sample column right of it, +1 entering or -1 leaving)."""
    heights = np.arange(samples) + 0.5  # sample points lie in the middle of their cells
    if figure.shape == "circle":
        offset = heights - figure.cy * scale
        rows = np.flatnonzero(np.abs(offset) < figure.r * scale)
        half = np.sqrt((figure.r * scale) ** 2 - offset[rows] ** 2)
        rows, signs = np.tile(rows, 2), np.repeat((1, -1), len(rows))
        x = np.concatenate((figure.cx * scale - half, figure.cx * scale + half))
    else:
        cos, sin = math.cos(figure.rot), math.sin(figure.rot)
        turned = OUTLINES[figure.shape] @ np.array(((cos, sin), (-sin, cos)))
        start = (turned * figure.r + (figure.cx, figure.cy)) * scale  # (N, 2)
        stop = np.roll(start, -1, axis=0)
        below = start[:, 1:] <= heights, stop[:, 1:] <= heights  # (N, samples) each
        edges, rows = np.nonzero(below[0] != below[1])
        slope = (stop[edges, 0] - start[edges, 0]) / (stop[edges, 1] - start[edges, 1])
        x = start[edges, 0] + slope * (heights[rows] - start[edges, 1])
        # Clockwise on the screen, so the left side of a figure is drawn upwards: there a row enters it.
        signs = np.where(stop[edges, 1] < start[edges, 1], 1, -1)
    return rows, np.clip(np.ceil(x - 0.5), 0, samples).astype(np.int64), signs
