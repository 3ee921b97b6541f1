"""Reading pictures: from folders and shards, in order, ahead of the scoring, with errors that name the file."""

from __future__ import annotations

import io
import os
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
# decoding releases the interpreter: as many as there are cores keep a fast network fed
THREADS = max(2, min(16, os.cpu_count() or 2))
# how lossy files begin, whatever they are called
_LOSSY = {b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif"}
_ALIASES = {"jpg": "jpeg", "tif": "tiff"}


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
    """Raise a ValueError that names the file unless it is of the kind `only`: a lossy copy isn't what was drawn."""
    with file.open("rb") as opened:
        check_content(str(file), file.suffix.lstrip(".").lower(), opened.read(4), only)


def check_content(name: str, kind: str, data: bytes, only: str) -> None:
    """The same for a picture of that name and suffix, by how its content begins."""
    wanted, found = (_ALIASES.get(word.lower(), word.lower()) for word in (only, kind))
    if found == wanted:
        kind = found = next((lossy for magic, lossy in _LOSSY.items() if data.startswith(magic)), wanted)
    if found != wanted:
        raise ValueError(
            f"{name} is a {kind.upper()} file, the protocol asks for {only.upper()}: lossy copies score differently "
            "(format=null takes any)"
        )


def match(folder: Path, requests: Sequence[Request], *, only: str | None = "png") -> list[Picture]:
    """The pictures of a folder that somebody else filled, one per request.

    An `index.jsonl` in the folder (file, prompt) is followed; else files have the requests' names, or those of
    GenEval's folders, or there are exactly as many as requests and their sorted order is that of the prompts.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when pictures are missing, too many, or not of the kind `only`; names the first.

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
            _refuse_others(folder, files, [file for file in found if file is not None])
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


def _refuse_others(folder: Path, files: Sequence[Path], found: Sequence[Path]) -> None:
    """More pictures than prompts are another protocol's, whose names may mean other prompts."""
    others = sorted(set(files) - set(found))
    others = [file for file in others if file.name != "grid.png"]  # GenEval's folders may have an overview
    if others:
        raise ValueError(
            f"{folder} holds {len(found) + len(others)} pictures, the prompts ask for {len(found)}: {others[0]} is not "
            "asked for. Remove what doesn't belong to the protocol, or list what does in an index.jsonl (file, prompt)"
        )


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
    left = next((files[request.prompt] for request in requests if files[request.prompt]), None)
    if left:
        raise ValueError(f"{index} lists more pictures of a prompt than are asked for, e.g. {index.parent / left[0]}")
    return pictures


Prepare = Callable[[Image.Image], Image.Image]


def batches(
    pictures: Iterator[Picture] | Sequence[Picture],
    size: int,
    *,
    prepare: Prepare | None = None,
    like: Picture | None = None,
    threads: int = THREADS,
) -> Iterator[tuple[Tensor, list[Mapping[str, Any]]]]:
    """Read pictures ahead of their use, in order.

    Args:
        pictures: what to read.
        size: pictures per batch; the last one may be smaller.
        prepare: resizes or crops a picture.
        like: a picture whose size all must have; None takes the first one's.
        threads: that decode.

    Yields:
        Pixels (B, 3, H, W) float in [0, 1], and the records.

    Raises:
        ValueError: for a size below 1, or a picture that can't be read or is of another size than the first one;
            names the file.

    """
    expected = None if like is None else (like.name, like.open().size)
    pixels: list[Tensor] = []
    records: list[Mapping[str, Any]] = []
    if size < 1:
        raise ValueError(f"batch is at least 1, got {size}")
    for picture, image in _ahead(iter(pictures), prepare, threads, 2 * size):
        side = (image.shape[2], image.shape[1])
        expected = expected or (picture.name, side)
        if side != expected[1]:
            raise ValueError(
                f"pictures of different sizes: {picture.name} has {side[0]}x{side[1]} pixels, "
                f"{expected[0]} has {expected[1][0]}x{expected[1][1]}. Bring them to one size; "
                "real pictures are resized with metric.items.NAME.reference.fit.size=drawn"
            )
        pixels.append(image)
        records.append(picture.record)
        if len(pixels) == size:
            yield torch.stack(pixels), records
            pixels, records = [], []
    if pixels:
        yield torch.stack(pixels), records


def _ahead(
    pictures: Iterator[Picture], prepare: Prepare | None, threads: int, ahead: int
) -> Iterator[tuple[Picture, Tensor]]:
    def read(picture: Picture) -> tuple[Picture, Tensor]:
        image = picture.open()
        return picture, _to_tensor(image if prepare is None else prepare(image))

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


def _to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) float in [0, 1]; made by the reading threads, so that the scoring one only stacks."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
