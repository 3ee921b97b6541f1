"""What is wrong with pictures and references that a user names; `check=true` says so before anything runs."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star.evaluation.run import evaluate
from star.metrics.assets import MissingAssetError

Settings = Callable[..., dict[str, Any]]
FEATURES = "metric.features=effnet_lite0_b320@128"


def picture(kind: str, side: int = 12) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (side, side)).save(content, format=kind)
    return content.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    for i in range(3):
        (tmp_path / "a" / f"{i}.png").write_bytes(picture("PNG"))
    return tmp_path / "a"


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., Path]:
    """Writes a shard of pictures, without captions unless one is given."""

    def write(kind: str, caption: str | None = None) -> Path:
        (tmp_path / "shards").mkdir(exist_ok=True)
        path = tmp_path / "shards" / "x.tar"
        files = {f"{i}.{kind.lower()}": picture(kind) for i in range(3)}
        files |= {} if caption is None else {f"{i}.txt": caption.encode() for i in range(3)}
        with tarfile.open(path, "w") as tar:
            for name in sorted(files):
                member = tarfile.TarInfo(name)
                member.size = len(files[name])
                tar.addfile(member, io.BytesIO(files[name]))
        return path

    return write


def complaint(settings: Settings, *words: str) -> str:
    with pytest.raises(MissingAssetError) as caught:
        evaluate(settings("metric=fid_folder", FEATURES, "check=true", *words))
    return str(caught.value)


def test_pictures_of_another_protocol_are_told_by_the_check(
    settings: Settings, folder: Path, shard: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "captions.txt").write_text("a cat\na dog\n")
    prompts = f"prompts={tmp_path / 'captions.txt'}"
    words = (f"images={folder}", f"reference={folder}")
    assert "holds 3 pictures, the prompts ask for 2" in complaint(settings, *words, prompts)
    assert "prompts needs a folder" in complaint(settings, f"images={shard('PNG')}", f"reference={folder}", prompts)
    assert "the prompts ask for 1496" in complaint(settings, *words, "metric=shapes")
    assert "the prompts ask for 2212" in complaint(settings, *words, "metric=geneval")
    (folder / "1.png").write_bytes(picture("JPEG"))
    assert "1.png is a JPEG file" in complaint(settings, *words)


def test_shards_are_held_to_what_folders_are(settings: Settings, folder: Path, shard: Callable[..., Path]) -> None:
    reference = f"reference={folder}"
    evaluate(settings("metric=fid_folder", FEATURES, f"images={shard('PNG').parent}", reference))
    path = shard("JPEG")
    assert "0.jpeg is a JPEG file" in complaint(settings, f"images={path}", reference)
    assert "images=" in complaint(settings, f"images={path.with_name('absent.tar')}", reference)


@pytest.mark.parametrize("key", ["images", "reference"])
def test_a_damaged_shard_is_named(settings: Settings, folder: Path, shard: Callable[..., Path], key: str) -> None:
    path = shard("PNG")
    path.write_bytes(path.read_bytes()[:1000])
    words = {"images": folder, "reference": folder, key: path}
    with pytest.raises(ValueError, match=r"x\.tar can't be read as a shard"):
        evaluate(settings("metric=fid_folder", FEATURES, *[f"{name}={value}" for name, value in words.items()]))


def test_a_caption_that_is_missing_is_no_empty_one(
    settings: Settings, shard: Callable[..., Path], tiny_checkpoint: Path
) -> None:
    path = shard("PNG")
    assert "x.tar:0.png has no caption" in complaint(settings, "metric=clip_score", f"images={path}")
    with pytest.raises(ValueError, match=r"x\.tar:0\.png has no caption"):
        evaluate(settings("metric=fid_folder", FEATURES, f"ckpt={tiny_checkpoint}", f"reference={path}"))
    assert "no caption" not in complaint(settings, "metric=clip_score", f"images={shard('PNG', 'a cat')}")


def test_a_reference_that_can_not_be_compared_with(settings: Settings, folder: Path) -> None:
    assert "is neither of them" in complaint(settings, f"images={folder}", f"reference={folder / '0.png'}")
    words = ("metric=fid_mjhq", f"images={folder}", f"reference={folder}")
    assert "has no folder of animals, art" in complaint(settings, *words)
