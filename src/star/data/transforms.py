"""From the bytes of a picture to a square (or any rectangle) of pixels."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

# What img2dataset writes; the other readers of Pillow would only widen the door for damaged and hostile files.
FORMATS = ("JPEG", "PNG", "WEBP")
# Above this Pillow itself warns of a decompression bomb.
MAX_PIXELS = 89_478_485
_CROPS = ("center", "random")
_INTERPOLATIONS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header of a picture; the pixels wait for `ImageTransform`.

    Raises:
        PIL.UnidentifiedImageError: for bytes that are no JPEG, PNG or WebP.
        PIL.Image.DecompressionBombError: for more than `max_pixels` pixels, before any is decoded.

    """
    with warnings.catch_warnings():
        # A warning per odd file (bombs, broken EXIF) would drown a log; what matters is raised and counted.
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, at most {max_pixels} are read")
    return image


def to_unit_range(pixels: Tensor) -> Tensor:
    """Pixels of any shape, uint8, as float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1.0)


@dataclass(frozen=True)
class ImageTransform:
    """Decode, straighten, flatten, resize and crop one picture.

    The result stays uint8: a batch is brought to [-1, 1] as a whole, by `to_unit_range`, which is faster.

    Args:
        size: (H, W) of the result in pixels.
        crop: `center`, or `random`: a uniform place along the longer direction.
        flip: mirror half of the pictures; off by default, since captions say left and right.
        interpolation: `lanczos`, `bicubic` or `box`.
        background: red, green and blue in 0-255, what shows through transparent pictures.

    Raises:
        ValueError: for a size below 1, an unknown word, or a `flip` that is neither true nor false.

    """

    size: tuple[int, int]
    crop: str = "center"
    flip: bool = False
    interpolation: str = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        """Validate."""
        if min(self.size) < 1:
            raise ValueError(f"a picture needs at least one pixel, got (height, width) {self.size}")
        if self.crop not in _CROPS:
            raise ValueError(f"crop must be one of {', '.join(_CROPS)}, got {self.crop!r}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(_INTERPOLATIONS)}, got {self.interpolation!r}")
        if not isinstance(self.flip, bool):  # a command line's `no` is a text, and would count as true
            raise ValueError(f"flip must be true or false, got {self.flip!r}")

    def __call__(self, image: Image.Image, rng: random.Random) -> Tensor:
        """Pixels (3, H, W) uint8 of an opened picture; `rng` is the sample's own random numbers."""
        place, mirror = (rng.random() if self.crop == "random" else 0.5), self.flip and rng.random() < 0.5
        pixels = torch.from_numpy(np.array(self._resize(self._decode(image), place)))  # (H, W, 3)
        return (pixels.flip(1) if mirror else pixels).permute(2, 0, 1).contiguous()

    def _decode(self, image: Image.Image) -> Image.Image:
        """An upright RGB picture, at least as large as the result needs it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, for a fraction of the time. A square to be covered is
            # right for pictures that EXIF turns, too.
            image.draft(None, (max(self.size), max(self.size)))
            flat = _flatten(image, self.background)
            turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
        return flat if turn is None else flat.transpose(turn)

    def _resize(self, image: Image.Image, place: float) -> Image.Image:
        """Resize the shorter side and crop in one step: only what stays is resampled."""
        height, width = self.size
        scale = min(image.width / width, image.height / height)
        # Whole pixels, so that a picture which already has the right size is cropped and not blurred.
        left, top = int(place * (image.width - scale * width)), int(place * (image.height - scale * height))
        if scale == 1:
            return image.crop((left, top, left + width, top + height))
        box = (left, top, min(left + scale * width, image.width), min(top + scale * height, image.height))
        return image.resize((width, height), _INTERPOLATIONS[self.interpolation], box)


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any mode as RGB, transparency laid on the background."""
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        return Image.fromarray(
            (np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        ).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")
    return image.convert("RGB")


def parse_resolution(resolution: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) from a side or [height, width].

    Raises:
        ValueError: for anything else, or a side below 1.

    """
    sides = tuple(resolution) if isinstance(resolution, Sequence) else (resolution, resolution)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"resolution must be a side or [height, width] in pixels, got {resolution!r}")
    return sides[0], sides[1]


def parse_colour(colour: str | Sequence[int]) -> tuple[int, int, int]:
    """Red, green and blue in 0-255 from a colour's name, `#rrggbb`, or three such numbers.

    Raises:
        ValueError: for anything else.

    """
    try:
        red, green, blue = ImageColor.getrgb(colour)[:3] if isinstance(colour, str) else colour
        if not all(0 <= int(channel) <= 255 for channel in (red, green, blue)):
            raise ValueError("channels are 0-255")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"background must be a colour such as white, '#ffffff' or [255, 255, 255], got {colour!r}"
        ) from error
    return int(red), int(green), int(blue)
