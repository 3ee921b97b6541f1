"""Pictures and captions as people have them into shards: `python -m star.data.pack --help`."""

from __future__ import annotations

import io
import json
import logging
import random
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import Progress, TextColumn

from star.data.captions import Captions
from star.data.checker import Checker
from star.data.shards import RawSample
from star.data.skips import SkipSample
from star.data.summary import Summary
from star.data.tables import Columns, Row, read_rows
from star.data.transforms import FORMATS
from star.utils.command import run_command
from star.utils.files import write_atomically

log = logging.getLogger("pack")

HELP = """\
Write pictures with captions as shards, which training reads: data=folder data.sources.folder.urls=OUT/train

  python -m star.data.pack source=FOLDER out=OUT          pictures with .txt files of the same name beside them
  python -m star.data.pack source=pairs.csv out=OUT       a table of paths and captions: .csv .tsv .jsonl .parquet
  python -m star.data.pack source=pairs.csv out=OUT image=file caption=text images=/where/the/pictures/are

Writes OUT/train/00000.tar ..., OUT/validation/ if asked for, and OUT/summary.html: counts, sizes, caption lengths, a
contact sheet, and what was skipped by cause. Pictures are decoded once, to be sure, and stored as they are.

  source=       a folder, or a table; a folder may have a metadata.csv, .jsonl or .parquet
  out=          a folder without shards
  image=        the table's column with paths or pictures; found by its name if not given
  caption=      the table's column with captions; likewise
  images=       where relative paths begin; default: the table's folder
  shard_size=   samples of a shard, default 1000
  validation=   so many samples go to OUT/validation, default 0
  shuffle=      true (default): in random order; false: in the source's, which needs no memory for large Parquet files
  seed=         of that order, default 0
  overwrite=    true: remove the shards that OUT has
"""


