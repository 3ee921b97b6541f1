from __future__ import annotations

import io
import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from star.data.transforms import ImageTransform, open_picture, parse_colour, parse_resolution, to_unit_range

RED, GREEN, BLUE, WHITE = (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0), (1.0, 1.0, 1.0)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return open_picture(buffer.getvalue())


def run(image: Image.Image, size: tuple[int, int] = (8, 8), seed: int = 0, **options: Any) -> Tensor:
    pixels = ImageTransform(size, **options)(image, random.Random(seed))
    assert (pixels.dtype, pixels.is_contiguous()) == (torch.uint8, True)
    return to_unit_range(pixels)


def halves(width: int, height: int) -> Image.Image:
    """Left red, right blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def close(pixel: Tensor, colour: tuple[float, ...], tolerance: float = 0.02) -> bool:
    return torch.allclose(pixel, torch.tensor(colour), atol=tolerance)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (64, 32)])
def test_the_result_has_the_asked_size_and_range(kind: str, size: tuple[int, int]) -> None:
    pixels = run(saved(Image.new("RGB", (37, 23), "white"), kind), size)
    assert (pixels.shape, pixels.dtype) == ((3, *size), torch.float32)
    assert close(pixels.amax((1, 2)), WHITE)
    assert close(run(saved(Image.new("RGB", (37, 23)))).amin((1, 2)), (-1.0, -1.0, -1.0))


@pytest.mark.parametrize("interpolation", ["lanczos", "bicubic", "box"])
def test_a_picture_of_the_right_size_is_unchanged(interpolation: str) -> None:
    original = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels = run(saved(Image.fromarray(original)), interpolation=interpolation)
    assert np.array_equal(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), original)


def test_a_picture_whose_short_side_is_right_is_cropped_unblurred() -> None:
    original = np.random.default_rng(0).integers(0, 256, (8, 13, 3), dtype=np.uint8)
    pixels = ((run(saved(Image.fromarray(original))) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, original[:, 2:10])


def test_the_centre_is_cropped_and_the_short_side_kept() -> None:
    image = Image.new("RGB", (30, 10), "green")
    image.paste("white", (10, 0, 20, 10))
    assert close(run(saved(image), (10, 10)).amin((1, 2)), WHITE)


def test_random_crops_reach_both_ends_and_depend_on_the_random_numbers_alone() -> None:
    image = halves(80, 8)
    crops = [run(saved(image), seed=seed, crop="random") for seed in range(20)]
    assert torch.equal(crops[3], run(saved(image), seed=3, crop="random"))
    assert any(close(crop[:, 0, -1], RED) for crop in crops)
    assert any(close(crop[:, 0, 0], BLUE) for crop in crops)


def test_flips_mirror_half_of_the_pictures_and_none_by_default() -> None:
    image = halves(8, 8)
    flipped = [close(run(saved(image), seed=seed, flip=True)[:, 0, 0], BLUE) for seed in range(20)]
    assert 4 < sum(flipped) < 16
    assert all(close(run(saved(image), seed=seed)[:, 0, 0], RED) for seed in range(5))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    """A viewer shows all eight files alike: the top left corner is red, the top right one blue."""
    upright = Image.new("RGB", (16, 16), "white")
    upright.paste("red", (0, 0, 8, 8))
    upright.paste("blue", (8, 0, 16, 8))
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright if orientation == 1 else upright.transpose(stored[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = run(saved(image, exif=exif.tobytes()), (16, 16))
    assert close(pixels[:, 2, 2], RED)
    assert close(pixels[:, 2, 13], BLUE)


def test_transparency_shows_the_background() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    assert close(run(saved(clear))[:, 4, 4], WHITE)
    assert close(run(saved(clear), background=(0, 0, 255))[:, 4, 4], BLUE)
    assert close(run(saved(half))[:, 4, 4], (1.0, 0.0, 0.0))
    assert close(run(saved(half.convert("LA")), background=(0, 0, 0))[:, 4, 4], (-0.7, -0.7, -0.7))
    assert close(run(saved(clear, "WEBP", lossless=True))[:, 4, 4], WHITE)


def test_transparency_of_palettes_and_single_colours() -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert close(run(saved(palette, transparency=0))[:, 4, 4], WHITE)
    assert close(run(saved(palette, transparency=1))[:, 4, 4], RED)
    assert close(run(saved(palette, transparency=b"\x00\xff"))[:, 4, 4], WHITE)
    assert close(run(saved(Image.new("RGB", (8, 8), "red"), transparency=(255, 0, 0)))[:, 4, 4], WHITE)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("L", (8, 8), 255), "JPEG", WHITE),
        (Image.new("1", (8, 8), 1), "PNG", WHITE),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", RED),
        (Image.fromarray(np.full((8, 8), 65535, np.uint16)), "PNG", WHITE),
        (Image.fromarray(np.full((8, 8), 32768, np.uint16)), "PNG", (0.0, 0.0, 0.0)),
    ],
)
def test_grey_cmyk_and_16_bit_pictures(image: Image.Image, kind: str, expected: tuple[float, ...]) -> None:
    assert close(run(saved(image, kind))[:, 4, 4], expected, 0.05)


def test_16_bits_are_scaled_to_8() -> None:
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4
    pixels = ImageTransform((8, 8))(saved(Image.fromarray(grey * 257)), random.Random(0))
    assert np.array_equal(pixels[0].numpy(), grey)


@pytest.mark.parametrize(("width", "decoded"), [(256, 32), (255, 64), (300, 38), (64, 32), (63, 63)])
def test_large_jpegs_are_decoded_small_but_never_too_small(width: int, decoded: int) -> None:
    image = saved(halves(width, 551), "JPEG", quality=95)
    pixels = run(image, (32, 32))
    assert image.width == decoded
    assert close(pixels[:, 16, 4], RED, 0.05)
    assert close(pixels[:, 16, 28], BLUE, 0.05)


def test_bombs_and_other_files_are_refused_before_decoding(encode: Callable[..., bytes]) -> None:
    with pytest.raises(Image.DecompressionBombError, match="32 x 32 pixels, at most 1000"):
        open_picture(encode(size=(32, 32)), max_pixels=1000)
    small = encode(size=(1, 1))
    for side in (10_000, 40_000):  # Pillow only warns of the first; both are a few bytes long
        header = b"IHDR" + side.to_bytes(4, "big") * 2 + small[24:29]
        bomb = small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]
        with pytest.raises(Image.DecompressionBombError):
            open_picture(bomb)
    for data in (b"", b"<html>not found</html>", encode(kind="BMP"), encode(kind="GIF")):
        with pytest.raises(Image.UnidentifiedImageError):
            open_picture(data)


def test_settings_from_yaml() -> None:
    assert parse_resolution(256) == (256, 256)
    assert parse_resolution([128, 256]) == (128, 256)
    assert parse_colour("white") == parse_colour("#ffffff") == parse_colour([255, 255, 255]) == (255, 255, 255)


@pytest.mark.parametrize("resolution", [0, [256], [1, 2, 3], [256, -1], [1.5, 2], None, 64.0, "64"])
def test_a_wrong_resolution_is_named(resolution: Any) -> None:
    with pytest.raises(ValueError, match="resolution"):
        parse_resolution(resolution)


@pytest.mark.parametrize("colour", ["whit", [1, 2], [0, 0, 256], [0, 0, "x"], 3])
def test_a_wrong_colour_is_named(colour: Any) -> None:
    with pytest.raises(ValueError, match="background"):
        parse_colour(colour)


@pytest.mark.parametrize("options", [{"crop": "middle"}, {"interpolation": "nearest"}, {"flip": "no"}])
def test_a_wrong_word_is_named(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ImageTransform((8, 8), **options)  # type: ignore[arg-type]
