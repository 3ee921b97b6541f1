from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star.data.skips import SkipSample
from star.data.tables import Columns, read_rows

Encode = Callable[..., bytes]
RECORDS = [{"file_name": "a.png", "text": "a, b", "score": 5}, {"file_name": "sub/b.png", "text": "two", "score": 6}]


def rows(source: Path, image: str | None = None, caption: str | None = None, **settings: Any) -> list[Any]:
    return list(read_rows(source, columns=Columns(image, caption), **settings))


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(record) for record in records))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_every_kind_of_table_says_the_same(name: str, tmp_path: Path) -> None:
    found = rows(write(tmp_path / name, RECORDS))
    assert [row.picture for row in found] == [tmp_path / "a.png", tmp_path / "sub" / "b.png"]
    assert [row.caption for row in found] == ["a, b", "two"]
    assert [int(row.metadata["score"]) for row in found] == [5, 6]
    assert found[1].metadata["file"] == "sub/b.png"
    elsewhere = rows(tmp_path / name, images=Path("/pictures"))
    assert elsewhere[0].picture == Path("/pictures/a.png")


def test_a_folder_has_captions_beside_its_pictures(tmp_path: Path, encode: Encode) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.PNG", "c.png", "d.png"):
        (tmp_path / name).write_bytes(encode())
    (tmp_path / "a.txt").write_text("\ufeffone")
    (tmp_path / "sub" / "b.txt").write_text("two")
    (tmp_path / "c.json").write_text(json.dumps({"caption": "three", "aesthetic": 6.5}))
    found = {row.name: row for row in rows(tmp_path)}
    assert {name: row.caption for name, row in found.items()} == {
        "a.png": "one",
        "c.png": "three",
        "d.png": None,
        "sub/b.PNG": "two",
    }
    assert found["c.png"].metadata["aesthetic"] == 6.5
    assert found["a.png"].read() == encode()


def test_a_folder_with_a_table_is_read_by_the_table(tmp_path: Path, encode: Encode) -> None:
    (tmp_path / "stray.png").write_bytes(encode())
    write(tmp_path / "metadata.jsonl", RECORDS)
    assert [row.picture for row in rows(tmp_path)] == [tmp_path / "a.png", tmp_path / "sub" / "b.png"]


def test_pictures_may_lie_in_the_table(tmp_path: Path, encode: Encode) -> None:
    records = [{"image": {"bytes": encode(), "path": "a.png"}, "caption": "one"}]
    (row,) = rows(write(tmp_path / "t.parquet", records))
    assert row.read() == encode()
    (row,) = rows(write(tmp_path / "u.parquet", [{"jpg": encode(), "caption": ["first", "second"]}]))
    assert (row.read(), row.caption) == (encode(), "first")
    assert row.metadata == {"caption": ["first", "second"]}


def test_missing_pictures_are_skips(tmp_path: Path) -> None:
    found = rows(write(tmp_path / "t.jsonl", [{"file": "no.png", "caption": "x"}, {"file": None, "caption": "y"}]))
    for row in found:
        with pytest.raises(SkipSample, match="image: missing"):
            row.read()


@pytest.mark.parametrize(
    ("records", "columns", "message"),
    [
        ([{"url": "https://x/a.jpg", "caption": "x"}], {}, r"addresses \(column url\).* img2dataset"),
        ([{"URL": "https://x/a.jpg", "TEXT": "x"}], {}, r"addresses \(column URL\).* img2dataset"),
        ([{"image": "https://x/a.jpg", "caption": "x"}], {}, "t.csv:1 has the address"),
        (
            [{"a": "x.png", "caption": "x"}],
            {},
            "no column that is known to hold the image: set image= to one of a, cap",
        ),
        ([{"file": "x.png", "b": "x"}], {}, "no column that is known to hold the caption: set caption="),
        ([{"file": "x.png", "caption": "x"}], {"caption": "z"}, "no column 'z': set caption= to one of file, caption"),
    ],
)
def test_tables_without_pictures_or_captions_are_refused(
    records: list[dict[str, Any]], columns: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        rows(write(tmp_path / "t.csv", records), **columns)


def test_what_is_no_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="set source="):
        rows(tmp_path / "no")
    with pytest.raises(ValueError, match="has no pictures"):
        rows(tmp_path)
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(ValueError, match="is no table that can be read"):
        rows(tmp_path / "t.xlsx")
    (tmp_path / "t.jsonl").write_text('{"file": "a.png", "caption": "x"}\nnot json')
    with pytest.raises(ValueError, match=r"t\.jsonl:2 is no JSON"):
        rows(tmp_path / "t.jsonl")


def test_other_encodings_are_said_of_the_file(tmp_path: Path, encode: Encode) -> None:
    (tmp_path / "t.csv").write_bytes("file,caption\na.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv can't be read, it has to be text in UTF-8"):
        rows(tmp_path / "t.csv")
    (tmp_path / "long.csv").write_text(f"file,caption\na.png,{'x' * 200_000}\n")
    with pytest.raises(ValueError, match=r"long\.csv can't be read, .*field larger than"):
        rows(tmp_path / "long.csv")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(encode())
    (tmp_path / "pictures" / "a.json").write_bytes(b'{"caption": "caf\xe9"}')
    with pytest.raises(ValueError, match=r"a\.json can't be read"):
        rows(tmp_path / "pictures")
