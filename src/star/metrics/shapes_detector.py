"""Recognises coloured figures on a plain background without learned weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from star.figures import COLORS, MAX_ROTATION, PALETTE, SHAPES, Figure, coverage
from star.metrics.geneval_rules import Box, Detection
from star.metrics.shapes_pixels import (
    SIDE,
    Array,
    Mask,
    Numbers,
    Window,
    border,
    components,
    grow,
    lab,
    neighbours,
    smooth,
    to_canvas,
    window,
)

_PALETTE_LAB = lab(np.array([PALETTE[color] for color in COLORS], np.float32))  # (10, 3)
_PATCH = 28
_PATCH_REACH = 1.15  # half a patch's side, in units of the square root of the figure's area
_ROTATIONS = np.linspace(-MAX_ROTATION, MAX_ROTATION, 5).tolist()
_BLURS = (0.0, 0.08, 0.16)  # standard deviations in the same units
_HALO = 3  # how far (in pixels) a blurred edge may leak out of the region above the contrast


@dataclass(frozen=True)
class ShapeDetector:
    """Finds figures by colour against the border's colour and names them by correlation with templates.

    Images larger than 64 pixels are averaged down to 64 first; smaller ones are enlarged by repetition, which works
    but has not been calibrated. The same image always gives the same detections, bit by bit. Two touching figures
    of one colour are seen as one thing, and overlapping figures are beyond it.

    Attributes:
        contrast: CIELAB distance from the background at which a (smoothed) pixel belongs to something.
        min_score: least correlation with a template for something to be a figure.
        min_area: smaller things, in pixels of the 64-pixel image, are noise.
        min_core: so many pixels of one colour, amid neighbours of that colour, may make a part a figure of its own.
        rim_tolerance: a part is a blurred edge when its colour lies this close (sRGB, 0-255) to the line between the
            background and another part's colour.
        max_contact: a part that shares more of its outline with other parts is no figure of its own.

    Raises:
        ValueError: for a share outside [0, 1] or a negative size.

    """

    contrast: float = 16.0
    min_score: float = 0.8
    min_area: int = 40
    min_core: int = 6
    rim_tolerance: float = 30.0
    max_contact: float = 0.4

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (0 <= self.min_score <= 1 and 0 <= self.max_contact <= 1):
            raise ValueError(f"min_score and max_contact lie in [0, 1], got {self.min_score} and {self.max_contact}")
        if min(self.contrast, self.min_area, self.min_core, self.rim_tolerance) < 0:
            raise ValueError(f"a detector's sizes and distances can't be negative, got {self}")

    def __call__(self, image: NDArray[np.uint8]) -> list[Detection]:
        """Find the figures of an sRGB image (H, W, 3) of 0-255.

        Returns:
            What was found, best first; boxes in pixels of the image, scores are correlations.

        Raises:
            ValueError: when the image is not (H, W, 3) uint8.

        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"a detector needs (H, W, 3) uint8 images, got {image.shape} {image.dtype}")
        canvas = to_canvas(image)
        background = np.median(border(canvas), axis=0)  # (3,)
        zoom = image.shape[1] / SIDE, image.shape[0] / SIDE
        found = []
        for place, region, others in self._regions(canvas, background):
            shape, color, score = _recognise(canvas[place], background, region, others)
            if score >= self.min_score:
                found.append(Detection(shape, _box(place, region, zoom), score, color))
        return sorted(found, key=lambda detection: -detection.score)

    def _regions(self, canvas: Array, background: Array) -> Iterator[tuple[Window, Mask, Mask]]:
        """Windows with the pixels (h, w) of one object each, and with those of all other objects in the window."""
        colors = lab(smooth(canvas))  # (64, 64, 3)
        foreground = np.linalg.norm(colors - lab(background), axis=-1) > self.contrast
        # The nearest colour p of the palette has the least |p|^2 - 2 p.x, for which no (64, 64, 10, 3) is needed.
        nearest = ((_PALETTE_LAB**2).sum(1) - 2 * colors @ _PALETTE_LAB.T).argmin(-1)  # (64, 64)
        objects = np.zeros((SIDE, SIDE), np.int64)
        for whole in components(foreground, self.min_area):
            place = window(whole, 0)
            pieces = self._split(whole[place], canvas[place], nearest[place], background)
            for number in np.flatnonzero(np.bincount(pieces.ravel()) >= self.min_area):
                if number:
                    objects[place][pieces == number] = objects.max() + 1
        for region in [objects == number for number in range(1, int(objects.max()) + 1)]:
            place = window(region, _HALO)
            yield place, region[place], (objects[place] != 0) & ~region[place]

    def _split(self, whole: Mask, pixels: Array, nearest: Numbers, background: Array) -> Numbers:
        """Number the parts (h, w) of a connected region from 1: one, unless figures of different colours touch."""
        labels = np.where(whole, nearest, -1)
        layers = labels == np.arange(len(COLORS))[:, None, None]  # (10, h, w)
        cores = layers & (neighbours(layers) >= 8)
        candidates = np.flatnonzero(cores.sum((1, 2)) >= max(self.min_core, 1))
        tints = {c: np.median(pixels[cores[c]], axis=0) for c in candidates}
        kept = [
            c
            for c in candidates
            if not any(self._is_rim(tints[c], tints[other], background) for other in candidates if other != c)
        ]
        if len(kept) < 2:
            return whole.astype(np.int64)
        grown = grow(np.where(np.isin(labels, kept) & cores.any(0), labels + 1, 0), whole)
        pieces = np.zeros_like(grown)
        for c in kept:
            for piece in components(grown == c + 1):
                pieces[piece] = pieces.max() + 1
        return self._merge(pieces)

    def _is_rim(self, tint: Array, other: Array, background: Array) -> bool:
        """Whether a colour is a mixture of the background and another colour, as blurred edges are."""
        line, offset = other - background, tint - background
        share = float(offset @ line / max(float(line @ line), 1e-6))
        return 0.1 < share < 0.9 and float(np.linalg.norm(offset - share * line)) < self.rim_tolerance

    def _merge(self, pieces: Numbers) -> Numbers:
        """Join pieces (h, w), smallest first, to the neighbour they touch most while they touch too much."""
        areas = np.bincount(pieces.ravel())
        areas[0] = 0
        queue = [int(number) for number in np.argsort(areas, kind="stable") if areas[number]]
        while queue:
            number = queue.pop(0)
            piece = pieces == number
            ring = pieces[(neighbours(piece) > 0) & ~piece]
            touching = np.bincount(ring, minlength=len(areas))
            touching[0] = 0  # the background
            if touching.sum() > self.max_contact * len(ring):
                neighbour = int(touching.argmax())
                pieces = np.where(piece, neighbour, pieces)
                areas[[neighbour, number]] = areas[neighbour] + areas[number], 0
                # What was a figure of its own beside the two may be enclosed by the one.
                queue = [int(other) for other in np.argsort(areas, kind="stable") if areas[other]]
        return pieces


