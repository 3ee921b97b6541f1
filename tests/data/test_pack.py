from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from star.data import pack
from star.data.datamodule import ShardDataModule
from star.data.shards import read_shard

Encode = Callable[..., bytes]


@pytest.fixture
def folder(tmp_path: Path, encode: Encode) -> Path:
    """Ten usable pictures and five that aren't, each for another reason."""
    source = tmp_path / "source"
    source.mkdir()
    for i in range(10):
        kind, suffix = (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"))[i % 3]
        (source / f"{i}.{suffix}").write_bytes(encode((20 * i, 0, 0), (16 + i, 16), kind))
        (source / f"{i}.txt").write_text(f"picture number {i}")
    (source / "alone.png").write_bytes(encode())
    (source / "empty.png").write_bytes(encode())
    (source / "empty.txt").write_text(" ")
    (source / "broken.jpg").write_bytes(encode("red", (64, 64), "JPEG")[:-300])
    (source / "broken.txt").write_text("x")
    (source / "text.png").write_text("not a picture")
    (source / "text.txt").write_text("x")
    (source / "gif.jpg").write_bytes(encode("red", (8, 8), "GIF", "P"))
    (source / "gif.txt").write_text("x")
    return source


def packed(out: Path, split: str = "train") -> list[tuple[str, dict[str, bytes]]]:
    return [(raw.key, dict(raw.files)) for path in sorted((out / split).glob("*.tar")) for raw in read_shard(str(path))]


def test_pictures_arrive_as_they_are_and_losses_are_counted(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack.main([f"source={folder}", f"out={out}", "shard_size=4", "validation=2"])
    samples = packed(out) + packed(out, "validation")
    assert [len(packed(out, split)) for split in ("validation", "train")] == [2, 8]
    assert [path.name for path in sorted((out / "train").iterdir())] == ["00000.tar", "00001.tar"]
    for _, files in samples:
        record = json.loads(files["json"])
        number = int(record["caption"].split()[-1])
        extension = ("png", "jpg", "webp")[number % 3]
        assert files[extension] == (folder / f"{number}.{extension}").read_bytes()
        assert files["txt"].decode() == record["caption"]
        assert (record["width"], record["height"], record["file"]) == (16 + number, 16, f"{number}.{extension}")
    assert len({key for key, _ in packed(out)}) == 8
    facts = json.loads((out / "summary.json").read_text())
    assert (facts["samples"], facts["shards"]) == (10, 3)
    assert facts["skipped"].pop("caption: missing") == 1
    assert facts["skipped"].pop("caption: empty") == 1
    assert sum(facts["skipped"].values()) == 3
    assert all(cause.startswith("decode: ") for cause in facts["skipped"])
    assert "picture number 3" in (out / "summary.html").read_text()


def test_the_order_is_the_seeds(folder: Path, tmp_path: Path) -> None:
    def order(name: str, *settings: str) -> list[str]:
        pack.main([f"source={folder}", f"out={tmp_path / name}", *settings])
        return [files["txt"].decode() for _, files in packed(tmp_path / name)]

    assert order("a", "shuffle=false") == [f"picture number {i}" for i in range(10)]
    assert order("b") == order("c") != order("d", "seed=1")
    assert (tmp_path / "b/train/00000.tar").read_bytes() == (tmp_path / "c/train/00000.tar").read_bytes()


def test_a_training_reads_what_was_packed(folder: Path, tmp_path: Path) -> None:
    pack.main([f"source={folder}", f"out={tmp_path / 'out'}"])
    data = ShardDataModule(
        sources={"mine": {"urls": str(tmp_path / "out" / "train")}}, resolution=8, batch_size=5, num_workers=0, seed=0
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (5, 3, 8, 8)
    assert all(caption.startswith("picture number") for caption in batch.captions)


def test_shards_are_not_overwritten_unasked(folder: Path, tmp_path: Path) -> None:
    arguments = [f"source={folder}", f"out={tmp_path / 'out'}", "shard_size=3"]
    pack.main(arguments)
    with pytest.raises(SystemExit):
        pack.main(arguments)
    for source in (tmp_path / "nowhere", tmp_path / "out"):  # there is none, it has no picture
        with pytest.raises(SystemExit):
            pack.main([f"source={source}", arguments[1], "overwrite=true", "shuffle=false"])
    assert len(packed(tmp_path / "out")) == 10
    pack.main([*arguments[:2], "overwrite=true"])
    assert len(list((tmp_path / "out" / "train").iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ""}, "set source="),
        ({"shard_size": "0"}, "shard_size is a whole number of at least 1"),
        ({"validation": "-1"}, "validation is a whole number of at least 0"),
        ({"shuffle": "yes"}, "shuffle is true or false"),
    ],
)
def test_requests_are_checked(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack.Request(**{"source": "a", "out": "b"} | changes)


def test_unknown_words_and_useless_sources_are_named(tmp_path: Path, encode: Encode) -> None:
    with pytest.raises(ValueError, match="'shards=3' isn't KEY=VALUE with one of source, out"):
        pack.parse(["source=a", "shards=3"])
    (tmp_path / "a.png").write_bytes(encode())
    with pytest.raises(ValueError, match=r"nothing of .* can be used: {'caption: missing': 1}"):
        pack.pack(pack.Request(source=str(tmp_path), out=str(tmp_path / "out")))


def test_a_validation_that_takes_everything_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation=10 takes all 10 samples, training gets none"):
        pack.pack(pack.Request(source=str(folder), out=str(tmp_path / "out"), validation="10"))


def test_help_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    pack.main(["--help"])
    assert "star.data.pack" in capsys.readouterr().out
