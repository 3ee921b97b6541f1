"""Reading pictures: from folders and shards, in order, ahead of the scoring, with errors that name the file."""

from __future__ import annotations

import io
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from star.drawing import Request
from star.metrics.json_lines import read_json_lines

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
THREADS = 2


@dataclass(frozen=True)
class Picture:
    """A picture and what is known of it.

    Attributes:
        name: its file, for messages.
        record: at least `prompt` where there is one.
        data: its bytes when it comes from a shard.

    """

    name: str
    record: Mapping[str, Any] = field(default_factory=dict)
    data: bytes | None = field(default=None, repr=False)

    def open(self) -> Image.Image:
        """Decode it as RGB.

        Raises:
            ValueError: when it can't be read; names the file.

        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(self.name if self.data is None else io.BytesIO(self.data)) as image:
                    return image.convert("RGB")
        except FileNotFoundError as error:
            raise ValueError(f"there is no picture {self.name}") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.name} can't be read as a picture: {error}") from error


def list_pictures(folder: Path, *, only: str | None = None) -> list[Path]:
    """All picture files of a folder and the folders in it, sorted.

    Args:
        folder: where to look.
        only: a suffix that all must have, e.g. `png`.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when it holds no picture, or one of another kind than `only`.

    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = sorted(
        file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    if only is not None:
        for file in files:
            check_kind(file, only)
    return files


def check_kind(file: Path, only: str) -> None:
    """Raise a ValueError that names the file unless its suffix is `only` (a lossy copy isn't what was drawn)."""
    if file.suffix.lower() != f".{only}":
        raise ValueError(
            f"{file} is a {file.suffix.lstrip('.').upper()} file, the protocol asks for {only.upper()}: "
            "lossy copies score differently"
        )


def match(folder: Path, requests: Sequence[Request], *, only: str | None = "png") -> list[Picture]:
    """The pictures of a folder that somebody else filled, one per request.

    An `index.jsonl` in the folder (file, prompt) is followed; else files have the requests' names, or those of
    GenEval's folders, or there are exactly as many as requests and their sorted order is that of the prompts.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when pictures are missing or too many; names the first.

    """
    files = list_pictures(folder, only=only)
    index = folder / "index.jsonl"
    if index.is_file():
        return _by_index(index, requests)
    named = {str(file.relative_to(folder)): file for file in files}
    loose = {name.rpartition(".")[0]: file for name, file in named.items()}
    for rename in (lambda request: request.file, _geneval_name, _short_geneval_name):
        found = [named.get(rename(request)) or loose.get(rename(request).rpartition(".")[0]) for request in requests]
        present = sum(file is not None for file in found)
        if present == len(requests):
            return [Picture(str(file), request.metadata) for file, request in zip(found, requests, strict=True)]
        if present:
            missing = next(rename(r) for r, file in zip(requests, found, strict=True) if file is None)
            raise ValueError(f"{folder} holds {present} of the {len(requests)} pictures: {folder / missing} is missing")
    if len(files) != len(requests):
        raise ValueError(
            f"{folder} holds {len(files)} pictures, the prompts ask for {len(requests)}: "
            f"name them like {requests[0].file} or list them in an index.jsonl (file, prompt)"
        )
    return [Picture(str(file), request.metadata) for file, request in zip(files, requests, strict=True)]


def _geneval_name(request: Request) -> str:
    return f"{request.metadata['index']:05d}/samples/{request.metadata['image']:05d}.png"


def _short_geneval_name(request: Request) -> str:
    return f"{request.metadata['index']:05d}/samples/{request.metadata['image']:04d}.png"


def read_index(index: Path) -> list[dict[str, Any]]:
    """The lines of an `index.jsonl`: file, prompt, and whatever else.

    Raises:
        ValueError: for a line that isn't such a record.

    """
    return read_json_lines(index, _indexed, what='JSON object with "file" and "prompt"')


def _indexed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "file": str(row["file"]), "prompt": str(row["prompt"])}


def _by_index(index: Path, requests: Sequence[Request]) -> list[Picture]:
    files: dict[str, deque[str]] = {}
    for row in read_index(index):
        files.setdefault(row["prompt"], deque()).append(row["file"])
    pictures = []
    for request in requests:
        queue = files.get(request.prompt)
        if not queue:
            raise ValueError(f"{index} lists too few pictures of the prompt {request.prompt!r} for {request.file}")
        pictures.append(Picture(str(index.parent / queue.popleft()), request.metadata))
    return pictures


Prepare = Callable[[Image.Image], Image.Image]


def batches(
    pictures: Iterator[Picture] | Sequence[Picture],
    size: int,
    *,
    prepare: Prepare | None = None,
    threads: int = THREADS,
) -> Iterator[tuple[Tensor, list[Mapping[str, Any]]]]:
    """Read pictures ahead of their use, in order.

    Args:
        pictures: what to read.
        size: pictures per batch; the last one may be smaller.
        prepare: resizes or crops a picture.
        threads: that decode.

    Yields:
        Pixels (B, 3, H, W) float in [0, 1], and the records.

    Raises:
        ValueError: for a picture that can't be read, or of another size than the first one; names the file.

    """
    expected: tuple[str, tuple[int, int]] | None = None
    pixels: list[np.ndarray[Any, Any]] = []
    records: list[Mapping[str, Any]] = []
    for picture, array in _ahead(iter(pictures), prepare, threads, 2 * size):
        side = (array.shape[1], array.shape[0])
        expected = expected or (picture.name, side)
        if side != expected[1]:
            raise ValueError(
                f"pictures of different sizes: {picture.name} has {side[0]}x{side[1]} pixels, "
                f"{expected[0]} has {expected[1][0]}x{expected[1][1]}. Bring them to one size; "
                "real pictures are resized with metric.items.NAME.reference.fit.size=drawn"
            )
        pixels.append(array)
        records.append(picture.record)
        if len(pixels) == size:
            yield _stack(pixels), records
            pixels, records = [], []
    if pixels:
        yield _stack(pixels), records


def _ahead(
    pictures: Iterator[Picture], prepare: Prepare | None, threads: int, ahead: int
) -> Iterator[tuple[Picture, np.ndarray[Any, Any]]]:
    def read(picture: Picture) -> tuple[Picture, np.ndarray[Any, Any]]:
        image = picture.open()
        return picture, np.asarray(image if prepare is None else prepare(image))

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Any] = deque()
        try:
            for picture in pictures:
                waiting.append(pool.submit(read, picture))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _stack(pixels: Sequence[np.ndarray[Any, Any]]) -> Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div_(255)
