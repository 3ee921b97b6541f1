"""Shards with every kind of damage: an epoch ends, and what was lost is counted by its cause."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star.data.datamodule import ShardDataModule
from star.data.transforms import FORMATS

NUM_SHARDS = int(os.environ.get("STAR_DAMAGED_SHARDS", "1000"))
SAMPLES = 6
BLOCK = 512


@dataclass
class Made:
    """What was written, and what reading it must give."""

    shards: list[Path] = field(default_factory=list)
    usable: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def picture(rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12), tuple(rng.randrange(256) for _ in range(3))).save(buffer, rng.choice(["PNG", "JPEG"]))
    return buffer.getvalue()


def huge() -> bytes:
    """A real picture of 100 megapixels, one bit each, in a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def sample(rng: random.Random, number: int) -> dict[str, bytes]:
    fields = json.dumps({"number": number, "width": 12}).encode()
    return {"jpg": picture(rng), "json": fields, "txt": f"picture {number}".encode()}


def flip(data: bytes, rng: random.Random, first: int = 0, last: int | None = None) -> bytes:
    """One random bit of a stretch turned over."""
    place = rng.randrange(first, len(data) if last is None else last)
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def judge(files: dict[str, bytes], made: Made) -> None:
    """What libraries say of a sample's files, in the order in which the pipeline looks at them."""
    if "jpg" not in files:
        made.skipped["image: missing"] += 1
        return
    for cause, read in (
        ("json", lambda: json.loads(files["json"]) if "json" in files else {}),
        ("caption", lambda: files["txt"].decode("utf-8-sig") if "txt" in files else ""),
    ):
        try:
            read()
        except Exception as error:
            made.skipped[f"{cause}: {type(error).__name__}"] += 1
            return
    if "txt" not in files:
        made.skipped["caption: missing"] += 1
        return
    try:
        Image.open(io.BytesIO(files["jpg"]), formats=FORMATS).convert("RGB")
    except Exception as error:
        made.skipped[f"decode: {type(error).__name__}"] += 1
    else:
        made.usable += 1


def pack(samples: list[dict[str, bytes]]) -> tuple[bytes, list[tuple[int, int, str, bytes]]]:
    """A tar, and of every member where its header lies, which sample it is part of, its extension and content."""
    buffer, members = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, files in enumerate(samples):
            for extension, content in files.items():
                info = tarfile.TarInfo(f"{number:05d}.{extension}")
                info.size = len(content)
                members.append((tar.offset, number, extension, content))
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue(), members


def judge_until(members: list[tuple[int, int, str, bytes]], end: int, made: Made) -> None:
    """The samples of the members that lie whole before `end`; the last sample may be a part of one."""
    found: dict[int, dict[str, bytes]] = {}
    for offset, number, extension, content in members:
        if offset + BLOCK + len(content) <= end:  # padding isn't missed
            found.setdefault(number, {})[extension] = content
    for files in found.values():
        judge(files, made)


def whole(samples: list[dict[str, bytes]], rng: random.Random, made: Made) -> bytes:
    for files in samples:
        judge(files, made)
    return pack(samples)[0]


def truncated(samples: list[dict[str, bytes]], rng: random.Random, made: Made) -> bytes:
    data, members = pack(samples)
    last = members[-1][0] + BLOCK
    end = rng.choice([rng.randrange(1, last), rng.choice(members)[0] or BLOCK])
    judge_until(members, end, made)
    made.skipped["shard: ReadError"] += 1
    return data[:end]


def flipped_header(samples: list[dict[str, bytes]], rng: random.Random, made: Made) -> bytes:
    """One bit of a member's header, which its checksum tells."""
    data, members = pack(samples)
    offset = rng.choice(members)[0]
    judge_until(members, offset, made)
    made.skipped["shard: ReadError"] += 1
    return flip(data, rng, offset, offset + 148)


