"""Prompt files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """Prompts of a text file (one a line; empty lines are skipped) or of JSON lines with a `prompt` each (GenEval).

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it isn't text, holds no prompt, or a JSON line has none; names the line.

    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no prompt file at {file}")
    try:
        # Windows begins a file with a mark; str.splitlines would cut at characters that a caption may hold
        with file.open(encoding="utf-8-sig") as opened:
            lines = list(opened)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file in UTF-8: {error}") from error
    if any("\x00" in line for line in lines):
        raise ValueError(f"{file} is not a text file: it has NUL characters")
    as_json = file.suffix in (".jsonl", ".json")
    prompts = [
        _json_prompt(line, file, n) if as_json else {"prompt": line.strip()}
        for n, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not prompts:
        raise ValueError(f"{file} holds no prompt")
    return prompts


def _json_prompt(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:  # JSONDecodeError is one
        raise ValueError(f"{file}, line {number}, is not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f'{file}, line {number}, has no "prompt"')
    return record
