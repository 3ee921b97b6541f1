"""Small image operations for finding figures: colour spaces, masks and their connected parts, in numpy alone."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from star.figures import CANVAS

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]
Window = tuple[slice, slice]

SIDE = int(CANVAS)
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
_TO_XYZ /= _TO_XYZ.sum(1, keepdims=True)  # relative to the white point, D65


def to_canvas(image: NDArray[np.uint8]) -> Array:
    """Average an image (H, W, 3) over a 64x64 grid, (64, 64, 3) of 0-255."""
    pixels = image.astype(np.float32)
    height, width, channels = image.shape
    if (height, width) == (SIDE, SIDE):
        return pixels
    tall = (_box_weights(height) @ pixels.reshape(height, -1)).reshape(SIDE, width, channels)
    return np.matmul(_box_weights(width), tall)


@cache
def _box_weights(length: int) -> Array:
    """What each of `length` pixels contributes to each of 64 equal boxes along an axis, (64, length)."""
    edges = np.arange(SIDE + 1) * (length / SIDE)
    cells = np.arange(length)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return (np.clip(overlap, 0, None) * (SIDE / length)).astype(np.float32)


def border(canvas: Array, width: int = 2) -> Array:
    """The pixels of the frame of (h, w, 3), as (N, 3)."""
    frame = np.ones(canvas.shape[:2], bool)
    frame[width:-width, width:-width] = False
    return canvas[frame]


def smooth(canvas: Array) -> Array:
    """The mean over 3x3 pixels, (h, w, 3); beyond the edge, its pixels are repeated."""
    height, width, _ = canvas.shape
    padded = np.pad(canvas, ((1, 1), (1, 1), (0, 0)), mode="edge")
    tall = padded[:height] + padded[1 : height + 1] + padded[2:]
    return (tall[:, :width] + tall[:, 1 : width + 1] + tall[:, 2:]) / np.float32(9)


def lab(rgb: Array) -> Array:
    """SRGB of 0-255, (..., 3), as CIELAB under D65."""
    share = rgb / np.float32(255)
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    xyz = linear @ _TO_XYZ.T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)


def neighbours(mask: Mask, reach: int = 1) -> Numbers:
    """How many pixels of the mask (..., h, w) lie within `reach` rows and columns of each pixel, itself included."""
    height, width = mask.shape[-2:]
    padded = np.pad(mask.astype(np.int64), [(0, 0)] * (mask.ndim - 2) + [(reach, reach)] * 2)
    tall = np.stack([padded[..., i : i + height, :] for i in range(2 * reach + 1)]).sum(0)
    return np.stack([tall[..., i : i + width] for i in range(2 * reach + 1)]).sum(0)


def window(mask: Mask, halo: int) -> Window:
    """The rows and columns of a mask, `halo` wider on each side where there is room."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    spans = ((rows[0], rows[-1], mask.shape[0]), (columns[0], columns[-1], mask.shape[1]))
    top, left = (slice(max(int(first) - halo, 0), min(int(last) + 1 + halo, end)) for first, last, end in spans)
    return top, left


def components(mask: Mask, min_area: int = 1) -> list[Mask]:
    """The 8-connected parts of a mask (h, w) that have at least `min_area` pixels."""
    names = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, _spread(names), 0)
        # A name is a pixel's number; following it to that pixel's own name halves the way still to go.
        spread = np.concatenate(([0], spread.ravel()))[spread]
        if np.array_equal(spread, names):
            break
        names = spread
    areas = np.bincount(names.ravel())
    return [names == name for name in np.flatnonzero(areas >= max(min_area, 1)) if name]


def grow(seeds: Numbers, within: Mask) -> Numbers:
    """Give the pixels of a mask (h, w) that are 0 the number of a nearest seed that can be reached inside the mask."""
    while True:
        grown = np.where(within & (seeds == 0), _spread(seeds), seeds)
        if np.array_equal(grown, seeds):
            return grown
        seeds = grown


def _spread(values: Numbers) -> Numbers:
    """The largest value among each pixel and its eight neighbours, (h, w)."""
    height, width = values.shape
    padded = np.pad(values, 1)
    tall = np.maximum(np.maximum(padded[:height], padded[2:]), padded[1 : height + 1])
    return np.maximum(np.maximum(tall[:, :width], tall[:, 2:]), tall[:, 1 : width + 1])