def flipped_content(samples: list[dict[str, bytes]], rng: random.Random, made: Made) -> bytes:
    """One bit of every file, which may or may not be noticed."""
    return whole([{name: flip(content, rng) for name, content in files.items()} for files in samples], rng, made)


def missing_keys(samples: list[dict[str, bytes]], rng: random.Random, made: Made) -> bytes:
    for files in samples:
        del files[rng.choice(list(files))]
    return whole(samples, rng, made)


def oversized(samples: list[dict[str, bytes]], rng: random.Random, made: Made) -> bytes:
    bombs = rng.sample(range(SAMPLES), 2)
    made.skipped["decode: DecompressionBombError"] += len(bombs)
    for files in (files for number, files in enumerate(samples) if number not in bombs):
        judge(files, made)
    return pack([files | {"jpg": HUGE} if n in bombs else files for n, files in enumerate(samples)])[0]


def no_bytes(samples: list[dict[str, bytes]], rng: random.Random, made: Made) -> bytes:
    made.skipped["shard: ReadError"] += 1
    return b""


def no_files(samples: list[dict[str, bytes]], rng: random.Random, made: Made) -> bytes:
    made.skipped["shard: empty"] += 1
    return pack([])[0]


def no_tar(samples: list[dict[str, bytes]], rng: random.Random, made: Made) -> bytes:
    made.skipped["shard: ReadError"] += 1
    return zlib.compress(rng.randbytes(3000))


HUGE = huge()
DAMAGES: list[Callable[[list[dict[str, bytes]], random.Random, Made], bytes]] = [
    whole,
    truncated,
    flipped_header,
    flipped_content,
    missing_keys,
    oversized,
    no_bytes,
    no_files,
    no_tar,
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, rng, made = tmp_path_factory.mktemp("shards"), random.Random(7), Made()
    for number in range(NUM_SHARDS):
        made.shards.append(folder / f"{number:05d}.tar")
        if number % 10 == 9:
            made.skipped["shard: FileNotFoundError"] += 1
            continue
        samples = [sample(rng, SAMPLES * number + i) for i in range(SAMPLES)]
        made.shards[-1].write_bytes(DAMAGES[number % 10](samples, rng, made))
    return made


def module(made: Made, **settings: Any) -> ShardDataModule:
    sources = {"damaged": {"urls": [str(shard) for shard in made.shards]}}
    return ShardDataModule(
        sources, validation_sources=sources, resolution=8, batch_size=32, shuffle_buffer=64, **settings
    )


def count(batches: Iterator[Any]) -> tuple[int, Counter[str], set[str]]:
    usable, skipped, keys = 0, Counter[str](), set[str]()
    for batch in batches:
        usable += len(batch)
        skipped.update(batch.skipped)
        keys |= set(batch.keys)
    return usable, skipped, keys


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_ends_and_counts_every_loss_once(made: Made, workers: int) -> None:
    usable, skipped, keys = count(iter(module(made, num_workers=workers).val_dataloader()))
    assert skipped == made.skipped
    assert usable == len(keys) == made.usable
    assert {cause.split(":")[0] for cause in skipped} == {"shard", "image", "json", "caption", "decode"}


@pytest.mark.parametrize("workers", [0, 2])
def test_training_epochs_end_and_keep_counting(made: Made, workers: int) -> None:
    """Batches stay full; a second pass over the same damage counts it again."""
    data = module(made, num_workers=workers, epoch_size=made.usable // 2)
    loader = data.train_dataloader()
    seen = [count(iter(loader)) for _ in range(2)]
    assert [usable for usable, *_ in seen] == [made.usable // 2 // 32 * 32] * 2
    total = seen[0][1] + seen[1][1]
    assert set(total) <= set(made.skipped)
    # up to the samples that wait in blocks for their shuffling, a pass has been read
    assert 0.5 * made.skipped.total() < total.total() <= 1.5 * made.skipped.total()
    loader.close()