def _recognise(pixels: Array, background: Array, region: Mask, others: Mask) -> tuple[str, str, float]:
    """Shape, colour and correlation of the object in a window (h, w, 3)."""
    depth = neighbours(region, reach=2)
    tint = np.median(pixels[region & (depth >= np.median(depth[region]))], axis=0)  # of the inner half
    color = COLORS[int(np.linalg.norm(_PALETTE_LAB - lab(tint), axis=-1).argmin())]
    line = tint - background
    # Where each pixel lies on the line from background to tint, with room for noise that averages out.
    alpha = np.clip((pixels - background) @ line / max(float(line @ line), 1e-6), -0.5, 1.5)
    names, patches = _templates()
    scores = patches @ _patch(np.where(others, 0, alpha))
    best = int(scores.argmax())
    return names[best], color, min(float(scores[best]), 1.0)


def _box(place: Window, region: Mask, zoom: tuple[float, float]) -> Box:
    """The region's bounding box in pixels of the original image."""
    rows, columns = window(region, 0)
    x, y = place[1].start, place[0].start
    return (
        (x + columns.start) * zoom[0],
        (y + rows.start) * zoom[1],
        (x + columns.stop) * zoom[0],
        (y + rows.stop) * zoom[1],
    )


def _patch(alpha: Array) -> Array:
    """A coverage map (h, w), centred and scaled to unit area, as a vector (28 * 28,) of mean 0 and length 1."""
    height, width = alpha.shape
    area = max(float(alpha.sum()), 1.0)
    cy = float(alpha.sum(1) @ np.arange(height)) / area
    cx = float(alpha.sum(0) @ np.arange(width)) / area
    steps = np.linspace(-_PATCH_REACH, _PATCH_REACH, _PATCH) * area**0.5
    # Bilinear interpolation is separable, and outside the window there is nothing.
    rows = np.clip(1 - np.abs(cy + steps[:, None] - np.arange(height)), 0, None)
    columns = np.clip(1 - np.abs(cx + steps[:, None] - np.arange(width)), 0, None)
    patch = (rows @ alpha @ columns.T).ravel()
    patch -= patch.mean()
    return (patch / max(float(np.linalg.norm(patch)), 1e-6)).astype(np.float32)


@cache
def _templates() -> tuple[tuple[str, ...], Array]:
    """Names (78) and patches (78, 28 * 28) of every shape, rotation and blur."""
    names, patches = [], []
    for shape in SHAPES:
        for rot in [0.0] if shape == "circle" else _ROTATIONS:
            sharp = coverage(Figure(shape, COLORS[0], SIDE / 2, SIDE / 2, 9.0, rot), SIDE)
            for blur in _BLURS:
                names.append(shape)
                patches.append(_patch(_blurred(sharp, blur * float(sharp.sum()) ** 0.5)))
    return tuple(names), np.stack(patches)


def _blurred(alpha: Array, deviation: float) -> Array:
    """A map (64, 64) after a Gaussian blur."""
    if deviation == 0:
        return alpha
    distance = np.arange(SIDE)[:, None] - np.arange(SIDE)
    kernel = np.exp(-0.5 * (distance / deviation) ** 2)
    kernel /= kernel.sum(1, keepdims=True)
    return (kernel @ alpha @ kernel.T).astype(np.float32)
