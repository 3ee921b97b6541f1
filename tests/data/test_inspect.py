from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from star.data import inspect, pack


@pytest.fixture
def folder(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """Ten pictures with captions."""
    source = tmp_path / "source"
    source.mkdir()
    for i in range(10):
        (source / f"{i}.png").write_bytes(encode((20 * i, 0, 0), (16 + i, 16)))
        (source / f"{i}.txt").write_text(f"picture number {i}")
    return source


def test_inspect_finds_in_shards_what_pack_wrote(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack.main([f"source={folder}", f"out={out}", "shard_size=4"])
    inspect.main([str(out / "train" / "{00000..00002}.tar"), f"out={tmp_path / 'seen'}"])
    written, seen = (json.loads((place / "summary.json").read_text()) for place in (out, tmp_path / "seen"))
    for name in ("samples", "shards", "bytes", "short_side", "aspect_ratio", "caption_words"):
        assert seen[name] == written[name], name
    assert seen["skipped"] == {}
    assert inspect.inspect([str(out / "train")], tmp_path / "few", limit=1).samples == 3


def test_inspect_names_damaged_shards_and_skipped_samples(
    make_shard: Callable[..., str], make_sample: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    make_shard("good", [1, 2, make_sample(3) | {"png": b"no picture"}, {"txt": b"x"}])
    bad = Path(make_shard("bad", range(10)))
    bad.write_bytes(bad.read_bytes()[:9000])
    with pytest.raises(ValueError, match="1 of 2 shards are damaged, e.g. bad"):
        inspect.inspect([str(tmp_path / "*.tar")], tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(facts["damaged"]) == ["bad"]
    assert facts["skipped"]["image: missing"] == 1
    with pytest.raises(ValueError, match="no sample can be used"):
        inspect.inspect([str(tmp_path / "good.tar")], tmp_path / "out", captions={"caption_long": 1.0})


def test_a_caption_field_that_no_sample_has_is_said(
    make_shard: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_shard("a", range(3))
    with caplog.at_level("WARNING"):
        summary = inspect.inspect([url], tmp_path / "out", captions={"caption_lng": 0.8, "txt": 0.2})
    assert "no usable sample has the caption field caption_lng" in caplog.text
    assert summary.facts()["caption_fields"] == {"txt": 3}
    caplog.clear()
    inspect.inspect([url], tmp_path / "out")
    assert not caplog.records


def test_the_command_line_of_inspect() -> None:
    parsed = inspect.parse(["a.tar", "captions={long: 0.8, txt: 0.2}", "limit=3"])
    assert parsed == {
        "urls": ["a.tar"],
        "out": Path("outputs/inspect"),
        "captions": {"long": 0.8, "txt": 0.2},
        "limit": 3,
    }
    for words, message in (
        (["x=3", "a.tar"], "x= is no setting"),
        ([], "give the address"),
        (["a", "limit=0"], "limit is"),
        (["a", "captions={long: 0.8"], "captions is a mapping such as"),
        (["a", "captions={long: ${other}"], "captions is a mapping such as"),
    ):
        with pytest.raises(ValueError, match=message):
            inspect.parse(words)
    assert inspect.parse(["pipe:cat a=b.tar"])["urls"] == ["pipe:cat a=b.tar"]


def test_help_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    inspect.main([])
    assert "star.data.inspect" in capsys.readouterr().out
