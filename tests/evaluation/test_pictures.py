from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from star.evaluation.pictures import Picture, batches, list_pictures, match
from star.evaluation.prompts import PromptSet

Fill = Callable[..., list[Path]]
PROMPTS = PromptSet("x", tuple({"prompt": f"p{i}", "index": i, "stem": f"s{i}"} for i in range(3)), num_images=2)


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Writes pictures whose first pixel tells their number."""

    def write(*names: str, size: tuple[int, int] = (6, 4)) -> list[Path]:
        paths = [tmp_path / name for name in names]
        for i, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (i, 0, 0)).save(path)
        return paths

    return write


def test_pictures_come_in_order_with_their_records(fill: Fill) -> None:
    paths = fill(*[f"{i}.png" for i in range(7)])
    found = list(batches([Picture(str(path), {"i": i}) for i, path in enumerate(paths)], 3))
    assert [len(images) for images, _ in found] == [3, 3, 1]
    images = torch.cat([images for images, _ in found])
    assert images.shape == (7, 3, 4, 6)
    assert torch.equal(images[:, 0, 0, 0].mul(255).round(), torch.arange(7.0))
    assert [record["i"] for _, records in found for record in records] == list(range(7))


def test_grey_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "CMYK"):
        Image.new(mode, (4, 4)).save(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    ((images, _),) = batches([Picture(str(path)) for path in list_pictures(tmp_path)], 8)
    assert images.shape == (4, 3, 4, 4)


def test_mixed_sizes_name_both_files(fill: Fill) -> None:
    first, second = *fill("a.png"), *fill("b.png", size=(8, 4))
    with pytest.raises(ValueError, match=r"different sizes: .*b\.png has 8x4 pixels, .*a\.png has 6x4"):
        list(batches([Picture(str(first)), Picture(str(second))], 2))


def test_a_share_of_pictures_has_the_size_of_all(fill: Fill) -> None:
    first, second = *fill("a.png"), *fill("b.png", size=(8, 4))
    with pytest.raises(ValueError, match=r"different sizes: .*b\.png has 8x4 pixels, .*a\.png has 6x4"):
        list(batches([Picture(str(second))], 2, like=Picture(str(first))))


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_corrupt_picture_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broken.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "garbage": b"no picture", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"broken\.png can't be read as a picture"):
        list(batches([Picture(str(path))], 1))


def test_jpeg_where_png_is_asked_is_named(fill: Fill) -> None:
    fill("a.png", "b.jpg")
    with pytest.raises(ValueError, match=r"b\.jpg is a JPG file, the protocol asks for PNG"):
        list_pictures(fill("a.png")[0].parent, only="png")


def test_jpeg_under_the_name_of_a_png_is_named(tmp_path: Path) -> None:
    for kind in ("WEBP", "GIF", "JPEG"):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format=kind)
        with pytest.raises(ValueError, match=rf"a\.png is a {kind} file, the protocol asks for PNG"):
            list_pictures(tmp_path, only="png")
    assert len(list_pictures(tmp_path)) == 1


def test_a_kind_is_known_by_both_of_its_names(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPEG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="JPEG")
    for kind in ("jpg", "jpeg", "JPG"):
        assert len(list_pictures(tmp_path, only=kind)) == 2
    Image.new("RGB", (4, 4)).save(tmp_path / "c.jpg", format="WEBP")
    with pytest.raises(ValueError, match=r"c\.jpg is a WEBP file, the protocol asks for JPG"):
        list_pictures(tmp_path, only="jpg")


def test_a_batch_of_nothing_is_refused(fill: Fill) -> None:
    with pytest.raises(ValueError, match="batch is at least 1, got 0"):
        list(batches([Picture(str(fill("a.png")[0]))], 0))


def test_empty_or_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no picture"):
        list_pictures(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_pictures(tmp_path / "absent")


@pytest.mark.parametrize(
    "name", ["{n:05d}.png", "{i:05d}/samples/{j:05d}.png", "{i:05d}/samples/{j:04d}.png", "own_{n}.png"]
)
def test_folders_of_others_are_matched(fill: Fill, tmp_path: Path, name: str) -> None:
    fill(*[name.format(n=2 * i + j, i=i, j=j) for i in range(3) for j in range(2)])
    found = match(tmp_path, PROMPTS.requests())
    assert [(picture.record["index"], picture.record["image"]) for picture in found] == [
        (i, j) for i in range(3) for j in range(2)
    ]
    assert [picture.open().getpixel((0, 0))[0] for picture in found] == list(range(6))  # type: ignore[index]


def test_index_is_followed(fill: Fill, tmp_path: Path) -> None:
    paths = fill(*[f"{c}.png" for c in "fedcba"])
    rows = [{"file": path.name, "prompt": f"p{i // 2}"} for i, path in enumerate(paths)]
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [Path(picture.name).name for picture in match(tmp_path, PROMPTS.requests())] == [path.name for path in paths]
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    with pytest.raises(ValueError, match=r"too few pictures of the prompt 'p2' for 00005\.png"):
        match(tmp_path, PROMPTS.requests())
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[5]]))
    with pytest.raises(ValueError, match=r"more pictures of a prompt than are asked for, e\.g\. .*a\.png"):
        match(tmp_path, PROMPTS.requests())
    (tmp_path / "index.jsonl").write_text('{"file": "a.png"}\n')
    with pytest.raises(ValueError, match="line 1, is no JSON object"):
        match(tmp_path, PROMPTS.requests())


def test_wrong_count_names_what_is_missing(fill: Fill, tmp_path: Path) -> None:
    fill(*[f"{i:05d}.png" for i in (0, 1, 2, 4, 5)])
    with pytest.raises(ValueError, match=r"holds 5 of the 6 pictures: .*00003\.png is missing"):
        match(tmp_path, PROMPTS.requests())


def test_more_pictures_than_prompts_are_another_protocols(fill: Fill, tmp_path: Path) -> None:
    fill(*[f"{i:05d}.png" for i in range(8)])
    with pytest.raises(ValueError, match=r"holds 8 pictures, the prompts ask for 6: .*00006\.png is not asked for"):
        match(tmp_path, PROMPTS.requests())


def test_overviews_of_genevals_folders_are_no_pictures(fill: Fill, tmp_path: Path) -> None:
    fill(*[f"{i:05d}/samples/{j:05d}.png" for i in range(3) for j in range(2)], "00000/grid.png")
    assert len(match(tmp_path, PROMPTS.requests())) == 6


def test_other_names_and_another_count(fill: Fill, tmp_path: Path) -> None:
    fill("x.png", "y.png")
    with pytest.raises(ValueError, match="holds 2 pictures, the prompts ask for 6"):
        match(tmp_path, PROMPTS.requests())
