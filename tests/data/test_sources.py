from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from star.data.captions import Captions
from star.data.sources import ShardSource, expand_urls, parse_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"{number:05d}.tar").touch()
    return tmp_path


@pytest.mark.parametrize("pattern", ["{}/*.tar", "{}", "{}/{{00000..00002}}.tar", "file://{}/*.tar"])
def test_globs_folders_and_braces_name_the_same_shards(folder: Path, pattern: str) -> None:
    expected = tuple(str(folder / f"{number:05d}.tar") for number in range(3))
    assert expand_urls(pattern.format(folder), "k") == expected


def test_several_patterns_are_joined(folder: Path) -> None:
    urls = [f"{folder}/00000.tar", f"{folder}/0000[12].tar"]
    assert [Path(url).stem for url in expand_urls(urls, "k")] == ["00000", "00001", "00002"]


def test_addresses_are_expanded_and_s3_is_read_through_a_pipe() -> None:
    assert expand_urls("https://host/{0..1}.tar", "k") == ("https://host/0.tar", "https://host/1.tar")
    assert expand_urls("s3://bucket/a b.tar", "k") == ("pipe:aws s3 cp 's3://bucket/a b.tar' -",)
    assert expand_urls("pipe:cat {a,b}.tar", "k") == ("pipe:cat a.tar", "pipe:cat b.tar")


@pytest.mark.parametrize("urls", [None, "", [], [None], 3 * [" "]])
def test_no_address_is_an_error_that_names_the_key(urls: object) -> None:
    with pytest.raises(ValueError, match=r"data\.sources\.laion\.urls is .* set it to the shards.*laion\.weight=0"):
        expand_urls(urls, "data.sources.laion.urls")  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["{}/*.tar.gz", "{}/empty", "{}/nothing-{{0..9}}.tar", "{}/{{0..1.tar"])
def test_addresses_of_nothing_are_an_error_that_names_the_key(folder: Path, pattern: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"data\.sources\.mine\.urls"):
        expand_urls(pattern.format(folder), "data.sources.mine.urls")


def test_some_missing_shards_of_a_range_are_left_to_the_reader(folder: Path) -> None:
    assert len(expand_urls(f"{folder}/{{00000..00009}}.tar", "k")) == 10


def test_mappings_become_sources_named_by_their_keys(folder: Path) -> None:
    entries = {
        "mine": {"urls": str(folder), "weight": 2, "captions": {"txt": 1, "long": 3}},
        "off": {"urls": None, "weight": 0.0},
        "of_another_data_set": {"weight": 1.0},
        "theirs": ShardSource(f"{folder}/00000.tar"),
    }
    mine, theirs = parse_sources(entries, "data.sources")
    assert (mine.name, mine.weight, len(mine.urls or ())) == ("mine", 2.0, 3)
    assert mine.captions == Captions({"txt": 1.0, "long": 3.0})
    assert theirs.name == "theirs"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"urls": None}, r"data\.sources\.mine\.urls is None"),
        ({"url": "x"}, r"data\.sources\.mine\.url is not a setting.*urls, weight, captions"),
        ({"urls": "x", "weight": -1}, r"data\.sources\.mine: the weight .*-1"),
        ({"urls": "x", "weight": "much"}, r"data\.sources\.mine: the weight .*'much'"),
        ({"urls": "x", "captions": {"txt": -1}}, r"data\.sources\.mine: .*'txt'"),
        ("shards/*.tar", r"data\.sources\.mine must be a mapping"),
    ],
)
def test_what_is_no_source_is_named(entry: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sources({"mine": entry}, "data.sources")


def test_no_mapping_means_no_source(make_shard: Callable[..., str]) -> None:
    assert parse_sources(None, "data.validation_sources") == ()
    with pytest.raises(ValueError, match=r"data\.sources must map names"):
        parse_sources([make_shard("a", [1])], "data.sources")  # type: ignore[arg-type]


def test_who_lacks_the_shards_is_told_what_makes_them(tmp_path: Path) -> None:
    entry = {"urls": f"{tmp_path}/*.tar", "made_by": "python -m make.them out=here"}
    with pytest.raises(ValueError, match=r"make the shards \(python -m make.them out=here\) or correct"):
        parse_sources({"mine": entry}, "data.sources")
