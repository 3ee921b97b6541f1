"""Pictures as PNG files that say what they were drawn from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

_SOFTWARE = "star"


def to_pixels(image: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels (H, W, 3) of an image (3, H, W) in [0, 1], rounded."""
    return image.float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()


def describe_picture(
    *, prompt: str, seed: int, weights: str, negative_prompt: str = "", settings: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The text fields of a picture's file, enough to draw it again.

    Args:
        prompt: its caption.
        seed: of its random stream.
        weights: the hash of the model, `STARPipeline.identity`.
        negative_prompt: what guidance leads away from.
        settings: what else it depends on: sampling preset, precision, schedule.

    """
    fields = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": str(seed), "weights": weights}
    return fields | {"settings": json.dumps(settings or {}, sort_keys=True, default=str), "software": _SOFTWARE}


def as_image(image: Tensor, fields: Mapping[str, str]) -> Image.Image:
    """An image (3, H, W) in [0, 1] for Pillow; saved as PNG, by whoever, it carries the text fields.

    The fields are also in `image.info`.
    """
    picture = Image.fromarray(to_pixels(image))
    picture.info.update(fields)
    text = PngInfo()
    for name, value in fields.items():
        text.add_itxt(name, value)
    # Pillow takes what `save` isn't told from here; other formats don't look at it
    picture.encoderinfo = {"pnginfo": text}
    return picture


def write_png(image: Tensor, path: Path, fields: Mapping[str, Any]) -> None:
    """Write an image (3, H, W) in [0, 1] as PNG, whole or not at all; the fields become its text.

    Raises:
        OSError: when it can't be written.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # not flushed to the disk one by one, as checkpoints are: a lost picture is drawn again
        picture = as_image(image, {name: str(value) for name, value in fields.items()})
        picture.save(partial, format="PNG", compress_level=1)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"could not write {path} ({error}). Is the disk full?") from error


def drawn_from(path: Path) -> tuple[str | None, str | None]:
    """Prompt and seed that a picture's file names, None where it names none; no pixel is decoded.

    Raises:
        ValueError: when the file can't be read.

    """
    try:
        with Image.open(path) as picture:
            return picture.info.get("prompt"), picture.info.get("seed")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} can't be read as a picture ({error}): remove it, and it is drawn anew") from error


def read_fields(path: Path) -> dict[str, str]:
    """The text fields of a picture's file.

    Raises:
        ValueError: when the file is no PNG.

    """
    with Image.open(path) as picture:
        if picture.format != "PNG":
            raise ValueError(f"{path} is a {picture.format} file: only PNG files say what they were drawn from")
        picture.load()
        return {str(name): str(value) for name, value in picture.text.items()}  # type: ignore[attr-defined]
