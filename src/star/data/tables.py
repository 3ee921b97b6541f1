"""Pictures and captions as people have them: a folder, or a table in CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from star.data.samples import PICTURE_EXTENSIONS
from star.data.skips import SkipSample

IMAGE_COLUMNS = ("image", "image_path", "img_path", "file_name", "filename", "file", "path", "filepath", "jpg", "png")
CAPTION_COLUMNS = ("caption", "text", "prompt", "description", "txt", "title")
_ADDRESS_COLUMNS = ("url", "image_url")
_TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_ADDRESS = ("http://", "https://", "s3://")


@dataclass(frozen=True)
class Row:
    """One picture with its caption, not read yet.

    Attributes:
        name: for messages.
        picture: its file, or its bytes where the table holds them; None where it holds neither.
        caption: None where there is none.
        metadata: everything else that is known about it.

    """

    name: str
    picture: Path | bytes | None
    caption: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        """The picture's bytes.

        Raises:
            SkipSample: when it isn't there.

        """
        if self.picture is None:
            raise SkipSample("image", "missing")
        if isinstance(self.picture, bytes):
            return self.picture
        try:
            return self.picture.read_bytes()
        except OSError as error:
            raise SkipSample(
                "image", "missing" if isinstance(error, FileNotFoundError) else type(error).__name__
            ) from error


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are used; None finds them by their names.

    Attributes:
        image: holds paths, or the pictures themselves.
        caption: holds texts, or lists of texts, of which the first is taken and the others stay in the metadata.

    """

    image: str | None = None
    caption: str | None = None

    def resolve(self, names: Sequence[str], *, table: str) -> tuple[str, str]:
        """The names of both columns among those of a table.

        Raises:
            ValueError: when there is no such column; it says which there are.

        """
        image = _find(self.image, names, IMAGE_COLUMNS)
        if image is None and self.image is None and _find(None, names, _ADDRESS_COLUMNS) is not None:
            raise ValueError(
                f"{table} has addresses (column {_find(None, names, _ADDRESS_COLUMNS)}) and no pictures: download them "
                "with img2dataset, which writes shards (docs/your_data.md)"
            )
        caption = _find(self.caption, names, CAPTION_COLUMNS)
        for setting, wanted, found in (("image", self.image, image), ("caption", self.caption, caption)):
            if found is None:
                problem = f"no column {wanted!r}" if wanted else f"no column that is known to hold the {setting}"
                raise ValueError(f"{table} has {problem}: set {setting}= to one of {', '.join(names)}")
        assert image is not None
        assert caption is not None
        return image, caption


def read_rows(source: Path, *, columns: Columns, images: Path | None = None) -> Iterator[Row]:
    """All pairs of a source, in its order.

    Args:
        source: a folder (pictures with `.txt`, and perhaps `.json`, of the same name beside them; or a metadata.csv,
            .jsonl or .parquet), or a table.
        columns: of a table.
        images: where a table's relative paths begin; None is the table's folder.

    Raises:
        FileNotFoundError: when there is no such source.
        ValueError: when it holds no pictures, isn't a known kind of table, or lacks a column.

    """
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}: set source= to a folder, or a CSV, JSON lines or Parquet file")
    if source.is_dir():
        table = next((source / name for name in _TABLES if (source / name).is_file()), None)
        if table is None:
            yield from _folder(source)
            return
        source = table
    base = images or source.parent
    with _named(source):
        names, records = _open(source)
        image, caption = columns.resolve(names, table=str(source))
        for number, record in enumerate(records, 1):
            yield _row(record, f"{source.name}:{number}", image=image, caption=caption, base=base)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Say of which file it is that it can't be read: spreadsheets like to write other encodings."""
    try:
        yield
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} can't be read, it has to be text in UTF-8: {error}") from error


def _folder(folder: Path) -> Iterator[Row]:
    empty = True
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower().lstrip(".") in PICTURE_EXTENSIONS and path.is_file():
            empty = False
            text, record = path.with_suffix(".txt"), path.with_suffix(".json")
            caption = text.read_text(encoding="utf-8-sig", errors="replace") if text.is_file() else None
            with _named(record):
                metadata = _object(record.read_text(encoding="utf-8-sig"), str(record)) if record.is_file() else {}
            found = _find(None, list(metadata), CAPTION_COLUMNS)
            caption = caption if caption is not None or found is None else _first_text(metadata[found])
            yield Row(str(path.relative_to(folder)), path, caption, {"file": path.name} | metadata)
    if empty:
        raise ValueError(f"{folder} has no pictures ({', '.join(PICTURE_EXTENSIONS)}) and no {', '.join(_TABLES)}")


def _open(table: Path) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    """The columns of a table and its records."""
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
    reader = readers.get(table.suffix.lower())
    if reader is None:
        raise ValueError(f"{table} is no table that can be read: give one of {', '.join(readers)}, or a folder")
    return reader(table)


def _csv(table: Path) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    def records() -> Iterator[Mapping[str, Any]]:
        with table.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file, dialect=dialect)

    dialect = csv.excel_tab if table.suffix.lower() == ".tsv" else csv.excel
    with table.open(encoding="utf-8-sig", newline="") as file:
        names = csv.DictReader(file, dialect=dialect).fieldnames
    return list(names or []), records()


def _json_lines(table: Path) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    def records() -> Iterator[Mapping[str, Any]]:
        with table.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _object(line, f"{table}:{number}")

    return list(next(records(), {})), records()


def _parquet(table: Path) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reading Parquet needs pyarrow: pip install -e '.[parquet]'") from error
    opened = ParquetFile(table)
    batches = opened.iter_batches(batch_size=256)
    return list(opened.schema_arrow.names), (record for batch in batches for record in batch.to_pylist())


def _row(record: Mapping[str, Any], name: str, *, image: str, caption: str, base: Path) -> Row:
    value = record.get(image)
    others = {key: one for key, one in record.items() if key not in (image, None) and not isinstance(one, bytes)}
    if isinstance(value, Mapping):  # how `datasets` stores pictures
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.startswith(_ADDRESS):
        raise ValueError(
            f"{name} has the address {value!r} and no picture: download the pictures with img2dataset, which writes "
            "shards (docs/your_data.md)"
        )
    picture = value if isinstance(value, bytes) else base / value if isinstance(value, str) and value else None
    if isinstance(picture, Path):
        others = {"file": str(value)} | others
    return Row(name, picture, _first_text(record.get(caption)), others)


def _find(wanted: str | None, names: Sequence[str], known: Sequence[str]) -> str | None:
    """The wanted column if it is there, or the first known one, whatever its case."""
    if wanted is not None:
        return wanted if wanted in names else None
    lower = {str(name).lower(): name for name in reversed(names)}
    return next((lower[name] for name in known if name in lower), None)


def _first_text(value: Any) -> str | None:
    texts = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
    return texts[0] if texts else None


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{name} must hold a JSON object, got {type(record).__name__}")
    return record
