from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from star.data.shards import RawSample, ShardError, read_shard, shard_name


def read(url: str) -> tuple[list[RawSample], str | None]:
    """What a shard gives, and the reason why it stopped early."""
    samples = []
    try:
        for sample in read_shard(url):
            samples.append(sample)  # noqa: PERF402
    except ShardError as error:
        return samples, error.reason
    return samples, None


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def test_files_of_a_key_are_a_sample_in_whatever_order(tmp_path: Path) -> None:
    files = [("7.jpg", b"a"), ("7.json", b"b"), ("7.txt", b"c"), ("3.TXT", b"d"), ("3.jpg", b"e"), ("x/5.webp", b"f")]
    samples, reason = read(write_tar(tmp_path / "a.tar", files))
    assert reason is None
    assert samples == [
        RawSample("7", {"jpg": b"a", "json": b"b", "txt": b"c"}),
        RawSample("3", {"txt": b"d", "jpg": b"e"}),
        RawSample("x/5", {"webp": b"f"}),
    ]


def test_a_truncated_shard_gives_what_lies_before_the_damage(make_shard: Callable[..., str], tmp_path: Path) -> None:
    whole = Path(make_shard("whole", range(10))).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: 512 * 6 * 4 + 700])
    samples, reason = read(str(tmp_path / "cut.tar"))
    assert [sample.key for sample in samples[:4]] == [f"{number:09d}" for number in range(4)]
    assert len(samples) <= 5
    assert reason == "ReadError"


@pytest.mark.parametrize("place", ["in a header", "before a header", "behind a name"])
def test_no_damage_passes_for_the_end_of_a_shard(make_shard: Callable[..., str], tmp_path: Path, place: str) -> None:
    """tarfile takes a header that it can't read, or that isn't there, for the end, and says nothing."""
    whole = bytearray(Path(make_shard("whole", range(10))).read_bytes())
    header = 1024 * 3 * 4  # of the fifth sample: each of three files has a header and a block
    if place == "in a header":
        whole[header + 3] ^= 1
    cut = {"in a header": len(whole), "before a header": header, "behind a name": header + 100}[place]
    (tmp_path / "damaged.tar").write_bytes(whole[:cut])
    samples, reason = read(str(tmp_path / "damaged.tar"))
    assert [sample.key for sample in samples] == [f"{number:09d}" for number in range(4)]
    assert reason == "ReadError"


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "FileNotFoundError"), (b"", "ReadError"), (b"x" * 999, "ReadError")]
)
def test_what_is_no_tar_is_an_error(tmp_path: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "a.tar").write_bytes(content)
    assert read(str(tmp_path / "a.tar")) == ([], expected)


def test_a_tar_without_files_is_empty_and_whole(tmp_path: Path) -> None:
    assert read(write_tar(tmp_path / "a.tar", [])) == ([], None)


def test_a_repeated_name_is_noted_and_reading_goes_on(tmp_path: Path) -> None:
    samples, reason = read(write_tar(tmp_path / "a.tar", [("1.txt", b"a"), ("1.txt", b"b"), ("2.txt", b"c")]))
    assert ([sample.files["txt"] for sample in samples], reason) == ([b"a", b"c"], "ValueError")


def test_pipes_are_read_and_a_failing_command_is_told_from_a_broken_tar(make_shard: Callable[..., str]) -> None:
    path = make_shard("a", range(3))
    assert read(f"pipe:cat {path}") == (read(path)[0], None)
    assert read("pipe:exit 22") == ([], "OSError")
    samples, reason = read(f"pipe:head -c 5000 {path}; exit 18")
    assert (len(samples), reason) == (2, "OSError")
    assert read(f"pipe:head -c 5000 {path}")[1] == "ReadError"


def test_a_pipe_may_be_left_half_way(make_shard: Callable[..., str]) -> None:
    path = make_shard("a", range(100))
    samples = read_shard(f"pipe:cat {path}; cat /dev/zero")
    first = next(samples)
    samples.close()  # type: ignore[attr-defined]
    assert first.key == next(iter(read_shard(path))).key


def test_compressed_shards_are_read(make_shard: Callable[..., str], tmp_path: Path) -> None:
    path = make_shard("a", range(3))
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
        for name in ("1.txt", "2.txt"):
            tar.addfile(tarfile.TarInfo(name))
    assert [sample.key for sample in read(str(tmp_path / "b.tar.gz"))[0]] == ["1", "2"]
    assert len(read(path)[0]) == 3


@pytest.mark.parametrize(
    "url",
    [
        "/data/00012.tar",
        "s3://bucket/laion/00012.tar",
        "pipe:aws s3 cp 's3://b/x/00012.tar' -",
        "http://h/00012.tar?k=1",
    ],
)
def test_short_names(url: str) -> None:
    assert shard_name(url) == "00012"