@dataclass(frozen=True)
class Request:
    """What the command line asks for; see HELP.

    Raises:
        ValueError: for values that can't be.

    """

    source: str = ""
    out: str = ""
    image: str | None = None
    caption: str | None = None
    images: str | None = None
    shard_size: str = "1000"
    validation: str = "0"
    shuffle: str = "true"
    seed: str = "0"
    overwrite: str = "false"

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything."""
        if not self.source or not self.out:
            raise ValueError("set source=FOLDER_OR_TABLE and out=FOLDER; --help explains")
        for name, least in (("shard_size", 1), ("validation", 0), ("seed", 0)):
            if not getattr(self, name).isdigit() or int(getattr(self, name)) < least:
                raise ValueError(f"{name} is a whole number of at least {least}, got {getattr(self, name)!r}")
        for name in ("shuffle", "overwrite"):
            if getattr(self, name) not in ("true", "false"):
                raise ValueError(f"{name} is true or false, got {getattr(self, name)!r}")


def parse(arguments: Sequence[str]) -> Request:
    """A command line as a request.

    Raises:
        ValueError: for an argument that isn't KEY=VALUE with a known key.

    """
    known = [one.name for one in fields(Request)]
    given = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name not in known:
            raise ValueError(f"{argument!r} isn't KEY=VALUE with one of {', '.join(known)}")
        given[name] = value
    return Request(**given)


class ShardWriter:
    """Writes samples into numbered tars, each whole or not there.

    Args:
        folder: where.
        size: samples of a shard.

    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        self.written = 0
        self._pending: list[dict[str, bytes]] = []

    def add(self, files: Mapping[str, bytes]) -> None:
        """Write a sample: extension -> content."""
        self._pending.append(dict(files))
        if len(self._pending) == self.size:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as a shard."""
        if self._pending:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / f"{self.written:05d}.tar", self._write)
            self.written += 1
            self._pending = []

    def key(self) -> str:
        """Of the next sample."""
        return f"{self.written:05d}{len(self._pending):05d}"

    def _write(self, path: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, files in enumerate(self._pending):
                for extension, content in files.items():
                    # its time stays 0, so that equal input gives equal bytes
                    entry = tarfile.TarInfo(f"{self.written:05d}{number:05d}.{extension}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def pack(request: Request) -> Summary:
    """Do what the request asks for.

    Raises:
        FileNotFoundError: when there is no such source.
        FileExistsError: when the folder has shards already.
        ValueError: when the source can't be read, nothing of it can be used, or nothing is left to train on.

    """
    out = Path(request.out)
    held = _held(out, overwrite=request.overwrite == "true")
    rows = _begun(
        read_rows(
            Path(request.source),
            columns=Columns(request.image, request.caption),
            images=None if request.images is None else Path(request.images),
        ),
        request.source,
    )
    if request.shuffle == "true":
        rows = list(rows)
        random.Random(int(request.seed)).shuffle(rows)
    for path in held:  # only now: a source that can't be read leaves what is there
        path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    summary = Summary()
    checker = Checker(summary, Captions())
    writers = [ShardWriter(out / name, int(request.shard_size)) for name in ("validation", "train")]
    total = len(rows) if isinstance(rows, list) else None
    with Progress(*Progress.get_default_columns(), TextColumn("{task.completed} samples")) as progress:
        for row in progress.track(rows, total=total, description="packing"):
            writer = writers[0] if summary.samples < int(request.validation) else writers[1]
            if (files := _checked(row, checker, writer.key())) is not None:
                writer.add(files)
    for writer in writers:
        writer.flush()
    summary.shards = sum(writer.written for writer in writers)
    write_summary(summary, out, title=f"{request.source} in {summary.shards} shards")
    if not summary.samples:
        raise ValueError(f"nothing of {request.source} can be used: {dict(summary.skipped.most_common())}")
    if not writers[1].written:
        raise ValueError(f"validation={request.validation} takes all {summary.samples} samples, training gets none")
    return summary


def _checked(row: Row, checker: Checker, key: str) -> dict[str, bytes] | None:
    """A sample's files; None for one that can't be used, which is counted."""
    try:
        data = row.read()
    except SkipSample as error:
        checker.summary.skip(error.cause)
        return None
    text = {} if row.caption is None else {"txt": row.caption.encode("utf-8", errors="replace")}
    extension = _extension(data)
    size = checker(RawSample(key, {extension: data, **text}))
    if size is None:
        return None
    record = {"key": key, "caption": row.caption, "width": size[0], "height": size[1]} | dict(row.metadata)
    return {extension: data, "json": json.dumps(record, ensure_ascii=False, default=str).encode(), **text}


def _extension(data: bytes) -> str:
    """What the bytes are, whatever their file is called; `jpg` for what can't be read, which the check finds out."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[picture.format or ""]
    except (OSError, ValueError, SyntaxError, KeyError, Image.DecompressionBombError):
        return "jpg"


def _begun(rows: Iterator[Row], source: str) -> Iterable[Row]:
    """The same rows, the first one read already: a source that has none, or is none, fails here."""
    first = list(islice(rows, 1))
    if not first:
        raise ValueError(f"{source} has no rows")
    return chain(first, rows)


def _held(out: Path, *, overwrite: bool) -> list[Path]:
    """The shards that a folder has, which have to go; a FileExistsError unless they may."""
    held = [path for name in ("train", "validation") for path in (out / name).glob("*.tar")]
    if held and not overwrite:
        raise FileExistsError(f"{out} has {len(held)} shards already: choose another out=, or overwrite=true")
    return held


def write_summary(summary: Summary, out: Path, *, title: str) -> None:
    """Write summary.html and summary.json into a folder, and say the most important of it."""
    facts: dict[str, Any] = {"title": title} | summary.facts()
    for name, text in (("summary.html", summary.page(title)), ("summary.json", json.dumps(facts, indent=2) + "\n")):
        write_atomically(out / name, lambda path, text=text: _write(path, text))  # type: ignore[misc]
    log.info("%d samples in %d shards; %s", summary.samples, summary.shards, out / "summary.html")
    if summary.skipped:
        causes = ", ".join(f"{cause} {count}" for cause, count in summary.skipped.most_common())
        log.warning("%d samples were skipped: %s", summary.skipped.total(), causes)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    run_command(HELP, lambda given: pack(parse(given)), arguments)


if __name__ == "__main__":
    main()
