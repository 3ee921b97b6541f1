from __future__ import annotations

import json
from pathlib import Path

import pytest

from star.sampling.prompts import read_prompts


def test_lines_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a red circle\n\n  two stars  \n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "a cat", "tag": "single"}\n')
    assert [record["prompt"] for record in read_prompts(tmp_path / "a.txt")] == ["a red circle", "two stars"]
    assert read_prompts(tmp_path / "b.jsonl") == [{"prompt": "a cat", "tag": "single"}]


def test_a_prompt_ends_with_its_line_alone(tmp_path: Path) -> None:
    """Not at what Unicode calls a line separator, which JSON leaves as it is; and a byte order mark is no letter."""
    odd = "one\u2028two\x85three"
    (tmp_path / "a.txt").write_bytes(f"\ufeff{odd}\r\na cat\r\n".encode())
    (tmp_path / "b.jsonl").write_bytes(f"\ufeff{json.dumps({'prompt': odd}, ensure_ascii=False)}\n".encode())
    assert [record["prompt"] for record in read_prompts(tmp_path / "a.txt")] == [odd, "a cat"]
    assert [record["prompt"] for record in read_prompts(tmp_path / "b.jsonl")] == [odd]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", "not a text file"),
        ("a.txt", b"a\x00b", "not a text file"),
        ("a.txt", b" \n", "no prompt"),
        ("a.jsonl", b'{"prompt": "x"}\n{oops', "line 2, is not JSON"),
        ("a.jsonl", b'{"text": "x"}', 'line 1, has no "prompt"'),
    ],
)
def test_what_is_not_a_prompt_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.txt"):
        read_prompts(tmp_path / "nothing.txt")
