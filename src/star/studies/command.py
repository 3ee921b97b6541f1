"""What the studies' commands share: arguments, interleaved timing, a table and a file."""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from star.utils.cli import readable_errors
from star.utils.devices import fast_precision
from star.utils.files import write_atomically

log = logging.getLogger("studies")

Rows = Sequence[Mapping[str, Any]]


def split_arguments(
    arguments: Sequence[str], own: Mapping[str, Callable[[str], Any]]
) -> tuple[dict[str, Any], list[str]]:
    """A study's own settings, each read by its function, and the words that are left.

    Raises:
        ValueError: when a setting can't be read.

    """
    values: dict[str, Any] = {}
    rest = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key not in own:
            rest.append(argument)
            continue
        try:
            values[key] = own[key](text)
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{argument} can't be read: {error}") from error
    return values, rest


def refuse(rest: Sequence[str], known: Sequence[str]) -> None:
    """Raise a ValueError if there are words that a study without a configuration doesn't know."""
    if rest:
        raise ValueError(f"unknown argument {rest[0]!r}; write key=value with one of {', '.join(known)}")


def count(text: str) -> int:
    """A whole number, at least 1."""
    if int(text) < 1:
        raise ValueError("at least 1 is needed")
    return int(text)


def words(text: str) -> list[str]:
    """`a,b` or `[a,b]`."""
    return text.strip("[]").split(",")


def dtype(text: str, device: str = "cpu") -> torch.dtype:
    """`float32`, `bfloat16` or `float16`; `auto` is what a training on the device would take."""
    if text == "auto":
        taken = fast_precision(torch.device(device).type)[0]
        text = {"bf16-mixed": "bfloat16", "16-mixed": "float16", "32-true": "float32"}[taken]
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[text]


def interleaved(runs: Mapping[str, Callable[[], Any]], *, warmup: int = 1, repeats: int = 5) -> dict[str, list[float]]:
    """Seconds of every repetition; the runs take turns, so that a machine's moods meet them all alike."""
    for run in runs.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            _wait()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def present(title: str, rows: Rows, out: Path | None, facts: Mapping[str, Any]) -> None:
    """Show rows as a table, and write them with what they were measured under to a JSON file, if one is wanted."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if out is not None:
        record = {"title": title, **facts, "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
        text = json.dumps(record, indent=2, default=str) + "\n"
        write_atomically(out, lambda path: _write(path, text))
        log.info("%s", out)


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def run(help_text: str, study: Callable[[Sequence[str]], None], arguments: Sequence[str] | None) -> None:
    """Run a study with the words of the command line; what a user can mend is one message."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if {"-h", "--help", "help"} & set(arguments):
        sys.stdout.write(help_text)
        return
    with readable_errors():
        study(arguments)
