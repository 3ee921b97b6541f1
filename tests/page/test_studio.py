from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from star.page.studio import Studio, Wish
from star.utils.png import read_fields


def test_a_drawing_grows_into_what_the_pipeline_draws(studio: Studio, tmp_path: Path) -> None:
    wish = Wish("a red circle", "fog", 4, 2, knobs={"guidance": 3.0})
    steps = list(studio.draw(wish))
    assert [step.scale for step in steps] == list(range(1, steps[0].scales + 1))
    assert all(step.drawn is None for step in steps[:-1])
    drawn = steps[-1].drawn
    assert drawn is not None
    expected = studio.pipeline(
        "a red circle", negative_prompt="fog", num_images_per_prompt=2, seeds=4, guidance_scale=3.0
    ).images
    files = studio.save(drawn, tmp_path, "x")
    for file, image in zip(files, expected, strict=True):
        assert read_fields(file) == image.info
    for shown, image in zip(steps[-1].previews, expected, strict=True):
        assert np.array_equal(np.asarray(shown), np.asarray(image))


def test_maps_are_pictures_of_all_scales(studio: Studio) -> None:
    drawn = list(studio.draw(Wish("a red circle", images=2)))[-1].drawn
    assert drawn is not None
    maps = [studio.confidence(drawn), studio.confidence(drawn, 1), studio.attention(drawn, 0.2, 0.9)]
    assert len({one.size for one in maps}) == 1
    assert maps[0].tobytes() != maps[1].tobytes()
    assert studio.attention(drawn, 0.9, 0.2).tobytes() != maps[2].tobytes()


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"prompt": "  "}, "Write a prompt first"),
        ({"prompt": "x" * 10_000}, "The prompt has 10,000 characters, at most 1,000"),
        ({"prompt": "x", "negative_prompt": "x" * 1001}, "The negative prompt has 1,001"),
        ({"prompt": "x", "images": 4}, "Between 1 and 3 pictures"),
        ({"prompt": "x", "images": 0}, "Between 1 and 3 pictures"),
        ({"prompt": "x", "seed": -1}, "whole number from 0"),
        ({"prompt": "x", "preset": "y"}, "no preset 'y'"),
    ],
)
def test_what_is_too_much_is_refused_before_anything_is_drawn(
    studio: Studio, wish: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        next(studio.draw(Wish(**wish)))
    assert studio.pipeline.begun == 0  # type: ignore[attr-defined]
