"""JSON files, whole or one object per line, with errors that name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: when it isn't JSON; names it.

    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is no JSON: {error}") from error


def read_json_lines(path: Path, parse: Callable[[Mapping[str, Any]], T], *, what: str) -> list[T]:
    """Every line as `parse` reads it.

    Args:
        path: the file.
        parse: from a line's object to what is wanted; may raise KeyError, TypeError or ValueError.
        what: what a line should be, for messages.

    Raises:
        ValueError: for a line that isn't; names it.

    """
    with path.open(encoding="utf-8") as file:  # str.splitlines would cut at characters that a caption may hold
        lines = list(file)
    return [_parsed(line, parse, f"{path}, line {number}, is no {what}") for number, line in enumerate(lines, 1)]


def _parsed(line: str, parse: Callable[[Mapping[str, Any]], T], message: str) -> T:
    try:
        return parse(json.loads(line))
    except (KeyError, TypeError, ValueError) as error:  # JSONDecodeError is a ValueError
        raise ValueError(f"{message}: {type(error).__name__} {error}") from error
