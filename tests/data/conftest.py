"""Shards in img2dataset's form, made by the tests themselves."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Sample = Mapping[str, bytes]
MakeShard = Callable[..., str]


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """The bytes of a picture of one colour."""

    def encode(colour: Any = "red", size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "RGB") -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, size, colour).save(buffer, kind)
        return buffer.getvalue()

    return encode


@pytest.fixture
def make_sample(encode: Callable[..., bytes]) -> Callable[..., dict[str, bytes]]:
    """A pair whose picture, caption and json all tell its number."""

    def make(number: int, **metadata: Any) -> dict[str, bytes]:
        fields = {"key": f"{number:09d}", "width": 8, "height": 8, "number": number} | metadata
        return {
            "png": encode((number % 256, number // 256, 7)),
            "json": json.dumps(fields).encode(),
            "txt": f"picture {number}".encode(),
        }

    return make


@pytest.fixture
def make_shard(tmp_path: Path, make_sample: Callable[..., dict[str, bytes]]) -> MakeShard:
    """Writes `NAME.tar` of the numbered samples, or of those given, and returns its path."""

    def make(name: str, samples: Iterable[int | Sample]) -> str:
        path = tmp_path / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            for number, sample in enumerate(samples):
                files = make_sample(sample) if isinstance(sample, int) else sample
                key = f"{sample:09d}" if isinstance(sample, int) else f"9{number:08d}"
                for extension, data in files.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return str(path)

    return make
