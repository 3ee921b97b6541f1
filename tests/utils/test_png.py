from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from star.utils.png import as_image, describe_picture, drawn_from, read_fields, to_pixels, write_png

FIELDS = describe_picture(prompt='ein "blauer" Kreis, ☆', seed=7, weights="abc", settings={"top_k": 5})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    image = torch.rand(3, 5, 4)
    write_png(image, tmp_path / "deep" / "a.png", FIELDS)
    assert read_fields(tmp_path / "deep" / "a.png") == FIELDS
    with Image.open(tmp_path / "deep" / "a.png") as opened:
        assert np.array_equal(np.asarray(opened), to_pixels(image))


def test_an_image_keeps_its_fields_whoever_saves_it(tmp_path: Path) -> None:
    """Twice, and after another format that has no text."""
    picture = as_image(torch.rand(3, 4, 4), FIELDS)
    for name in ("a.png", "b.jpg", "c.png"):
        picture.save(tmp_path / name)
    assert read_fields(tmp_path / "a.png") == read_fields(tmp_path / "c.png") == FIELDS
    assert picture.info["seed"] == "7"
    with pytest.raises(ValueError, match="only PNG files say"):
        read_fields(tmp_path / "b.jpg")


def test_no_partial_picture_is_left(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OSError, match="could not write"):
        write_png(torch.zeros(3, 4, 4), tmp_path / "x.png", {})
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_a_file_names_what_it_was_drawn_from(tmp_path: Path) -> None:
    write_png(torch.rand(3, 5, 4), tmp_path / "a.png", FIELDS)
    assert drawn_from(tmp_path / "a.png") == ('ein "blauer" Kreis, ☆', "7")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    assert drawn_from(tmp_path / "b.png") == (None, None)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    with pytest.raises(ValueError, match=r"c\.png can't be read as a picture"):
        drawn_from(tmp_path / "c.png")
